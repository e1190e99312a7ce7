"""The rewards of a recipe, loaded and tried; one judge client for all of them, in process 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from luthier.data.prompt_rows import PromptRow
from luthier.endpoint.client import Endpoint
from luthier.endpoint.settings import EndpointSettings
from luthier.online.processes import Alone, Processes
from luthier.online.rewards.base import Reward, one_answer
from luthier.online.rewards.judge import JudgeReward
from luthier.online.rewards.length import LengthReward
from luthier.online.rewards.match import FormReward, MatchReward
from luthier.online.rewards.python_file import PythonReward, load_function
from luthier.online.rewards.shared import AskedByMain
from luthier.recipe.online_rules import label_of, split_python
from luthier.recipe.online_schema import GrpoSection, JudgeSection, RewardSpec
from luthier.runtime.errors import LuthierError, Problem, RecipeError

__all__ = ["Rewards", "build_rewards", "needs_columns", "reference_check", "try_rewards"]


class Rewards:
    """The rewards in the order of the recipe, and the judge they share."""

    def __init__(self, rewards: Sequence[Reward], endpoint: Endpoint | None) -> None:
        self.rewards = list(rewards)
        self.endpoint = endpoint

    def unusable(self, reference: str | None) -> str | None:
        """The first reason why some reward cannot use a reference."""
        return next((fault for reward in self.rewards if (fault := reward.unusable(reference)) is not None), None)


@contextmanager
def build_rewards(
    grpo: GrpoSection, *, cache_dir: Path | None, processes: Processes | None = None
) -> Iterator[Rewards]:
    """Load every reward; the judge's client is closed at the end.

    Args:
        grpo: `objective.grpo` of the recipe.
        cache_dir: where a judge's answers are kept.
        processes: of the run; the first one alone asks a judge, for all.

    Raises:
        RecipeError: everything that is wrong with any of them.
        AccessError: the judge's key is not set.
    """
    processes = processes or Alone()
    judge = processes.is_main and any(reward.name == "judge" for reward in grpo.rewards)
    endpoint = Endpoint(_settings(grpo.judge), cache_dir=cache_dir) if judge else None
    problems: list[Problem] = []
    rewards: list[Reward] = []
    try:
        for spec in grpo.rewards:
            try:
                found = _reward(spec, grpo, endpoint)
                if isinstance(found, JudgeReward) and processes.size > 1:
                    found = AskedByMain(found, processes)
                rewards.append(found)
            except RecipeError as error:
                problems += error.problems
        if problems:
            raise RecipeError(problems=problems)
        yield Rewards(rewards, endpoint)
    finally:
        if endpoint is not None:
            endpoint.close()


def reference_check(grpo: GrpoSection) -> Callable[[str | None], str | None]:
    """What makes a reference unusable, without loading code of the user or a judge: those take any."""
    ours = Rewards([_reward(spec, grpo, None) for spec in grpo.rewards if spec.python is None], None)
    return ours.unusable


def needs_columns(grpo: GrpoSection) -> bool:
    """Whether some reward is given the other columns of the rows."""
    return any(spec.python is not None for spec in grpo.rewards)


def try_rewards(rewards: Rewards, row: PromptRow) -> None:
    """Call each of the user's functions, and each judge, once, before anything is loaded or trained.

    Raises:
        RecipeError: all functions that fail, each with file and line.
        LuthierError: a judge cannot be used (`rewards/judge.py`).
    """
    problems: list[Problem] = []
    for reward in rewards.rewards:
        if isinstance(reward, PythonReward):
            try:
                reward.try_on(row)
            except LuthierError as error:
                problems += error.problems
    if problems:
        raise RecipeError(problems=problems)
    for reward in rewards.rewards:
        if isinstance(reward, JudgeReward):
            reward.score(one_answer(row))


def _reward(spec: RewardSpec, grpo: GrpoSection, endpoint: Endpoint | None) -> Reward:
    label = label_of(spec)
    if spec.python is not None:
        file, name = split_python(spec.python)
        return PythonReward(label, spec.weight, file, load_function(spec.python, file, name))
    if spec.name in ("exact_match", "number", "json_exact"):
        return MatchReward(label, spec.weight, spec.name, spec.pattern)
    if spec.name == "length":
        assert spec.soft_tokens is not None
        return LengthReward(label, spec.weight, spec.max_tokens or grpo.max_completion_length, spec.soft_tokens)
    if spec.name == "judge":
        judge = grpo.judge
        return JudgeReward(
            label, spec.weight, spec.rubric or "", spec.min_score, spec.max_score, endpoint,  # type: ignore[arg-type]
            judge.temperature, judge.max_tokens, judge.extra_body,
        )  # fmt: skip
    assert spec.name in ("json_valid", "regex")
    return FormReward(label, spec.weight, spec.name, spec.pattern)


def _settings(judge: JudgeSection) -> EndpointSettings:
    assert judge.base_url is not None and judge.model is not None, "checked by the recipe's rules"
    return EndpointSettings(
        base_url=judge.base_url, model=judge.model, api_key_env=judge.api_key_env,
        timeout_seconds=judge.timeout_seconds, max_retries=judge.max_retries, concurrency=judge.concurrency,
        input_price=judge.input_price, output_price=judge.output_price, budget_usd=judge.budget_usd,
    )  # fmt: skip
