"""Rows of one batch, each with its own adapter (or none) on one shared base.

The linear layers that an adapter changes are wrapped. A wrapped layer computes the base's product
once for all rows. Then come two thin products with the factors of all adapters in the batch side by
side, and between them each row keeps only the columns of its own adapter:

    y = W x  +  [B1 B2 ...] (keep(row) * ([A1; A2; ...] x))

So a step costs two thin products a layer however the rows are mixed, nothing is gathered or copied
per row, and rows without an adapter add zeros. The factors are put side by side when the set of
adapters in a batch changes, not at every step.

Not every adapter has this form: DoRA, fully trained modules and trained token rows need a model of
their own (`shareable` says why).

Legend: R rows, T tokens, K sum of the ranks of the adapters in the batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.model.attach import check_adapter_files, check_same_base
from luthier.model.identity import verify_record
from luthier.model.weights import non_finite_tensors, refuse_non_finite, tensors_of
from luthier.runtime.errors import RunFailed

__all__ = ["Adapter", "AdapterBank", "load_adapter", "shareable"]

# An adapter that no row has had for so many forwards leaves the packs.
STALE_FORWARDS = 256
_PREFIX = "base_model.model."
# Settings of PEFT whose result is not the base's product plus a scaled thin product.
_OWN_MODEL = ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "rank_pattern",
              "alpha_pattern", "megatron_config", "exclude_modules", "target_parameters", "lora_bias", "use_qalora",
              "alora_invocation_tokens", "arrow_config")  # fmt: skip


@dataclass(eq=False, slots=True)
class Adapter:
    """Factors of every adapted module: A (r, in), and B (out, r) times the adapter's scale."""

    name: str
    rank: int
    factors: dict[str, tuple[Tensor, Tensor]]


def shareable(folder: Path) -> str | None:
    """Why an adapter cannot share its base with others; None if it can."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    found = [key for key in _OWN_MODEL if config.get(key)]
    if config.get("bias", "none") != "none":
        found.append("bias")
    if found:
        return f"it uses {', '.join(found)}"
    names = [name for name, _ in tensors_of([folder / "adapter_model.safetensors"])]
    other = [name for name in names if not name.endswith((".lora_A.weight", ".lora_B.weight")) or ".experts." in name]
    return f"it holds {other[0]}" if other else None


def load_adapter(folder: Path, model: Any, name: str) -> Adapter:
    """Read an adapter for a base that is loaded already.

    Raises:
        RecipeError, EnvironmentProblem: no adapter folder, or a damaged one.
        RunFailed: files were changed, it belongs to another base, or a tensor does not fit.
    """
    check_adapter_files(folder)
    check_same_base(verify_record(folder), model, folder)
    tensors = dict(tensors_of([folder / "adapter_model.safetensors"]))
    refuse_non_finite(non_finite_tensors(tensors), where=str(folder))
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    modules = dict(model.named_modules())
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    paths = sorted({key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors})
    for path in paths:
        a, b = (tensors.pop(f"{_PREFIX}{path}.lora_{side}.weight", None) for side in "AB")
        base = modules.get(path)
        base = base.base if isinstance(base, RowAdapters) else base
        if a is None or b is None or base is None or (a.shape[1], b.shape[0]) != _sizes(base):
            raise RunFailed(
                code="M324", message=f"the adapter in {folder} does not fit this base at {path}",
                hint="name the base it was trained on, with the same `model.new_tokens`",
            )  # fmt: skip
        rank = a.shape[0]
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        factors[path] = (a.to(model.device, model.dtype), (b * scale).to(model.device, model.dtype))
    return Adapter(name, max(a.shape[0] for a, _ in factors.values()), factors)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; (0, 0) for other modules."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)
    if type(module).__name__ == "Conv1D":
        return int(module.nx), int(module.nf)
    return 0, 0


class RowAdapters(nn.Module):  # type: ignore[misc]
    """A linear layer, and the thin products of the adapters in the batch."""

    def __init__(self, base: nn.Module, path: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base, self.path = base, path
        self._bank = [bank]  # in a list: the bank is no submodule

    @property
    def weight(self) -> Any:
        """The base's weight: some models look at its type."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, in) -> (R, T, out)."""
        y: Tensor = self.base(x)
        bank = self._bank[0]
        pack = bank.packs.get(self.path) if bank.wanted else None
        if pack is None:
            return y
        down, up, owners = pack
        h = nn.functional.linear(x, down)
        if bank.mixed:
            h = h * (owners == bank.owner_of_row[: x.shape[0]]).to(h.dtype)
        return y + nn.functional.linear(h, up)


