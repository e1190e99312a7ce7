"""`luthier eval`: score models on a recipe's tasks, on this machine or behind endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.baseline import run_baseline, show_scores
from luthier.cli.common import JsonOption, OverridesArgument, load_with_overrides
from luthier.cli.launch import ProcessesOption
from luthier.cli.on_processes import on_processes
from luthier.cli.output import emit_json, show
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.endpoint.settings import EndpointSettings
    from luthier.evaluate.versus import Scored
    from luthier.pipeline.contest import Contestant
    from luthier.recipe.schema import EvaluateSection, Recipe
    from luthier.train.distributed.group import Group


Tasks = Annotated[Path, typer.Argument(help="Recipe, or a file with `tasks:` only (YAML).", show_default=False)]
Models = Annotated[
    list[str] | None,
    typer.Option(help="Adapter or model folder to score; after --endpoint, a model's name there. Repeatable."),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(help="Base URL of an OpenAI-compatible server (http://host:8000/v1). Repeatable, one a --model."),
]
Base = Annotated[bool, typer.Option("--base", help="Score the untouched base, too.")]
Tuned = Annotated[bool, typer.Option("--tuned", help="Score `final` of the recipe's output_dir, too.")]
Checkpoints = Annotated[
    list[Path] | None, typer.Option(help="Score a checkpoint (RUN/checkpoints/step-N), too. Repeatable.")
]
KeyName = Annotated[str | None, typer.Option(help="Environment variable with the API key.")]
InputPrice = Annotated[float | None, typer.Option(help="US dollars a million prompt tokens.", min=0.0)]
OutputPrice = Annotated[float | None, typer.Option(help="US dollars a million completion tokens.", min=0.0)]
Budget = Annotated[float | None, typer.Option("--budget", help="Most to spend at each endpoint.")]
Judge = Annotated[
    bool, typer.Option("--judge", help="Let `evaluate.judge` compare the first model's answers with each other's.")
]
Baseline = Annotated[
    bool,
    typer.Option("--baseline", help="Before tuning: score each model with several prompts, and say what that means."),
]
Shots = Annotated[
    list[int] | None, typer.Option(help="Of --baseline: worked examples to try besides none; 4 if left out.", min=1)
]
ShotsFrom = Annotated[
    str | None, typer.Option(help="Of --baseline: file of worked examples; the first training file if left out.")
]
Systems = Annotated[list[str] | None, typer.Option(help="Of --baseline: a system message to try. Repeatable.")]
OtherPrompts = Annotated[
    bool, typer.Option("--other-prompts", help="Ask a tuned model in other words than its training did.")
]
Concurrency = Annotated[int, typer.Option(help="Requests in flight at once.", min=1)]
GpusOption = Annotated[
    int | None, typer.Option("--num-gpus", min=1, help="Processes that share the rows, one for each GPU. Default: 1.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File for scores and every answer (JSON).")]


def evaluate(
    recipe: Tasks,
    overrides: OverridesArgument = None,
    model: Models = None,
    endpoint: Endpoints = None,
    base: Base = False,
    tuned: Tuned = False,
    checkpoint: Checkpoints = None,
    api_key_env: KeyName = None,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    budget_usd: Budget = None,
    judge: Judge = False,
    baseline: Baseline = False,
    shots: Shots = None,
    shots_from: ShotsFrom = None,
    system: Systems = None,
    concurrency: Concurrency = 8,
    other_prompts: OtherPrompts = False,
    num_gpus: GpusOption = None,
    num_processes: ProcessesOption = None,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Score the untouched base of a recipe on its tasks, or other models; several are compared pair by pair."""
    section, loaded = _tasks(recipe, overrides)
    servers = _servers(
        endpoint or [], model or [], api_key_env=api_key_env, input_price=input_price, output_price=output_price,
        budget_usd=budget_usd, concurrency=concurrency,
    )  # fmt: skip
    contestants = _contestants(loaded, servers, model or [], base=base, tuned=tuned, checkpoints=checkpoint or [])
    _check_together(
        baseline=baseline, judge=judge, of_baseline=bool(shots or shots_from or system), other_prompts=other_prompts
    )
    _check_before(section, contestants, judge=judge)

    def score(group: Group) -> None:
        if baseline:
            run_baseline(
                section, contestants, loaded, shots=shots or [4], shots_from=shots_from, systems=system or [], out=out,
                as_json=as_json, group=group,
            )  # fmt: skip
            return
        _score(
            section, contestants, loaded, judge=judge, other_prompts=other_prompts, out=out, as_json=as_json,
            group=group,
        )  # fmt: skip

    local = any(one.kind != "endpoint" for one in contestants)
    on_processes(score, num_gpus=num_gpus, num_processes=num_processes, local=local)


