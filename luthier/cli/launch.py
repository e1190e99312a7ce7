"""`luthier launch`: a recipe on several processes."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides, split_overrides
from luthier.cli.run import RestartOption, run_and_show

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


def launch(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    num_gpus: GpusOption = None,
    num_processes: ProcessesOption = None,
    train_only: TrainOption = False,
    nodes: NodesOption = None,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    accelerate_config: AccelerateOption = None,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe on several GPUs, or several processes of a CPU. Data are prepared once, before they start."""
    from pathlib import Path

    from luthier.launch.accelerate import Asked, with_accelerate
    from luthier.launch.processes import Nodes, choose_processes, launch_processes
    from luthier.pipeline.run import run_recipe
    from luthier.recipe.distributed_rules import require_groups
    from luthier.runtime.env import show_devices
    from luthier.runtime.errors import RecipeError

    if accelerate_config is not None:
        overrides = [*(overrides or []), f"distributed.accelerate_config={accelerate_config}"]
    loaded = load_with_overrides(recipe, overrides)
    asked = with_accelerate(
        loaded.recipe,
        Asked(num_gpus=num_gpus, num_processes=num_processes, nodes=nodes, node_rank=node_rank, rendezvous=rendezvous),
    )
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
    only = ("data", "train") if train_only else None
    if processes * nodes == 1:
        run_and_show(loaded, only=only, restart=restart, as_json=as_json)
        return
    if node_rank == 0:
        run_recipe(loaded.recipe, recipe_text=loaded.text, only=("data",))
    arguments = ["train" if train_only else "run", str(recipe), *split_overrides(overrides or [])]
    arguments += ["--restart"] * restart + ["--json"] * as_json
    launch_processes(
        arguments, processes=processes, cpu=cpu, run=Path(loaded.recipe.output_dir),
        nodes=Nodes(count=nodes, rank=node_rank, rendezvous=rendezvous or "localhost:0"),
    )  # fmt: skip
