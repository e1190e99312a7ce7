"""What `distributed.offload` moves in this run, said before anything is loaded; refused where it would do nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from luthier.plan.states import OWN_UPDATES
from luthier.recipe.deepspeed_keys import ZERO
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError
from luthier.runtime.host_memory import free_memory_bytes
from luthier.train.predicted import PLAN_FILE

if TYPE_CHECKING:
    from luthier.pipeline.session import Session

__all__ = ["check_offload"]

GIB = 2**30


def check_offload(session: Session) -> None:
    """Say what is moved; called by all processes together.

    Raises:
        RecipeError: L241: the run has one process and offloads more than the optimizer, or several that copy the model.
            L310: this host has less memory than its plan counts on.
    """
    section, alone = session.resolved.recipe.distributed, session.group.size == 1
    if section.offload == "none":
        return
    if (alone and section.offload == "optimizer") or (not alone and section.strategy != "ddp"):
        session.group.from_main("host memory", lambda: _require_memory(session))
        note(f"  offload {section.offload}: {_updates(session)}")
        return
    why = "this run has one process" if alone else "`distributed.strategy` is ddp"
    hint = "`luthier launch` with several processes and `distributed.strategy: fsdp2`"
    raise RecipeError(
        code="L241", message=f"`distributed.offload: {section.offload}` needs a model in shards, and {why}",
        hint=f"offload optimizer, or {hint}" if alone else f"{hint}, or offload none",
    )  # fmt: skip


def _updates(session: Session) -> str:
    """Who updates what is in host memory, in words."""
    import torch

    from luthier.fast.kernels import backend

    recipe = session.resolved.recipe
    deepspeed = recipe.distributed.strategy in ZERO and session.group.size > 1
    if recipe.method.name in ("lora", "qlora") and not deepspeed:
        return "shards of the base come from host memory for their pass; adapters stay on the device"
    own = recipe.train.optim in OWN_UPDATES and backend(session.device.torch_device)[0] == "triton"
    if own and not deepspeed:
        return "masters and moments are in host memory, and go through the GPU for each update"
    return f"the CPU updates with {torch.get_num_threads()} threads a process"


def _require_memory(session: Session) -> None:
    """On a GPU: states, shards, and what a checkpoint needs, before the kernel ends the process in the middle of it."""
    file = session.run.path / PLAN_FILE
    if session.device.type != "cuda" or not file.is_file():
        return
    plan = json.loads(file.read_text("utf-8"))["host"]
    needed, free = plan["total"] - plan["parts"]["processes"], free_memory_bytes()
    if needed > free:
        raise RecipeError(
            code="L310", message=f"`distributed.offload: {session.resolved.recipe.distributed.offload}` needs "
            f"{needed / GIB:,.1f} GiB of host memory here by the plan, and {free / GIB:,.1f} GiB are free",
            hint="`train.optim: adamw_8bit` halves masters and states; `method.name: lora` without "
            "`distributed.offload` needs none; or a host with more",
        )  # fmt: skip
