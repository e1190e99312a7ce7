"""`luthier launch`: a recipe on several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides, split_overrides
from luthier.cli.run import RestartOption, run_and_show

GpusOption = Annotated[
    int | None, typer.Option("--num-gpus", min=1, help="Processes here, one for each GPU. Default: all GPUs.")
]
ProcessesOption = Annotated[int | None, typer.Option("--num-processes", min=1, help="Processes here, on the CPU.")]
TrainOption = Annotated[bool, typer.Option("--train-only", help="As `luthier train`: no scores, no merge.")]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Machines; start the same command on each.")]
NodeRankOption = Annotated[int, typer.Option("--node-rank", min=0, help="Number of this machine, from 0.")]
RendezvousOption = Annotated[
    str | None, typer.Option("--rendezvous", help="host:port of machine 0, reachable from all.", show_default=False)
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
    nodes: NodesOption = 1,
    node_rank: NodeRankOption = 0,
    rendezvous: RendezvousOption = None,
    hosts: HostsOption = None,
    print_for: PrintOption = None,
    output: OutputOption = None,
    settings: SettingsOption = None,
    gpu: GpuOption = None,
    max_restarts: RestartsOption = 0,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe on several GPUs, or several processes of a CPU. Data are prepared once, before they start."""
    from luthier.launch.processes import Nodes, choose_processes
    from luthier.launch.several import Launch
    from luthier.runtime.errors import RecipeError

    loaded = load_with_overrides(recipe, overrides)
    if print_for is not None:
        from luthier.cli.launch_print import Wanted, print_submission

        flags = ["--train-only"] * train_only + ["--restart"] * restart
        wanted = Wanted(
            kind=print_for, nodes=nodes, num_gpus=num_gpus, num_processes=num_processes, gpu=gpu,
            overrides=split_overrides(overrides or []), flags=flags,
        )  # fmt: skip
        print_submission(loaded, recipe, wanted, settings=settings, output=output, as_json=as_json)
        return
    _refuse_print_options(output=output, settings=settings, gpu=gpu)
    if hosts is not None:
        _on_hosts(
            hosts, recipe, split_overrides(overrides or []), single=nodes == 1 and node_rank == 0,
            rendezvous=rendezvous,
            options=[*(["--num-gpus", str(num_gpus)] if num_gpus is not None else []),
                     *(["--num-processes", str(num_processes)] if num_processes is not None else []),
                     *["--train-only"] * train_only, *["--restart"] * restart, *["--json"] * as_json,
                     *(["--max-restarts", str(max_restarts)] if max_restarts else [])],
        )  # fmt: skip
        return
    if node_rank >= nodes or (nodes > 1 and rendezvous is None):
        raise RecipeError(
            code="L103", message=f"machine {node_rank} of {nodes}, rendezvous {rendezvous or 'not given'}",
            hint="several machines need `--nodes N --node-rank 0..N-1 --rendezvous HOST:PORT`, the same port on each",
        )  # fmt: skip
    processes, cpu = choose_processes(num_gpus, num_processes)
    only = ("data", "train") if train_only else None
    if processes * nodes == 1:
        run_and_show(loaded, only=only, restart=restart, as_json=as_json)
        return
    arguments = ["train" if train_only else "run", str(recipe), *split_overrides(overrides or [])]
    arguments += ["--restart"] * restart + ["--json"] * as_json
    started = Launch(loaded=loaded, arguments=tuple(arguments), processes=processes, cpu=cpu, max_restarts=max_restarts)
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


def _on_hosts(
    hosts: str, recipe: Path, overrides: list[str], *, single: bool, rendezvous: str | None, options: list[str]
) -> None:
    """The same command on each host."""
    import sys

    from luthier.launch.ssh import hosts_of, run_on_hosts
    from luthier.runtime.env import for_other_hosts
    from luthier.runtime.errors import RecipeError

    names = hosts_of(hosts)
    if not single:
        raise RecipeError(
            code="L219", message="`--hosts` numbers the machines itself", hint="take `--nodes` and `--node-rank` out"
        )
    meet = rendezvous or f"{names[0].rpartition('@')[2]}:29500"
    command = [sys.executable, "-m", "luthier", "launch", str(recipe.absolute()), *overrides, *options]
    commands = {
        name: [*command, "--nodes", str(len(names)), "--node-rank", str(rank), "--rendezvous", meet]
        for rank, name in enumerate(names)
    }
    run_on_hosts(commands, folder=str(Path.cwd()), environment=for_other_hosts())
