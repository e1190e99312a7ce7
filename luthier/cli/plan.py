"""`luthier plan`: memory, time and the setting a run takes, before a weight is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides, split_overrides
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note

if TYPE_CHECKING:
    from luthier.plan.devices import Accelerator
    from luthier.plan.result import Plan
    from luthier.recipe.schema import Recipe
    from luthier.runtime.errors import Problem


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpu: Annotated[
        str | None, typer.Option(help="Device, for instance H200, 'L4 24GB', 'rtx 4090'; default: this machine.")
    ] = None,
    num_gpus: Annotated[int, typer.Option(min=1, max=4096, help="Devices; more than 8 are on several hosts.")] = 1,
    gpu_memory_gib: Annotated[
        float | None, typer.Option(min=1.0, help="Memory of a device, for a share of it or one that is not listed.")
    ] = None,
    network: Annotated[
        float | None, typer.Option(min=0.1, help="Gbit/s to other hosts, of each device; default: 400 are assumed.")
    ] = None,
    mean_tokens: Annotated[int | None, typer.Option(min=1, help="Mean tokens of a row, instead of looking.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Training rows, instead of looking.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Memory, time and disk of a recipe; what fits, and what to change if nothing does. No weights, no GPU."""
    from luthier.plan.inputs import documents_of, shape_of
    from luthier.plan.machine import with_network
    from luthier.plan.request import make_request
    from luthier.plan.search import make_plan
    from luthier.runtime.env import read_env
    from luthier.runtime.host_memory import free_memory_bytes

    wanted, missing = _load(recipe, overrides)
    device, how = _device(gpu, gpu_memory_gib)
    device = with_network(device, network if network is not None else read_env().network_gbits)
    if wanted.objective.name == "grpo":
        from luthier.cli.plan_online import render_online
        from luthier.plan.online import plan_online

        known = plan_online(
            wanted, shape_of(wanted), documents_of(wanted, mean_tokens=mean_tokens, rows=rows), device,
            num_gpus=num_gpus,
        )  # fmt: skip
        if as_json:
            emit_json({**known.to_json(), "device_found": how, "missing_files": missing})
        else:
            render_online(known)
        return
    request = make_request(
        wanted, shape_of(wanted), documents_of(wanted, mean_tokens=mean_tokens, rows=rows), device,
        num_gpus=num_gpus, cache_dir=read_env().cache_dir,
        host_memory=free_memory_bytes() if gpu is None and gpu_memory_gib is None else None,
    )  # fmt: skip
    answer = make_plan(request)
    if as_json:
        emit_json({**answer.to_json(), "device_found": how, "missing_files": missing})
        return
    if missing:
        note(f"not there yet, and assumed where the plan would look at it: {', '.join(missing)}", style="yellow")
    _render(answer, how)


def _load(recipe: Path, overrides: list[str] | None) -> tuple[Recipe, list[str]]:
    """The recipe, and its files that do not exist yet: a plan can be made before there are data.

    Raises:
        RecipeError: anything else is wrong.
    """
    from luthier.recipe.overrides import apply_overrides
    from luthier.recipe.paths import looks_local, missing_path
    from luthier.recipe.validate import validate
    from luthier.recipe.yaml12 import parse_yaml
    from luthier.runtime.errors import RecipeError

    try:
        return load_with_overrides(recipe, overrides).recipe, []
    except RecipeError as error:
        if not all(_only_not_there(problem) for problem in error.problems):
            raise
        # Nothing else is wrong, so this goes through.
        document = parse_yaml(recipe.read_text("utf-8-sig"), origin=str(recipe))
        apply_overrides(document, split_overrides(overrides or []))
        wanted, _ = validate(document)
        assert wanted is not None
        named = [source.path for source in wanted.data.train]
        named += [wanted.data.validation.path] if wanted.data.validation.path else []
        named += [path for task in wanted.evaluate.tasks for path in (task.path, task.fewshot_path) if path]
        missing = [path for path in named if looks_local(path) and missing_path(path)]
        if len(missing) != len(error.problems):  # of the model, or of another key
            raise
    return wanted, list(dict.fromkeys(missing))


def _only_not_there(problem: Problem) -> bool:
    """A file that is not there, and that looks like no slip of the pen."""
    there = problem.code == "C130" and problem.message.startswith("no such file")
    return there and "did you mean" not in (problem.hint or "")


HOW_DEVICE = {
    "steps": "whole steps were measured on it",
    "rates": "products and copies were measured on it, the rest is carried over from the H200",
    "": "from its data sheet; the share of it that is reached is assumed, nothing was measured on it",
}


def _device(gpu: str | None, memory_gib: float | None) -> tuple[Accelerator, str]:
    from luthier.plan.devices import find_device, nearest_by_memory
    from luthier.plan.machine import this_machine, with_memory

    if gpu is not None:
        device = find_device(gpu)
        how = HOW_DEVICE[device.measured]
    elif memory_gib is not None:
        near = nearest_by_memory(int(memory_gib * 2**30))
        device, how = near, f"memory as given; rates of {near.name} assumed"
    else:
        device, how = this_machine()
    return (device, how) if memory_gib is None else (with_memory(device, memory_gib), how)


