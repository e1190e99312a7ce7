"""Everything that can be said of a recipe before it runs: problems, resolved values, plan, preflight."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.recipe.load import recipe_from_text
from luthier.recipe.positions import dotted
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import LuthierError, Problem, RecipeError
from luthier.studio.clean import clean
from luthier.studio.runs.details import plan_record
from luthier.studio.runs.line import recipe_of
from luthier.studio.runs.resolved import resolved_values

if TYPE_CHECKING:
    from luthier.plan.result import Plan
    from luthier.recipe.schema import Recipe

__all__ = ["check_text", "planned", "problem_record"]

ORIGIN = "recipe.yaml"


def check_text(text: str, root: Path) -> tuple[dict[str, Any], Recipe | None]:
    """What is known at once: problems with their places, the plain value, the command. The recipe, if it is one."""
    document = parse_yaml(text, origin=ORIGIN)
    value = document.value if isinstance(document.value, dict) else None
    recipe: Recipe | None = None
    problems: Sequence[Problem] = ()
    try:
        recipe = recipe_from_text(text, origin=ORIGIN)
    except RecipeError as error:
        problems = error.problems
    output = value.get("output_dir") if value else None
    return {
        "ok": recipe is not None, "problems": [problem_record(problem, document) for problem in problems],
        "recipe": clean(value), "resolved": None, "plan": None, "plan_problem": None,
        "command": shlex.join(["luthier", "run", ORIGIN]), "output_dir": output if isinstance(output, str) else None,
        "exists": _exists(recipe, root), "preflight": [],
    }, recipe  # fmt: skip


def problem_record(problem: Problem, document: Any = None) -> dict[str, Any]:
    """A problem as the page gets it, with the key it stands at."""
    path = _key_at(problem, document) if document is not None else None
    record: dict[str, Any] = clean(asdict(problem))
    return {**record, "path": path}


def _key_at(problem: Problem, document: Any) -> str | None:
    """The innermost key whose line and column are the problem's."""
    if problem.line is None or problem.column is None or document.lines is None:
        return None
    best: tuple[int, str] | None = None
    for path, spot in document.spots.items():
        for start, end in (spot.key, spot.value):
            place = document.place_of(start, max(end, start + 1))
            if place.line == problem.line and place.column == problem.column and (best is None or len(path) >= best[0]):
                best = (len(path), dotted(path))
    return best[1] if best else None


def _exists(recipe: Recipe | None, root: Path) -> str:
    if recipe is None:
        return "no"
    folder = root / recipe.output_dir
    if not (folder / "recipe.yaml").is_file() and not (folder / "manifest.json").is_file():
        return "no"
    return "same" if recipe_of(folder) == recipe.model_dump(mode="json", exclude_unset=True) else "other"


def planned(recipe: Recipe, root: Path) -> dict[str, Any]:
    """`resolved`, `plan`, `plan_problem` and `preflight`. Loads no weights; reads rows to estimate their lengths."""
    from luthier.plan.inputs import documents_of, shape_of
    from luthier.plan.machine import this_machine

    checks: list[dict[str, str]] = []
    try:
        device, how = this_machine()
        checks.append(_check("device", "ok", f"{device.name} ({how})"))
        shape = shape_of(recipe)
        checks.append(_check("model", "ok", f"{shape.architecture}, {shape.parameters:,} parameters ({shape.source})"))
        documents = documents_of(recipe)
        state = "warn" if "not looked at" in documents.how else "ok"
        checks.append(_check("data", state, f"{documents.rows:,} rows, {documents.tokens:,} tokens: {documents.how}"))
        if recipe.objective.name == "grpo":
            return _online(recipe, shape, documents, device, checks)
        plan = _plan(recipe, shape, documents, device)
    except LuthierError as error:
        return {"resolved": None, "plan": None, "plan_problem": problem_record(error.problems[0]), "preflight": checks}
    from luthier.recipe.resolve import resolve, resolved_yaml

    resolved = resolve(recipe, _facts(plan, documents, device, shape))
    return {
        "resolved": resolved_values(resolved_yaml(resolved)), "plan": plan_record(plan.to_json()),
        "plan_problem": None, "preflight": [*checks, *_preflight(recipe, plan, root)],
    }  # fmt: skip


def _plan(recipe: Recipe, shape: Any, documents: Any, device: Any) -> Plan:
    from luthier.plan.request import make_request
    from luthier.plan.search import make_plan
    from luthier.runtime.env import read_env
    from luthier.runtime.host_memory import free_memory_bytes

    request = make_request(
        recipe, shape, documents, device, num_gpus=1, cache_dir=read_env().cache_dir,
        host_memory=free_memory_bytes(),
    )  # fmt: skip
    return make_plan(request)


def _facts(plan: Plan | None, documents: Any, device: Any, shape: Any) -> Any:
    from luthier.recipe.facts import Facts

    return Facts(
        device_type=device.type, native_bf16=device.bf16 > 0, device_memory_bytes=device.memory_bytes, world_size=1,
        rows=documents.rows, sequences=documents.sequences, tokens=documents.tokens,
        model_parameters=shape.parameters, planned=None if plan is None else plan.decision(),
    )  # fmt: skip


def _online(recipe: Recipe, shape: Any, documents: Any, device: Any, checks: list[dict[str, str]]) -> dict[str, Any]:
    """Of online RL there is a plan of its own, without a search."""
    from luthier.recipe.resolve import resolve, resolved_yaml

    resolved = resolve(recipe, _facts(None, documents, device, shape))
    problem = Problem(
        code="W141", message="memory and time of online RL are not shown here", hint="`luthier plan recipe.yaml`"
    )
    return {"resolved": resolved_values(resolved_yaml(resolved)), "plan": None,
            "plan_problem": problem_record(problem), "preflight": checks}  # fmt: skip


def _preflight(recipe: Recipe, plan: Plan, root: Path) -> list[dict[str, str]]:
    chosen = plan.chosen
    have = plan.request.device.memory_bytes
    change = f"; {plan.remedies[0].change}" if plan.remedies else ""
    short = chosen.needed_bytes > chosen.available_bytes
    text = f"{_gib(chosen.needed_bytes)} of {_gib(have)}{change if short else ''}"
    found = [_check("memory", "fail" if short else "ok", text)]
    if chosen.host_available is not None:
        short, need = bool(chosen.host_missing), _gib(chosen.host.offloaded)
        text = f"{need} for what is offloaded, {_gib(chosen.host_available)} free{change if short else ''}"
        found.append(_check("host memory", "fail" if short else "ok", text))
    needed = sum(size for part, size in plan.to_json()["disk"].items() if part != "base")
    free = shutil.disk_usage(root).free
    found.append(_check("disk", "ok" if free > needed else "fail", f"{_gib(needed)} to write, {_gib(free)} free"))
    merges = recipe.export.merge or recipe.method.name in ("full", "freeze", "spectrum")
    found.append(_check("servable", "ok", "a merged model" if merges else "an adapter: served beside its base"))
    found.append(_check("template", "unknown", "proven turn by turn when the rows are prepared: `luthier data check`"))
    found.append(_check("eos", "unknown", "proven with the masks when the rows are prepared"))
    words = (
        "rows over data.max_length are cut"
        if recipe.data.overlong == "truncate"
        else "rows over data.max_length are dropped"
    )
    found.append(
        _check("truncation", "unknown", f"{words} ({recipe.data.max_length:,} tokens); the explorer counts them")
    )
    return found


def _check(name: str, state: str, text: str) -> dict[str, str]:
    record: dict[str, str] = clean({"name": name, "state": state, "text": text})
    return record


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
