"""One of four processes under torchrun: `python -m torch.distributed.run ... -m tests.train.sequence_worker FOLDER`.

Runs the cases named below, of processes that share sequences in groups of two or all together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.data.pack import pack
from luthier.runtime.console import set_quiet
from tests.fast.sharing import DoubleRotary
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, SPECTRUM, Data, Run, examples, train, whole
from tests.train.worker import unequal


def steps(folder: Path, world_size: int, method: dict[str, Any], *, shared: int, model: Any = None, **settings) -> Run:
    """13 rows in packs, 4 a step, the last step with one: a group has nothing then."""
    rows, shared = unequal(13), min(shared, world_size)
    packed = Data(rows, examples(5, seed=99, low=7, high=31), pack([len(row) for row in rows], 128))
    return train(
        folder, packed, method=method, max_steps=6, save_steps=3, eval_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=4 * shared // world_size, learning_rate=3e-3, shared=shared, model=model,
        **settings,
    )  # fmt: skip


def double() -> Any:
    """In fp64 with rotary tables in fp64: transformers' fp32 ones differ by a unit in the last place with the place of
    a token in the vector that they are computed in."""
    model = tiny_model().double()
    trunk = model.get_decoder()
    trunk.rotary_emb = DoubleRotary(trunk.rotary_emb)
    return model


CASES: dict[str, Callable[[Path, int], Run]] = {
    "two_groups_full": lambda folder, n: steps(folder, n, FULL, shared=2),
    "two_groups_lora_fsdp2": lambda folder, n: steps(folder, n, LORA, shared=2, strategy="fsdp2"),
    "two_groups_spectrum_fsdp2": lambda folder, n: steps(
        folder, n, SPECTRUM, shared=2, strategy="fsdp2", gradient_checkpointing=True
    ),
    "all_four_lora": lambda folder, n: steps(folder, n, LORA, shared=4, gradient_checkpointing=True),
    "double_full": lambda folder, n: steps(folder, n, FULL, shared=2, model=double(), optim="sgd"),
    "double_lora": lambda folder, n: steps(folder, n, LORA, shared=4, model=double(), optim="sgd"),
}  # fmt: skip


def run_all(folder: Path, world_size: int, rank: int) -> None:
    for name, case in CASES.items():
        run = case(folder / name, world_size)
        weights = {key: whole(p.detach()) for key, p in run.model.named_parameters() if p.requires_grad}
        save_file(weights, folder / f"{name}-{rank}.safetensors")
        facts = {**run.result.to_json(), "moved": run.moved, "world": torch.distributed.get_world_size()}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    from luthier.runtime.env import read_env

    torch.set_num_threads(1)
    set_quiet(True)
    run_all(Path(sys.argv[1]), read_env().world_size, read_env().rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
