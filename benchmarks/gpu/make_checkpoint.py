"""A sharded safetensors checkpoint of a named shape with random weights, as fast as the disk takes it.

    python3 benchmarks/gpu/make_checkpoint.py llama70b /tmp/llama70b            # 141 GB in 29 files
    python3 benchmarks/gpu/make_checkpoint.py llama8b /tmp/llama8b --layers 4

Matrices are pieces of one block of normal numbers (0, 0.02), each from another place of it, so no two are equal; norms
are 1. The model loads and trains; it writes nonsense. Nothing larger than the block is in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.models import SHAPES, make_config  # noqa: E402

LLAMA70B = ("llama", {
    **SHAPES["llama8b"][1], "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
})  # fmt: skip
BLOCK = 64 << 20
"""Numbers in the block, less one prime step for each tensor."""
FILE_BYTES = 5 * 10**9


def tensors(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the architecture's parameters, shared ones once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def files(shapes: list[tuple[str, tuple[int, ...]]], size: int) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Groups of tensors of at most FILE_BYTES."""
    group: list[tuple[str, tuple[int, ...]]] = []
    held = 0
    for name, shape in shapes:
        bytes_ = size * math.prod(shape)
        if group and held + bytes_ > FILE_BYTES:
            yield group
            group, held = [], 0
        group.append((name, shape))
        held += bytes_
    yield group


def write(stream: BinaryIO, group: list[tuple[str, tuple[int, ...]]], noise: memoryview, one: bytes, kind: str) -> None:
    """One safetensors file: length, JSON header, data (https://github.com/huggingface/safetensors#format)."""
    size, start = len(one), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape in group:
        end = start + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in group:
        left = size * math.prod(shape)
        if "norm" in name:
            stream.write(one * (left // size))
            continue
        place = sum(name.encode()) * 7919 * size % (len(noise) // 2)
        while left:
            piece = noise[place : place + left]
            stream.write(piece)
            left -= len(piece)
            place = (place * 31 + 104729 * size) % (len(noise) // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[*SHAPES, "llama70b"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    options = parser.parse_args()
    import torch

    began = time.perf_counter()
    kind, settings = LLAMA70B if options.shape == "llama70b" else SHAPES[options.shape]
    config = make_config(kind, {**settings, **({"num_hidden_layers": options.layers} if options.layers else {})})
    dtype = getattr(torch, options.dtype)
    config.dtype, config.architectures = options.dtype, ["LlamaForCausalLM" if kind == "llama" else "Qwen2ForCausalLM"]
    shapes = tensors(config)
    numbers = min(BLOCK, max(1 << 20, math.prod(max(shapes, key=lambda pair: math.prod(pair[1]))[1])))
    noise = torch.randn(numbers, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    view = memoryview(noise.view(torch.uint8).numpy()).cast("B")
    one = torch.ones(1, dtype=dtype).view(torch.uint8).numpy().tobytes()
    options.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(options.folder)
    groups = list(files(shapes, len(one)))
    where = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        with (options.folder / name).open("wb") as stream:
            write(stream, group, view, one, {"bfloat16": "BF16", "float32": "F32"}[options.dtype])
        where |= {tensor: name for tensor, _ in group}
    total = len(one) * sum(math.prod(shape) for _, shape in shapes)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (options.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    seconds = time.perf_counter() - began
    print(f"{total / 1e9:.1f} GB in {len(groups)} files, {seconds:.0f} s, {total / seconds / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
