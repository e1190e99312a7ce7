"""One of several processes under torchrun: `python -m torch.distributed.run ... -m tests.online.worker FOLDER`.

Runs the cases named below, data and training, and writes what each came to, from every process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.pipeline.session import Session
from luthier.pipeline.stage_run import run_stage
from luthier.pipeline.stages import STAGES
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.console import set_quiet
from luthier.runtime.env import read_env
from luthier.runtime.errors import LuthierError
from luthier.train.distributed.group import Group, join
from tests.online.support import World
from tests.support.tiny import conversations, save_tiny

CODE = '''\
import json
import os
import signal

HERE, RANK = os.path.dirname(__file__), os.environ.get("RANK", "one")


def low(completion_ids, **columns):
    return [sum(token < 300 for token in ids) / len(ids) for ids in completion_ids]


def seen(prompts, completion_ids, trainer_state, **columns):
    """As `low`; what this process was asked goes into a file."""
    if trainer_state is not None:
        asked = [prompt[-1]["content"] for prompt in prompts]
        with open(f"{HERE}/seen-{RANK}.jsonl", "a") as file:
            file.write(json.dumps({"step": trainer_state.global_step, "asked": asked}) + "\\n")
    return low(completion_ids)


def once(name, trainer_state, rank):
    if trainer_state is None or trainer_state.global_step != 2 or RANK != rank or os.path.exists(f"{HERE}/{name}"):
        return False
    open(f"{HERE}/{name}", "w").close()
    return True


def stops(completion_ids, trainer_state, **columns):
    """As `low`; in the third step process 1 is asked to stop, once."""
    if once("stopped", trainer_state, "1"):
        os.kill(os.getpid(), signal.SIGINT)
    return low(completion_ids)


def breaks(completion_ids, trainer_state, **columns):
    """As `low`; in the third step process 1 raises, once."""
    if once("broke", trainer_state, "1"):
        raise ValueError("only here")
    return low(completion_ids)
'''
LORA = {"method": {"name": "lora", "r": 4}}


def make_world(folder: Path) -> World:
    """24 rows to train on, 5 held out, and the rewards above."""
    save_tiny(folder / "model")
    rows = [json.dumps(row) + "\n" for row in conversations(29)]
    (folder / "rows.jsonl").write_text("".join(rows[:24]))
    (folder / "held.jsonl").write_text("".join(rows[24:]))
    (folder / "rewards.py").write_text(CODE)
    return World(folder)


def full(world: World, run: Path, processes: int) -> Recipe:
    """An epoch of 24 prompts in 6 steps of 32 completions; 5 held-out prompts."""
    return world.recipe(
        run, rewards=[world.python("seen")], data={"validation": {"path": str(world.folder / "held.jsonl")}},
        train={"learning_rate": 1e-3, "per_device_train_batch_size": 16, "eval_steps": 3,
               "gradient_accumulation_steps": 2 // processes},
    )  # fmt: skip


def torn(world: World, run: Path, processes: int) -> Recipe:
    """A group of 8 completions is half of each process'; a reference, two iterations, adapters."""
    return world.recipe(
        run, **LORA, grpo={"beta": 0.02, "num_iterations": 2, "loss_type": "grpo", "scale_rewards": "batch"},
        train={"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 8 // processes},
    )  # fmt: skip


def stopping(world: World, run: Path, processes: int) -> Recipe:
    """Sampled for real; `stops` may stop it after step 3."""
    return world.recipe(
        run, **LORA, rewards=[world.python("stops")], grpo={"beta": 0.01},
        train={"save_steps": 2, "per_device_train_batch_size": 32 // processes},
    )  # fmt: skip


def judged(world: World, run: Path, processes: int) -> Recipe:
    """A judge behind JUDGE_URL, 1 dollar a request at most."""
    judge = {
        "base_url": os.environ["JUDGE_URL"], "model": "judge", "input_price": 1.0, "output_price": 1.0,
        "budget_usd": 1.0, "max_tokens": 64,
    }  # fmt: skip
    return world.recipe(
        run, **LORA, rewards=[{"name": "judge", "rubric": "Is it long?"}], grpo={"judge": judge},
        data={"validation": {"path": str(world.folder / "held.jsonl")}},
        train={"max_steps": 2, "eval_steps": 2, "per_device_train_batch_size": 16 // processes},
    )  # fmt: skip


Case = Callable[[World, Path, int], Recipe]
FORCED: dict[str, Case] = {"full": full, "torn": torn}
SAMPLED: dict[str, tuple[Case, str]] = {
    "halved": (stopping, "halved"), "resumed": (stopping, "halved"), "whole": (stopping, "whole"),
    "judged": (judged, "judged"),
}  # fmt: skip
"""Case and run folder, in this order: the first of them is stopped."""


@contextmanager
def forced(told: dict[str, Any] | None = None) -> Iterator[None]:
    """Completions depend on prompt, step and place in the group alone, not on the process that samples them."""
    from luthier.online.trainer import OnlineTrainer

    def complete(self: Any, prompt_ids: list[list[int]], images: Any, fields: Any, num_generations: int) -> Any:
        accelerator = self.accelerator
        if told is not None:
            told.update(wrapper=type(self.model_wrapped).__name__, processes=accelerator.num_processes)
        first, found = accelerator.process_index * len(prompt_ids), []
        for index, ids in enumerate(prompt_ids, start=first):
            draw = np.random.default_rng([self.state.global_step, index % num_generations, *ids])
            found.append(draw.integers(5, 600, size=int(draw.integers(1, 9))).tolist())
        return found, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineTrainer, "_generate_single_turn", complete)
        yield


def train_in(group: Group, recipe: Recipe) -> dict[str, Any]:
    """Data and training, as `pipeline/run.py` has them; what the training came to, or its error."""
    session = Session(recipe, RunFolder(Path(recipe.output_dir)))
    session.group = group
    group.from_main("folder", session.run.create)
    try:
        results = [run_stage(stage, session)[0].result for stage in STAGES if stage.name in ("data", "train")]
    except LuthierError as error:
        return {"code": error.problems[0].code, "message": error.problems[0].message}
    return results[-1]


def main(folder: Path) -> None:
    import torch.distributed as dist

    set_quiet(True)
    rank, facts = read_env().rank, {}
    world = World(folder)
    session = Session(full(world, folder / "none", 2), RunFolder(folder / "none"))
    with join(lambda: session.device):
        store = dist.distributed_c10d._get_default_store()

        def group(name: str) -> Group:
            return Group(rank=rank, size=2, store=dist.PrefixStore(name, store))

        for name, case in FORCED.items():
            told: dict[str, Any] = {}
            with forced(told):
                result = train_in(group(name), case(world, folder / name, 2))
            facts[name] = {"result": result, **told}
        for name, (case, run) in SAMPLED.items():
            facts[name] = {"result": train_in(group(name), case(world, folder / run, 2))}
            if name == "halved" and rank == 0:
                import shutil

                shutil.copytree(folder / "halved", folder / "kept")
            dist.barrier()
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
