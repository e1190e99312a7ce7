"""A model under FSDP2: torch's `fully_shard` on each decoder layer, and a root around everything else.

    shard(model)              each layer a group of its own; embeddings, last norm and head belong to the root
    root(attach, model, ...)  whatever runs inside the root's forward finds those whole, and each layer while it runs
    Passes(root, module)      the engine's loss as a pass through the root

The engine's layer function stays: `fully_shard` gathers a layer's weights before its forward and its backward, and the
function reads them from the modules then (`fast/decoder/bases.py: Gathered`). Adapters are small and stay whole on
every process (`ignored_params`), with what is trained beside them (`modules_to_save`, rows of new tokens); their
gradients are averaged as without sharding.

torch.distributed.fsdp, fully_shard: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier.fast.decoder.fp8_shards import pack_fp8
from luthier.fast.loss import inner_model
from luthier.fast.settings import FrozenBase
from luthier.model.hollow import values_of
from luthier.model.packed import pack_linears
from luthier.runtime.errors import RecipeError
from luthier.train.distributed.fill import empty, fill
from luthier.train.distributed.mesh import make_mesh
from luthier.train.distributed.roll_call import RollCall

__all__ = ["Passes", "Root", "kept_whole_line", "reshard", "shard"]


class Root(nn.Module):  # type: ignore[misc]
    """Calls what it is given, inside its own forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`run(*args, **kwargs)` with the root's own weights whole."""
        return run(*args, **kwargs)


class Passes(nn.Module):  # type: ignore[misc]
    """Passes of `module` through the root; what a Trainer calls its wrapper."""

    def __init__(self, root: nn.Module, module: Callable[..., Any]) -> None:
        super().__init__()
        self.root, self.module = root, module
        self.roll = RollCall(root) if RollCall.possible(root) else None
        """Lets all leave a pass that one cannot finish; None with a torch that cannot begin it again."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's."""
        return self.run(self.module, *args, **kwargs)

    def run(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`action(*args, **kwargs)`, which is a pass of all processes, with the weights whole where it needs them."""
        with warnings.catch_warnings():
            # A layer returns (1, T, d), a view of (T, d). Nothing writes into it in place, which torch warns of.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
            result = self.root(action, *args, **kwargs)
        if not torch.is_grad_enabled():
            reshard(self.root)  # no backward pass will: weights would stay whole beside their shards
        return result


def reshard(root: nn.Module) -> None:
    """Free what is whole now, of every layer too: with `reshard_after_forward: false` layers stay whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard(
    model: nn.Module, device: torch.device, *, copies: int = 1, reshard_after_forward: bool = True,
    to_host: bool = False, frozen_base: FrozenBase = "as_loaded", bring: Callable[[nn.Module], None] | None = None,
) -> nn.Module:  # fmt: skip
    """Shard `model` over all processes, in place; returns the root that its passes go through. With `copies` there are
    so many of it, each in shards (`mesh.py`), and gradients are averaged over all of them.

    Frozen and fully trained weights are sharded on their first axis; adapters are whole everywhere. A model without
    values (`model/hollow.py`) gets its shards from the files; weights that are not on `device` yet come to it layer by
    layer. Gradients are averaged in fp32. `to_host`: shards and their gradients live in host memory (torch's
    CPUOffloadPolicy) and come to the device for the passes of their layer.

    A 4-bit matrix is a vector of its packed bytes, of which each process holds a part (`model/packed.py`); one that
    waits in host memory to be quantised is quantised here, on the device. With `frozen_base: dequantized` its unpacked
    values are sharded instead; with `fp8` the 8-bit copies of the layers' matrices (`fast/decoder/fp8_shards.py`).
    `bring` gives each layer's frozen parameters their values right before they are packed and sharded: a process never
    holds more than one whole layer.

    Raises:
        RecipeError: a model without a list of decoder layers; processes that cannot hold so many copies.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = make_mesh(device.type, copies)
    base = inner_model(model)
    layers = list(getattr(base.get_decoder(), "layers", ()))
    if not layers:
        raise RecipeError(
            code="L111", message=f"`distributed.strategy: fsdp2` cannot shard {type(base).__name__}: it has no list of "
            "decoder layers", hint="use `distributed.strategy: ddp`",
        )  # fmt: skip
    whole = _kept_whole(model, device)
    root = Root(model)
    # Gradients add up in fp32, or in fp64 where weights are.
    widest = torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if to_host else OffloadPolicy()
    settings: dict[str, Any] = {
        "mesh": mesh, "ignored_params": whole, "mp_policy": MixedPrecisionPolicy(reduce_dtype=widest),
        "offload_policy": offload,
    }  # fmt: skip
    values = values_of(model)
    places = [] if values is None else empty(model, values)
    for layer in layers:
        if bring is not None:
            bring(layer)
        stores = pack_fp8(layer, device) if frozen_base == "fp8" else []
        pack_linears(layer, device, keep_unpacked=frozen_base == "dequantized")
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **settings)
        for store in stores:
            store.remember_shard()
    pack_linears(root, device, keep_unpacked=frozen_base == "dequantized")
    fully_shard(root, **settings)
    if values is not None:
        fill(places, values, device, to_host=to_host)
    return root


def _kept_whole(model: nn.Module, device: torch.device) -> set[nn.Parameter]:
    """Trained parameters of a model with adapters, on the device; none where the weights themselves are trained."""
    if not hasattr(model, "peft_config"):
        return set()
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in found:
        parameter.data = parameter.data.to(device)
        torch.distributed.broadcast(parameter.data, src=0)  # equal already, unless hosts compute differently
    return set(found)


def kept_whole_line(model: nn.Module) -> str | None:
    """What of a model with adapters each process holds whole, and what that takes; None where all is sharded."""
    if not hasattr(model, "peft_config"):
        return None
    beside: dict[str, int] = {}
    adapters = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module, _, rest = name.partition(".modules_to_save.")
        if not rest:
            module, _, rest = name.partition(".token_adapter.")
        if rest:
            module = module.rpartition(".")[2]
            beside[module] = beside.get(module, 0) + parameter.nbytes
        else:
            adapters += parameter.nbytes
    named = [f"adapters ({adapters / 2**20:,.1f} MiB)"] if adapters else []
    named += [f"what is trained of {module} ({size / 2**20:,.1f} MiB)" for module, size in beside.items()]
    return f"whole on each process: {', '.join(named)}; a step exchanges their gradients once, not in each pass"