def _render(answer: Plan, how: str) -> None:
    from rich.table import Table

    from luthier.cli.plan_tables import host_table, memory_table, time_table, ways_table
    from luthier.plan.reasons import gib

    request, chosen = answer.request, answer.chosen
    shape = request.sizes.shape
    trained, sizes = request.sizes.trainable, request.sizes
    facts = Table(box=None, pad_edge=False, show_header=False)
    share = f"{trained:,} trained ({trained / sizes.parameters:.2%})"
    facts.add_row("model", f"{shape.architecture}, {sizes.parameters:,} parameters, {share}", shape.source)
    if sizes.trained_how:
        facts.add_row("trained", f"by {sizes.method}", sizes.trained_how)
    documents = request.documents
    facts.add_row("data", f"{documents.rows:,} rows, {documents.tokens:,} tokens an epoch", documents.how)
    devices = f"{request.num_gpus} x " if request.num_gpus > 1 else ""
    facts.add_row("device", f"{devices}{request.device.name}, {gib(request.device.memory_bytes)}", how)
    show(facts)
    show("")
    show(_verdict(answer))
    show("")
    show(memory_table(answer))
    if answer.fits:
        show("")
        show(time_table(answer))
    if request.num_gpus > 1:
        show("")
        show(ways_table(answer))
        show("")
        show(host_table(answer))
    show("")
    show(("setting: " if answer.fits else "smallest setting: ") + chosen.setting.describe(shape.layers))
    for key, reason in answer.reasons.items():
        if key != "model.dequantize_base" or "nf4" in chosen.setting.base:
            show(f"  {key}: {reason}")
    for line in _closing(answer):
        show(line)


def _verdict(answer: Plan) -> str:
    """The answer in a line."""
    from luthier.plan.reasons import gib, host_words

    chosen, device = answer.chosen, answer.request.device
    each = " on each device" if answer.request.num_gpus > 1 else ""
    if answer.fits:
        return (
            f"fits: {gib(chosen.needed_bytes)} of {gib(device.memory_bytes)}{each}, "
            f"{chosen.tokens_per_second:,.0f} tokens/s, about {_duration(answer.seconds)} of training"
        )
    first = f"; smallest change that helps: {answer.remedies[0].change}" if answer.remedies else ""
    if chosen.needed_bytes <= chosen.available_bytes:
        return (
            f"does not fit this host: {gib(chosen.needed_bytes)}{each} would do{host_words(chosen)} "
            f"(L310, `distributed.offload: {chosen.setting.offload}`){first}"
        )
    return (
        f"does not fit: needs {gib(chosen.needed_bytes)}{each} at least, and {gib(chosen.available_bytes)} of "
        f"{gib(device.memory_bytes)} can be used{host_words(chosen)}{first}"
    )


def _host_rates(answer: Plan) -> str:
    """What the time of offload rests on."""
    from luthier.plan.host import HOST_BANDWIDTH, HOST_TRAFFIC
    from luthier.plan.states import OWN_UPDATES

    request, setting = answer.request, answer.chosen.setting
    link = f"to host memory {request.device.host_link / 1e9:.0f} GB/s a device is assumed"
    if request.recipe.train.optim in OWN_UPDATES and not setting.deepspeed and request.device.type == "cuda":
        return f"{link}, for all devices of a host together {HOST_TRAFFIC / 1e9:.0f} (from two measured steps of two)"
    return f"{link}; {HOST_BANDWIDTH / 1e9:.0f} GB/s of its memory in updates on the CPU is from one measured step"


def _closing(answer: Plan) -> Iterator[str]:
    from luthier.plan.disk import disk_bytes
    from luthier.plan.reasons import gib

    request, chosen = answer.request, answer.chosen
    beside = "loading, scoring and merging come on top"
    amount = f"{answer.steps:,} steps, {answer.tokens:,.0f} tokens"
    if answer.fits:
        yield f"run: {amount}, {_duration(answer.seconds)} of training ({beside})"
    if answer.fits and answer.seconds_before:
        yield (
            f"before the first step: {_duration(answer.seconds_before)} for the reference, all answers once without "
            "gradients (kept for runs over the same rows)"
        )
    disk = disk_bytes(request)
    yield "disk: " + ", ".join(f"{name} {gib(size)}" for name, size in disk.items() if size)
    if request.num_gpus > 1:
        each = request.host_devices
        where = "one host" if request.num_gpus <= each else f"hosts with {each} each"
        yield (
            f"{request.num_gpus} devices on {where}; start it with `luthier launch`, strategy "
            f"{chosen.setting.way.words()}"
        )
        if request.num_gpus > each:
            rate = request.device.network / 1e9
            yield f"between hosts an adapter of {rate:,.1f} GB/s beside each device is assumed (`--network`)"
    for way, reason in answer.refused.items() if request.num_gpus == 1 else ():
        yield f"{way.removeprefix('ddp, ')}: not looked at: {reason}"
    if chosen.setting.offload != "none":
        if request.device.type == "cuda":
            count = answer.host.devices
            devices = "this device" if count == 1 else f"{count} of the devices"
            free = "" if chosen.host_available is None else f"; {gib(chosen.host_available)} are free here"
            yield f"host memory: {gib(answer.host.total)} of a host with {devices}{free}"
        yield _host_rates(answer)
    if answer.faster:
        yield f"faster, with the same result but for rounding: {answer.faster.change}: {answer.faster.effect}"
    if answer.runners_up and answer.fits:
        yield "other settings:"
    for other in answer.runners_up if answer.fits else ():
        yield f"  {other.candidate.setting.describe(request.sizes.shape.layers)}: {other.why}"
    if answer.fits:
        return
    yield (
        "nothing fits. Any one of these changes makes it fit, the smallest first:"
        if answer.remedies
        else ("nothing fits, and no single change helps: a smaller model, or method.name=qlora on several devices")
    )
    for remedy in answer.remedies:
        yield f"  {remedy.change}: {remedy.effect}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
