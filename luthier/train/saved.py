"""The tensors of a checkpoint, whole or in shards, read when they are asked for.

Whoever goes on from it holds what it keeps and one tensor besides, never the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.runtime.errors import RunFailed

__all__ = ["SavedTensors", "numbers_of"]

MAPPED_BYTES = 64 << 20
"""Of files, before they are opened anew: pages that were read count as memory of the process."""
OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
"""Where torch's distributed checkpoint says in a file which rows a part is of (`_hf_utils.py`)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a tensor, and where they are; a number without rows counts as one."""

    first: int
    last: int
    file: Path
    key: str


class SavedTensors(Mapping[str, Tensor]):
    """One group (`trainable`, `optimizer`) of a verified checkpoint; every access reads the files.

    Raises:
        RunFailed: rows of a tensor are in no file, or in two.
    """

    def __init__(self, path: Path, group: str) -> None:
        self._parts: dict[str, list[_Part]] = {}
        self.shapes: dict[str, torch.Size] = {}
        """Of the tensors, in the order of the files."""
        for file in sorted(path.glob(f"{group}-*.safetensors")):
            self._list(file, prefix="")
        for file in sorted(path.glob("shard-*.safetensors")):
            self._list(file, prefix=f"{group}/")
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: (part.first, part.last))
            ends = [0, *(part.last for part in parts)]
            if any(part.first != end for part, end in zip(parts, ends, strict=False)):
                rows = ", ".join(f"{part.first} to {part.last}" for part in parts)
                raise RunFailed(
                    code="L316", message=f"{path.name}: the parts of `{name}` do not make a tensor: rows {rows}",
                    hint="go on from an older checkpoint: remove this folder",
                )  # fmt: skip
        self._open: dict[Path, Any] = {}
        self._read = 0

    def _list(self, file: Path, *, prefix: str) -> None:
        import json

        from safetensors import safe_open

        with safe_open(file, framework="pt") as stream:
            places = json.loads((stream.metadata() or {}).get(OFFSETS[0], "{}"))
            for key in stream.keys():  # noqa: SIM118 - no dictionary
                if not key.startswith(prefix):
                    continue
                name, shape = key.removeprefix(prefix), stream.get_slice(key).get_shape()
                first = places[key][OFFSETS[1]][0] if shape and key in places else 0
                rows = shape[0] if shape else 1
                parts = self._parts.setdefault(name, [])
                if rows or not parts:
                    parts[:] = [part for part in parts if part.last > part.first]
                    parts.append(_Part(first, first + rows, file, key))
                last = max(part.last for part in parts)
                self.shapes[name] = torch.Size([last, *shape[1:]] if shape else [])

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in host memory, a copy of its own."""
        parts = self._parts[name]
        if len(parts) == 1:
            return self._copied(self._stream(parts[0].file).get_tensor(parts[0].key))
        return self.rows(name, 0, self.shapes[name][0])

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows `first` to before `last` of a tensor, a copy of its own; of other parts nothing is read."""
        parts = [part for part in self._parts[name] if part.first < last and first < part.last]
        if len(parts) <= 1:
            part = parts[0] if parts else self._parts[name][0]
            cut = slice(first - part.first, last - part.first) if parts else slice(0, 0)
            return self._copied(self._slice(part)[cut])
        found: Tensor | None = None
        for part in parts:
            begin, end = max(first, part.first), min(last, part.last)
            piece = self._slice(part)[begin - part.first : end - part.first]
            if found is None:
                found = torch.empty((last - first, *self.shapes[name][1:]), dtype=piece.dtype)
            found[begin - first : end - first] = piece
            self._read += piece.nbytes
        assert found is not None
        return found

    def numbers(self, name: str, first: int, last: int) -> Tensor:
        """Numbers `first` to before `last` of a tensor with its rows end to end; only their rows are read."""
        shape = self.shapes[name]
        if not shape:
            return self[name].reshape(1)[first:last]
        width = max(shape[1:].numel(), 1)
        begin, end = first // width, -(-last // width)
        return self.rows(name, begin, end).flatten()[first - begin * width : last - begin * width]

    def __contains__(self, name: object) -> bool:
        """Without reading it."""
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _slice(self, part: _Part) -> Any:
        return self._stream(part.file).get_slice(part.key)

    def _stream(self, file: Path) -> Any:
        from safetensors import safe_open

        if self._read > MAPPED_BYTES:
            self._open, self._read = {}, 0
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]

    def _copied(self, view: Tensor) -> Tensor:
        self._read += view.nbytes
        return view.clone()


def numbers_of(tensors: Mapping[str, Tensor], name: str, first: int, last: int) -> Tensor:
    """Numbers `first` to before `last` of a tensor with its rows end to end, read alone where they can be."""
    if isinstance(tensors, SavedTensors):
        return tensors.numbers(name, first, last)
    return tensors[name].flatten()[first:last]