def _check_before(section: EvaluateSection, contestants: list[Contestant], *, judge: bool) -> None:
    """What needs no rows and no model; told before processes start."""
    from luthier.pipeline.contest import names
    from luthier.pipeline.judging import require_judge
    from luthier.pipeline.score import require_tasks

    require_tasks(section)
    names(contestants)
    if judge:
        require_judge(section)
        if len(contestants) < 2:
            raise RecipeError(code="E556", message="--judge compares models, and one is named", hint="add --tuned")


def _check_together(*, baseline: bool, judge: bool, of_baseline: bool, other_prompts: bool) -> None:
    if baseline and judge:
        raise RecipeError(code="C122", message="--judge compares models, --baseline prompts: give one of them")
    if baseline and other_prompts:
        raise RecipeError(code="C122", message="--other-prompts is for tuned models, --baseline for what comes before")
    if of_baseline and not baseline:
        raise RecipeError(code="C122", message="--shots, --shots-from and --system are for --baseline")


def _score(
    section: EvaluateSection,
    contestants: list[Contestant],
    recipe: Recipe | None,
    *,
    judge: bool,
    other_prompts: bool,
    out: Path | None,
    as_json: bool,
    group: Group,
) -> None:
    """Score all; process 0 compares every pair, lets the judge look, writes and shows."""
    from luthier.evaluate.versus import compare_many
    from luthier.pipeline.contest import contest
    from luthier.runtime.atomic import write_json

    scored = contest(section, contestants, recipe=recipe, other_prompts=other_prompts, group=group)
    if not group.is_main:
        return
    value: dict[str, Any] = scored[0].to_json()
    comparison = None
    if len(scored) > 1:
        comparison = compare_many(scored, confidence=section.confidence)
        value = {"models": [one.to_json() for one in scored], "comparison": comparison}
    verdicts = [_judged(section, scored[0], other) for other in scored[1:]] if judge else []
    if verdicts:
        value["judged"] = verdicts
    if out:
        write_json(out, value)
    if as_json:
        emit_json(value)
        return
    show_scores(scored, comparison)
    _show_verdicts(verdicts)


def _judged(section: EvaluateSection, first: Scored, second: Scored) -> dict[str, Any]:
    from luthier.pipeline.judging import judged

    value = judged(section, first.results, second.results, confidence=section.confidence)
    return {"first": first.name, "second": second.name, **value}


def _show_verdicts(verdicts: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from luthier.evaluate.judge.run import judge_lines

    for value in verdicts:
        show(Text(f"{value['second']} against {value['first']}:"))
        for line in judge_lines(value):
            show(Text(f"  {line}"))


def _tasks(path: Path, overrides: list[str] | None) -> tuple[EvaluateSection, Recipe | None]:
    from luthier.recipe.tasks_file import is_tasks_file, load_tasks_file

    if not is_tasks_file(path):
        recipe = load_with_overrides(path, overrides).recipe
        return recipe.evaluate, recipe
    if overrides:
        raise RecipeError(code="C120", message="a file with tasks only takes no overrides", hint="change the file")
    return load_tasks_file(path), None


def _servers(urls: list[str], models: list[str], **limits: Any) -> list[EndpointSettings]:
    """One for each pair of --endpoint and --model; one --endpoint serves all models."""
    from luthier.endpoint.settings import EndpointSettings

    if not urls:
        given = [name for name, value in limits.items() if value is not None and name != "concurrency"]
        if given:
            flag = "--budget" if given[0] == "budget_usd" else "--" + given[0].replace("_", "-")
            raise RecipeError(code="C122", message=f"{flag} is for --endpoint, and there is none")
        return []
    if not models or (len(urls) > 1 and len(urls) != len(models)):
        message = f"{len(urls)} --endpoint and {len(models)} --model: each endpoint needs the name of its model"
        raise RecipeError(code="C122", message=message, hint="--endpoint URL --model NAME, in pairs")
    paired = zip(urls if len(urls) > 1 else urls * len(models), models, strict=True)
    return [EndpointSettings(base_url=url, model=name, **limits) for url, name in paired]


def _contestants(
    recipe: Recipe | None,
    servers: list[EndpointSettings],
    models: list[str],
    *,
    base: bool,
    tuned: bool,
    checkpoints: list[Path],
) -> list[Contestant]:
    from luthier.pipeline.contest import Contestant

    folders = [] if servers else [Path(name) for name in models]
    found = [Contestant(kind="folder", path=folder) for folder in folders]
    if tuned:
        if recipe is None:
            raise RecipeError(code="C122", message="--tuned needs a recipe; the file has tasks only")
        found.insert(0, Contestant(kind="folder", path=Path(recipe.output_dir) / "final", label="tuned"))
    found += [Contestant(kind="checkpoint", path=path) for path in checkpoints]
    found += [Contestant(kind="endpoint", endpoint=server) for server in servers]
    if base or not found:
        found.insert(0, Contestant(kind="base", label="base" if found and recipe else _base_name(recipe)))
    return found


def _base_name(recipe: Recipe | None) -> str:
    return str(recipe.model.name_or_path) if recipe is not None else "base"
