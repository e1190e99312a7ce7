"""AdamW with moments in 8 bits over masters and parameters at once, on any device: `fast/kernels/adamw8.py`.

State of a tensor of `SMALLEST` elements or more: `step`, `state1`, `absmax1`, `state2`, `absmax2`. Smaller ones keep
fp32 moments under torch's names (`step`, `exp_avg`, `exp_avg_sq`), as bitsandbytes does: norms and biases are few
bytes and many of them are one block.

Of shards, which tensors have 8-bit moments is decided by the whole tensor (`ShardedWeights.in_8_bits`): those whose
shards are whole blocks, so that blocks, and with them all values, are those of one process.

State that bitsandbytes' AdamW8bit wrote is taken over: its moments are decoded by its own map and rounded to ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from luthier.fast.kernels import maps8
from luthier.fast.kernels.adamw8 import adamw8_, moments8
from luthier.train.master_adamw import MOMENTS, Kernel, MasterAdamW

__all__ = ["CODES", "SMALLEST", "AdamW8", "as_codes", "decoded"]

SMALLEST = 4096
"""Elements from which moments are in 8 bits."""
CODES = ("state1", "absmax1", "state2", "absmax2")


class AdamW8(MasterAdamW):
    """Groups and rates as torch.optim.AdamW's; `step_with` as `MasterAdamW`'s, and `step` on tensors' own gradients."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, in_8_bits: Collection[Tensor] | None = None, **settings: Any
    ) -> None:
        """`in_8_bits`: the tensors whose moments are in 8 bits; None: those of `SMALLEST` elements or more."""
        self._in_8_bits = None if in_8_bits is None else {id(tensor) for tensor in in_8_bits}
        super().__init__(groups, **settings)

    def _small(self, tensor: Tensor) -> bool:
        return tensor.numel() < SMALLEST if self._in_8_bits is None else id(tensor) not in self._in_8_bits

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step with the gradient that each tensor holds; tensors without one are passed over."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors = list(chain.from_iterable(group["params"] for group in self.param_groups))
        pairs = [(tensor, tensor.grad) for tensor in tensors if tensor.grad is not None]
        self.step_with(pairs, {tensor: tensor for tensor, _ in pairs}, 1.0)
        return loss

    def _kernel(self, tensor: Tensor) -> tuple[Kernel, tuple[str, ...]]:
        return super()._kernel(tensor) if self._small(tensor) else (adamw8_, CODES)

    def _fresh(self, tensor: Tensor) -> dict[str, Tensor]:
        return super()._fresh(tensor) if self._small(tensor) else moments8(tensor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but codes stay bytes and scales fp32, whatever the dtype of the tensors is."""
        super().load_state_dict({**state_dict, "state": {}})
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, tensor in zip(saved, own, strict=True):
            if number in state_dict["state"]:
                expected = MOMENTS if self._small(tensor) else CODES
                self.state[tensor] = _placed(state_dict["state"][number], tensor, expected)


def decoded(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both moments in fp32; `as_codes` gives back exactly the codes they came from."""
    return {
        name: decode(moments[f"state{number}"], moments[f"absmax{number}"].reshape(-1))
        for name, number, decode in zip(MOMENTS, "12", (maps8.decode_signed, maps8.decode_unsigned), strict=True)
    }


def as_codes(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both moments in 8 bits, from fp32."""
    found: dict[str, Tensor] = {}
    for name, number, encode in zip(MOMENTS, "12", (maps8.encode_signed, maps8.encode_unsigned), strict=True):
        found[f"state{number}"], found[f"absmax{number}"] = encode(moments[name])
    return found


def _placed(state: Mapping[str, Any], tensor: Tensor, expected: Sequence[str]) -> dict[str, Tensor]:
    """Saved state of a tensor on its device, bitsandbytes' in our form. Counters live in host memory."""
    step = torch.as_tensor(state["step"], dtype=torch.float32).cpu()
    moments = {key: value.to(tensor.device) for key, value in state.items() if isinstance(value, Tensor)}
    moments.pop("step", None)
    if "qmap1" in moments:
        moments = _recoded(moments, tensor)
    elif "absmax1" in moments:
        moments |= {name: moments[name].reshape(-1) for name in ("absmax1", "absmax2")}
    elif "state1" in moments:
        moments = {"exp_avg": moments["state1"].view(tensor.shape), "exp_avg_sq": moments["state2"].view(tensor.shape)}
    if set(moments) == set(MOMENTS) and expected == CODES:  # of shards, which are cut out of whole moments
        moments = as_codes(moments)
    elif set(moments) == set(CODES) and expected == MOMENTS:
        moments = decoded(moments)
    assert set(moments) == set(expected), f"state of another optimizer: {sorted(moments)}"
    return {"step": step, **moments}


def _recoded(theirs: Mapping[str, Tensor], tensor: Tensor) -> dict[str, Tensor]:
    """bitsandbytes' blocks of 256 codes, of which each names an entry of a table, in our form."""
    found: dict[str, Tensor] = {}
    for name, encode in (("1", maps8.encode_signed), ("2", maps8.encode_unsigned)):
        table, codes, largest = theirs[f"qmap{name}"], theirs[f"state{name}"], theirs[f"absmax{name}"]
        value = table.float()[codes.reshape(-1).long()]
        value *= largest.float().repeat_interleave(maps8.BLOCK)[: value.numel()]
        found[f"state{name}"], found[f"absmax{name}"] = encode(value.view(tensor.shape))
    return found
