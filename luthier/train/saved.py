"""The tensors of a checkpoint that process 0 wrote whole, read when they are asked for.

Where several processes go on from it, each holds what it keeps and one tensor besides, never the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["SavedTensors"]

MAPPED_BYTES = 64 << 20
"""Of a file, before it is opened anew: pages that were read count as memory of the process."""


class SavedTensors(Mapping[str, Tensor]):
    """One group (`trainable`, `optimizer`) of a verified checkpoint; every access reads the file."""

    def __init__(self, path: Path, group: str) -> None:
        from safetensors import safe_open

        self._files: dict[str, Path] = {}
        self.shapes: dict[str, torch.Size] = {}
        """Of the tensors, in the order of the files."""
        for file in sorted(path.glob(f"{group}-*.safetensors")):
            with safe_open(file, framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118 - no dictionary
                    self._files[name] = file
                    self.shapes[name] = torch.Size(stream.get_slice(name).get_shape())
        self._open: tuple[Path, Any] | None = None
        self._read = 0

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in host memory, a copy of its own."""
        return self._copied(self._stream(name).get_tensor(name))

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows `first` to before `last` of a tensor, a copy of its own."""
        return self._copied(self._stream(name).get_slice(name)[first:last])

    def __contains__(self, name: object) -> bool:
        """Without reading it."""
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _stream(self, name: str) -> Any:
        from safetensors import safe_open

        file = self._files[name]
        if self._open is None or self._open[0] != file or self._read > MAPPED_BYTES:
            self._open, self._read = (file, safe_open(file, framework="pt")), 0
        return self._open[1]

    def _copied(self, view: Tensor) -> Tensor:
        self._read += view.nbytes
        return view.clone()
