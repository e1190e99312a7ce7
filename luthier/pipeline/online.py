"""The train stage of online RL, and what is tried before anything costs time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.pipeline.spectrum import keep_selection
from luthier.recipe.optimizers import require_optimizer
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem

if TYPE_CHECKING:
    from luthier.pipeline.session import Session

__all__ = ["refuse_several_devices", "train_online", "try_online"]


def try_online(session: Session) -> None:
    """Packages are there, every row can be asked, every reward can be called.

    Raises:
        LuthierError: all that is wrong with the first of these that is not so.
    """
    from luthier.online.arguments import require_packages
    from luthier.online.rewards.build import build_rewards, try_rewards

    recipe = session.recipe
    require_packages(recipe)
    require_optimizer(recipe.train, device_type=session.device.type)
    with build_rewards(recipe.objective.grpo, cache_dir=read_env().cache_dir / "endpoint") as rewards:
        try_rewards(rewards, session.prompts.train[0])


def train_online(session: Session, *, fingerprint: dict[str, Any], keep_intent: Callable[[], None]) -> dict[str, Any]:
    """Load, prepare, train.

    Args:
        session: the run.
        fingerprint: everything the trained weights depend on.
        keep_intent: writes down what an unfinished training is of, once the model is loaded.
    """
    from luthier.model.adapters import apply_method
    from luthier.model.load import load_base
    from luthier.online.fit import fit_online, weights_dtype
    from luthier.online.rewards.build import build_rewards
    from luthier.runtime.hashing import hash_folder

    resolved = session.resolved
    recipe = resolved.recipe
    group = session.group
    _say_processes(session)
    _require_same_prompts(session)
    cache = read_env().cache_dir / "endpoint"
    with build_rewards(recipe.objective.grpo, cache_dir=cache, processes=group) as rewards:
        model = load_base(
            recipe.model, device=session.device, dtype=weights_dtype(recipe), quantization=recipe.model.quantization
        )
        if group.is_main:
            keep_intent()
        selection = session.selection
        tuned = apply_method(
            model, recipe.method, seed=recipe.train.seed, unfrozen=selection[0].patterns if selection else ()
        )
        if selection and group.is_main:
            keep_selection(session.run.path, *selection)
        for line in tuned.report.lines():
            note(f"  {line}")
        result = fit_online(
            tuned, session.prompts, resolved, run=session.run, tokenizer=session.tokenizer, rewards=rewards,
            device=session.device, fingerprint=fingerprint, restart=session.restart or session.again,
            processes=group,
        )  # fmt: skip

    def conclude() -> dict[str, Any]:
        if result.judge is not None:
            write_json(session.run.path / "judge.json", result.judge)
        weights = hash_folder(session.run.path / "final", ("*.safetensors",))
        spread = {"strategy": "ddp"} if group.size > 1 else {}
        return {"weights": weights, "method": tuned.report.to_json(), **spread, **result.to_json()}

    return group.from_main("weights of online RL", conclude)


def _require_same_prompts(session: Session) -> None:
    """Each process reads the rows itself; names of prompts would mean others in one that has read others.

    Raises:
        EnvironmentProblem: this one has.
    """
    known, found = session.stage_result("data")["hash"], session.prompts.prepared.manifest["hash"]
    if known != found and not session.group.is_main:
        raise EnvironmentProblem(
            code="L324", message=f"process {session.group.rank} has read other prompts than process 0",
            hint="the same files for all processes, unchanged while the run lasts",
        )  # fmt: skip


def _say_processes(session: Session) -> None:
    """How many processes there really are: an exit code of 0 does not say so."""
    size, device = session.group.size, session.device.type
    if size > 1:
        note(
            f"  {size} processes on {device}: a copy of the model each (DDP), its own part of every step's completions"
        )


def refuse_several_devices(session: Session) -> None:
    """transformers' trainer would spread one process over all devices it sees, which TRL does not support.

    Asked where this process is going to train: one that only reads data for others may see what it likes.

    Raises:
        EnvironmentProblem: one process alone, and several GPUs.
    """
    if not session.is_online or session.group.size > 1 or session.device.type != "cuda":
        return
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        raise EnvironmentProblem(
            code="T495", message=f"TRL's trainer takes one device a process, and this one sees {count}",
            hint=f"`luthier launch --num-gpus {count}`, or CUDA_VISIBLE_DEVICES=0",
        )  # fmt: skip