class AdapterBank:
    """The adapters of the batch at hand, and the wrapped layers of one base."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.packs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        """Module -> (K, in), (out, K), and (K,) the number of the adapter each column belongs to."""
        self.wanted = False
        """Whether any row of the batch has an adapter."""
        self.mixed = False
        self.owner_of_row: Tensor
        """(R, 1, 1), or (1, N, 1) for tokens of rows behind each other."""
        self.version = 0
        """Counts the packs made."""
        self._rooms: dict[int, Tensor] = {}
        self._packed: tuple[Adapter, ...] = ()
        self._age: dict[Adapter, int] = {}
        """Forwards since an adapter of the packs was last wanted."""

    def use(self, rows: Sequence[Adapter | None], *, counts: Sequence[int] | None = None, room: int = 0) -> None:
        """Say which adapter each row of the next forward has.

        Args:
            rows: Its rows.
            counts: New tokens of each, if they stand behind each other in one sequence.
            room: Rows that a recorded step takes: the numbers go to a tensor that stays where it is.
        """
        wanted = {adapter for adapter in rows if adapter is not None}
        self.wanted = bool(wanted)
        if not wanted:
            return
        self._age = {adapter: 0 if adapter in wanted else age + 1 for adapter, age in self._age.items()}
        missing = wanted - self._age.keys()
        stale = {adapter for adapter, age in self._age.items() if age > STALE_FORWARDS}
        if missing or stale:
            self._age = {a: age for a, age in self._age.items() if a not in stale} | dict.fromkeys(missing, 0)
            self._pack(tuple(self._age))
        numbers = {adapter: number for number, adapter in enumerate(self._packed)}
        self.mixed = len(self._packed) > 1 or None in rows
        owners = [-1 if adapter is None else numbers[adapter] for adapter in rows]
        device = self.model.device
        if counts is not None:
            owners = [owner for owner, count in zip(owners, counts, strict=True) for _ in range(count)]
            self.owner_of_row = torch.tensor(owners, device=device)[None, :, None]
        elif room:
            self.mixed = True  # what is recorded is right for every mixture
            if room not in self._rooms:
                self._rooms[room] = torch.full((room, 1, 1), -1, dtype=torch.long, device=device)
            self.owner_of_row = self._rooms[room]
            self.owner_of_row.copy_(torch.tensor([*owners, *[-1] * (room - len(owners))])[:, None, None])
        else:
            self.owner_of_row = torch.tensor(owners, device=device)[:, None, None]

    def _pack(self, adapters: tuple[Adapter, ...]) -> None:
        self._packed, self.packs = adapters, {}
        self.version += 1
        for path in sorted({path for adapter in adapters for path in adapter.factors}):
            self._wrap(path)
            held = [(number, a.factors[path]) for number, a in enumerate(adapters) if path in a.factors]
            owners = [number for number, (down, _) in held for _ in range(down.shape[0])]
            self.packs[path] = (
                torch.cat([down for _, (down, _) in held]),
                torch.cat([up for _, (_, up) in held], dim=1),
                torch.tensor(owners, device=self.model.device),
            )

    def _wrap(self, path: str) -> None:
        parent_path, _, name = path.rpartition(".")
        parent = self.model.get_submodule(parent_path)
        if not isinstance(getattr(parent, name), RowAdapters):
            setattr(parent, name, RowAdapters(getattr(parent, name), path, self))
