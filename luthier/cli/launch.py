"""`luthier launch`: a recipe on several processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides, split_overrides
from luthier.cli.run import RestartOption, run_and_show

if TYPE_CHECKING:
    from luthier.launch.accelerate import Asked
    from luthier.recipe.load import LoadedRecipe

GpusOption = Annotated[
    int | None, typer.Option("--num-gpus", min=1, help="Processes here, one for each GPU. Default: all GPUs.")
]
ProcessesOption = Annotated[int | None, typer.Option("--num-processes", min=1, help="Processes here, on the CPU.")]
TrainOption = Annotated[bool, typer.Option("--train-only", help="As `luthier train`: no scores, no merge.")]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Machines; start the same command on each. Default: 1.")
]
NodeRankOption = Annotated[
    int | None, typer.Option("--node-rank", min=0, help="Number of this machine, from 0. Default: 0.")
]
RendezvousOption = Annotated[
    str | None, typer.Option("--rendezvous", help="host:port of machine 0, reachable from all.", show_default=False)
]
AccelerateOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate-config", help="YAML of accelerate: sets distributed.accelerate_config.", show_default=False
    ),
]

RestartsOption = Annotated[
    int, typer.Option("--max-restarts", min=0, help="Start all again after a failure, from the newest checkpoint.")
]
HostsOption = Annotated[
    str | None, typer.Option("--hosts", help="host0,host1: start it on each through ssh, machine 0 first.")
]
PrintOption = Annotated[
    str | None,
    typer.Option(
        "--print", metavar="CLUSTER", help="slurm, kubernetes or skypilot: print a submission file, run nothing."
    ),
]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Write what `--print` makes into this file.")]
SettingsOption = Annotated[
    Path | None, typer.Option("--settings", help="Of the cluster: YAML with the keys of `launch` of the service.")
]
GpuOption = Annotated[str | None, typer.Option("--gpu", help="`--print`: GPU of the machines, for instance H100.")]


def launch(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    num_gpus: GpusOption = None,
    num_processes: ProcessesOption = None,
    train_only: TrainOption = False,
    nodes: NodesOption = None,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    hosts: HostsOption = None,
    accelerate_config: AccelerateOption = None,
    print_for: PrintOption = None,
    output: OutputOption = None,
    settings: SettingsOption = None,
    gpu: GpuOption = None,
    max_restarts: RestartsOption = 0,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe on several GPUs, or several processes of a CPU. Data are prepared once, before they start."""
    from luthier.launch.accelerate import Asked, with_accelerate

    if accelerate_config is not None:
        overrides = [*(overrides or []), f"distributed.accelerate_config={accelerate_config}"]
    loaded = load_with_overrides(recipe, overrides)
    words, flags = split_overrides(overrides or []), ["--restart"] * restart
    given = Asked(
        num_gpus=num_gpus, num_processes=num_processes, nodes=nodes, node_rank=node_rank, rendezvous=rendezvous
    )
    asked = with_accelerate(loaded.recipe, given)
    if print_for is not None:
        from luthier.cli.launch_print import Wanted, print_submission

        _refuse_beside_print(hosts=hosts, node_rank=node_rank, rendezvous=rendezvous)
        wanted = Wanted(
            kind=print_for, nodes=asked.nodes or 1, num_gpus=asked.num_gpus, num_processes=asked.num_processes,
            gpu=gpu, overrides=words, flags=["--train-only"] * train_only + flags, max_restarts=max_restarts,
        )  # fmt: skip
        print_submission(loaded, recipe, wanted, settings=settings, output=output, as_json=as_json)
        return
    _refuse_print_options(output=output, settings=settings, gpu=gpu)
    flags += ["--json"] * as_json
    if hosts is not None:
        _on_hosts(hosts, recipe, words, given, flags=["--train-only"] * train_only + flags, max_restarts=max_restarts)
        return
    _start(loaded, recipe, words, asked, train_only=train_only, flags=flags, max_restarts=max_restarts)


