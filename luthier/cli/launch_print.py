"""`luthier launch --print`: the recipe and its plan as a file for a cluster. Imports no torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli.output import emit_json
from luthier.runtime.console import note

if TYPE_CHECKING:
    from luthier.launch.settings import LaunchSettings
    from luthier.launch.submission import Cluster, Submission
    from luthier.recipe.load import LoadedRecipe
    from luthier.recipe.schema import Recipe

__all__ = ["Wanted", "print_submission"]


class Wanted:
    """What the command line says of the run."""

    def __init__(
        self, *, kind: str, nodes: int, num_gpus: int | None, num_processes: int | None, gpu: str | None,
        overrides: Sequence[str], flags: Sequence[str], max_restarts: int = 0,
    ) -> None:  # fmt: skip
        self.kind, self.nodes, self.gpu, self.overrides, self.flags = kind, nodes, gpu, overrides, flags
        self.num_gpus, self.num_processes = num_gpus, num_processes
        if max_restarts:
            self.flags = [*flags, "--max-restarts", str(max_restarts)]

    @property
    def on_gpus(self) -> bool:
        """Each process has a GPU."""
        return self.num_processes is None

    def processes(self, settings: LaunchSettings) -> int:
        """Of each machine."""
        return self.num_processes or self.num_gpus or settings.gpus


def print_submission(
    loaded: LoadedRecipe, file: Path, wanted: Wanted, *, settings: Path | None, output: Path | None, as_json: bool
) -> None:
    """Print the submission file, or write it.

    Raises:
        RecipeError: an unknown cluster, wrong settings, an unknown GPU, or an objective that takes one process.
    """
    from luthier.launch.submission import submission_file
    from luthier.runtime.atomic import write_text

    kind = _kind(wanted.kind)
    given = _settings(settings, kind)
    run = _submission(loaded, file, wanted, given)
    text = submission_file(kind, run, given)
    for line in run.notes:
        note(f"note: {line}", style="yellow")
    if output is not None:
        write_text(output, text)
        note(f"{output}: {_how_to_submit(kind, output)}")
    if as_json:
        emit_json({"kind": kind, "text": text, "reasons": dict(run.reasons), "notes": list(run.notes)})
    elif output is None:
        sys.stdout.write(text)


def _how_to_submit(kind: Cluster, output: Path) -> str:
    return {
        "slurm": f"sbatch {output}", "kubernetes": f"kubectl apply -f {output}",
        "skypilot": f"sky jobs launch {output}",
    }[kind]  # fmt: skip


def _kind(text: str) -> Cluster:
    from luthier.launch.submission import CLUSTERS
    from luthier.runtime.errors import RecipeError

    for kind in CLUSTERS:
        if kind == text:
            return kind
    raise RecipeError(code="L210", message=f"`--print {text}`: no such cluster", hint=f"one of {', '.join(CLUSTERS)}")


def _settings(file: Path | None, kind: Cluster) -> LaunchSettings:
    from luthier.launch.settings import launch_settings
    from luthier.recipe.yaml12 import parse_yaml
    from luthier.runtime.errors import RecipeError

    if file is None:
        return launch_settings({"kind": kind})
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise RecipeError(
            code="L210", message=f"`--settings {file}` cannot be read: {error.strerror}",
            hint="a YAML file with the keys of `launch` of docs/jobs.md",
        ) from error  # fmt: skip
    value = parse_yaml(text, origin=str(file)).value
    value = {} if value is None else value
    named = value.get("kind", kind) if isinstance(value, Mapping) else kind
    if named != kind:
        raise RecipeError(
            code="L210", message=f"{file} says `kind: {named}`, the command line `--print {kind}`",
            hint="take `kind` out of the file",
        )  # fmt: skip
    return launch_settings({**value, "kind": kind} if isinstance(value, Mapping) else value)


def _submission(loaded: LoadedRecipe, file: Path, wanted: Wanted, settings: LaunchSettings) -> Submission:
    from luthier.launch.resources import resources_of_machine
    from luthier.launch.submission import Submission
    from luthier.launch.submit_kubernetes import MOUNTED_RECIPE
    from luthier.launch.task import Spec

    recipe, processes = loaded.recipe, wanted.processes(settings)
    plan = _plan(recipe, wanted, settings, devices=processes * wanted.nodes)
    resources, reasons = resources_of_machine(plan, settings, processes=processes, gpus=wanted.on_gpus)
    if wanted.kind == "skypilot" and resources.gpus and resources.gpu_type is None:
        resources = replace(resources, gpu_type=wanted.gpu)  # it asks for GPUs by name only
    # Slurm's machines see this one's files, the others have an image of their own.
    python = sys.executable if wanted.kind == "slurm" and "python" not in settings.model_fields_set else settings.python
    program = settings.command or [python, "-m", "luthier", "launch"]
    there = MOUNTED_RECIPE if wanted.kind == "kubernetes" else str(file.absolute())
    how = "--num-gpus" if wanted.on_gpus else "--num-processes"
    folder, uploads = Path.cwd(), _uploads(recipe, file)
    spec = Spec(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", Path(recipe.output_dir).name).strip("-._")[:100] or "run",
        command=(*program, there, *wanted.overrides, *wanted.flags, how, str(processes)),
        folder=folder, environment={"NO_COLOR": "1", **settings.environment},
        secrets=tuple(settings.pass_secrets), resources=resources,
    )  # fmt: skip
    return Submission(
        spec=spec, nodes=wanted.nodes, reasons=reasons, recipe_text=loaded.text,
        uploads=tuple(uploads), notes=tuple(_notes(recipe, plan, wanted, settings, uploads)),
    )  # fmt: skip


def _plan(
    recipe: Recipe, wanted: Wanted, settings: LaunchSettings, *, devices: int
) -> Mapping[str, Any] | None:  # fmt: skip
    """`luthier plan --json` of all processes; None for online RL, of which no plan of this kind is made."""
    from luthier.plan.devices import find_device
    from luthier.plan.inputs import documents_of, shape_of
    from luthier.plan.machine import this_machine, with_network
    from luthier.plan.request import make_request
    from luthier.plan.search import make_plan
    from luthier.plan.setting import HOST_DEVICES
    from luthier.recipe.online import require_processes
    from luthier.runtime.env import read_env
    from luthier.runtime.errors import RecipeError

    if recipe.objective.name == "grpo":
        require_processes(recipe, devices)
        return None
    named = wanted.gpu or settings.gpu_type
    if wanted.on_gpus and named is None:
        raise RecipeError(
            code="L211", message="which GPU the machines have is not known, so memory and time cannot be planned",
            hint="`--gpu H100`, or `gpu_type: h100` in the file of `--settings`; `--num-processes N` takes the CPU",
        )  # fmt: skip
    device = find_device(named) if wanted.on_gpus and named is not None else this_machine()[0]
    env = read_env()
    request = make_request(
        recipe, shape_of(recipe), documents_of(recipe), with_network(device, env.network_gbits), num_gpus=devices,
        cache_dir=env.cache_dir, host_devices=devices // wanted.nodes if wanted.nodes > 1 else HOST_DEVICES,
    )  # fmt: skip
    return make_plan(request).to_json()


def _uploads(recipe: Recipe, file: Path) -> list[str]:
    """Files here that the run reads, absolute: a machine of a cloud has none of them."""
    found = [file]
    for text in _texts(recipe.model_dump(mode="json")):
        path = Path(text.rpartition(".py:")[0] + ".py" if ".py:" in text else text).expanduser()
        with suppress(OSError, ValueError):  # the text of a template is no path
            found += [path] if path.exists() else []
    return list(dict.fromkeys(str(path.absolute()) for path in found))


_FILES = frozenset(
    ["accelerate_config", "chat_template", "deepspeed_config", "embedding_model", "fewshot_path", "include_path",
     "init_from", "name_or_path", "path", "python", "spectrum_file", "tokenizer"]
)  # fmt: skip
"""Keys of a recipe, wherever they stand, that may name a file or folder."""


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Every text below a key of `_FILES`."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) and value and key in _FILES:
        yield value


def _notes(
    recipe: Recipe, plan: Mapping[str, Any] | None, wanted: Wanted, settings: LaunchSettings, uploads: Sequence[str]
) -> list[str]:
    found = []
    if plan is not None and not plan["fits"]:
        found.append("the plan says that this does not fit: `luthier plan` shows the smallest change that helps")
    kept = {
        "kubernetes": [one.path for one in settings.kubernetes.volumes],
        "skypilot": list(settings.skypilot.mounts),
    }.get(wanted.kind)

    def held(place: str) -> bool:
        return kept is None or any(place == path or place.startswith(path.rstrip("/") + "/") for path in kept)

    lost = [path for path in uploads[1:] if not held(path)] if wanted.kind == "kubernetes" else []
    if lost:
        found.append(f"no volume holds {', '.join(lost)}: pods do not find what is only here (kubernetes.volumes)")
    folder = str(Path(recipe.output_dir).absolute())
    if not held(folder):
        where = "kubernetes.volumes" if wanted.kind == "kubernetes" else "skypilot.mounts"
        found.append(
            f"no volume holds output_dir {folder}: the result and its checkpoints go with the machine ({where})"
        )
    return found