def _start(
    loaded: LoadedRecipe, recipe: Path, overrides: list[str], asked: Asked, *, train_only: bool, flags: list[str],
    max_restarts: int,
) -> None:  # fmt: skip
    """On this machine, alone or as one of several."""
    from luthier.launch.processes import Nodes, choose_processes
    from luthier.launch.several import Launch
    from luthier.recipe.distributed_rules import require_groups
    from luthier.recipe.replicate_rules import require_copies
    from luthier.runtime.env import show_devices
    from luthier.runtime.errors import RecipeError

    nodes, node_rank, rendezvous = asked.nodes or 1, asked.node_rank or 0, asked.rendezvous
    if node_rank >= nodes or (nodes > 1 and rendezvous is None):
        raise RecipeError(
            code="L103", message=f"machine {node_rank} of {nodes}, rendezvous {rendezvous or 'not given'}",
            hint="several machines need `--nodes N --node-rank 0..N-1 --rendezvous HOST:PORT`, the same port on each",
        )  # fmt: skip
    if asked.visible_devices is not None:
        show_devices(asked.visible_devices)
    processes, cpu = choose_processes(asked.num_gpus, asked.num_processes)
    require_groups(loaded.recipe.distributed.sequence_parallel_size, processes * nodes)
    require_copies(loaded.recipe.distributed.dp_replicate_size, processes * nodes)
    if processes * nodes == 1 and not max_restarts:
        only = ("data", "train") if train_only else None
        run_and_show(loaded, only=only, restart="--restart" in flags, as_json="--json" in flags)
        return
    started = Launch(
        loaded=loaded, arguments=("train" if train_only else "run", str(recipe), *overrides, *flags),
        processes=processes, cpu=cpu, max_restarts=max_restarts,
    )  # fmt: skip
    if nodes == 1:
        started.here()
    else:
        started.one_of(Nodes(count=nodes, rank=node_rank, rendezvous=rendezvous or ""))


def _refuse_print_options(**given: object) -> None:
    """They say nothing to a run that starts here."""
    from luthier.runtime.errors import RecipeError

    unused = [f"`--{name}`" for name, value in given.items() if value is not None]
    if unused:
        raise RecipeError(
            code="L210", message=f"{', '.join(unused)} without `--print`", hint="add `--print slurm`, or take it out"
        )


def _refuse_beside_print(**given: object) -> None:
    """The submission file finds hosts, numbers and machine 0 itself."""
    from luthier.runtime.errors import RecipeError

    unused = [f"`--{name.replace('_', '-')}`" for name, value in given.items() if value is not None]
    if unused:
        raise RecipeError(
            code="L210", message=f"{', '.join(unused)} beside `--print`: the cluster gives the machines their numbers",
            hint="take it out; `--nodes N` says how many",
        )  # fmt: skip


def _on_hosts(
    hosts: str, recipe: Path, overrides: list[str], given: Asked, *, flags: list[str], max_restarts: int
) -> None:
    """The same command on each host."""
    import sys

    from luthier.launch.ssh import hosts_of, run_on_hosts
    from luthier.runtime.env import for_other_hosts
    from luthier.runtime.errors import RecipeError

    names = hosts_of(hosts)
    if given.nodes is not None or given.node_rank is not None:
        raise RecipeError(
            code="L219", message="`--hosts` numbers the machines itself", hint="take `--nodes` and `--node-rank` out"
        )
    options = {"--num-gpus": given.num_gpus, "--num-processes": given.num_processes,
               "--max-restarts": max_restarts or None}  # fmt: skip
    named = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    meet = given.rendezvous or f"{names[0].rpartition('@')[2]}:29500"
    command = [sys.executable, "-m", "luthier", "launch", str(recipe.absolute()), *overrides, *named, *flags]
    commands = {
        name: [*command, "--nodes", str(len(names)), "--node-rank", str(rank), "--rendezvous", meet]
        for rank, name in enumerate(names)
    }
    run_on_hosts(commands, folder=str(Path.cwd()), environment=for_other_hosts())
