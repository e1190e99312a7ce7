"""Refit the plan: measured rows of `benchmarks/gpu/bench.py` beside what the plan says, part by part.

    python tests/plan/fit.py results.jsonl            show
    python tests/plan/fit.py results.jsonl --write    keep them in luthier/plan/measured.jsonl as well
    python tests/plan/fit.py distributed.jsonl --device H200 --commit 1ad2e85 --write

Lines of `benchmarks/gpu/distributed_rank.py` name neither card nor commit: `--device` and `--commit` do.

Then change numbers in `luthier/plan/efficiency.py` until the rows agree, and run `python docs/generate.py`.
Rows of later files replace equal ones; of several equal rows in a file the last counts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from luthier.plan.measured import FILE, Row, measured_rows

NAMES = {
    "llama70b": "Llama-3.1-70B", "llama8b": "Llama-3.1-8B", "llama3b": "Llama-3.2-3B", "llama1b": "Llama-3.2-1B",
    "qwen05b": "Qwen2.5-0.5B", "smol135m": "SmolLM2-135M",
}  # fmt: skip


def row_of(result: dict[str, Any]) -> Row | None:
    """The row of one result; None for failures and for what is not the engine's own."""
    if "ms_step_median" not in result or result["impl"] != "fast" or result["model"] not in NAMES:
        return None
    base = {"none": "plain", "fp8": "fp8", "nf4": "nf4_dequantized" if result["dequantize_base"] else "nf4"}
    recomputed = result["recompute"] == "layer" or result["recompute_layers"]
    assert not recomputed, "`flop_tok_hardware` of recomputed layers does not tell the documents' squares"
    row = Row(
        device=result["device"].removeprefix("NVIDIA "), model=NAMES[result["model"]], method=result["method"],
        base=base[result["quantization"]], optim=result["optim"], tokens=result["tokens"], max_length=result["max_doc"],
        micro_batches=result["micro_batches"], recompute=result["recompute"], step_tokens=result["tokens_step"],
        supervised=result["sup_frac"], squares_per_token=0.0, flops_per_token=result["flop_tok"],
        peak_gib=result["peak_gib"], ms=result["ms_step_median"],
        replayed=_replayed(result), source=result.get("source") or result["commit"],
    )  # fmt: skip
    # Half a forward pass of attention: 2 x layers x width x squares / 2 (`benchmarks/gpu/flops.py`).
    half = result["flop_tok_hardware"] - result["flop_tok"]
    shape = row.sizes().shape
    backward = row.sizes().backward_layers / shape.layers
    return row.with_squares(round(half / (backward * shape.layers * shape.query), 1))


def distributed_row(result: dict[str, Any], device: str, commit: str) -> Row | None:
    """The row of a line of `distributed_rank.py` (whose documents are those of `benchmarks/gpu/documents.py`); None for
    failures, checks and what is not the engine's own."""
    if "ms_step_median" not in result or "gib_by_rank" not in result or result["model"] not in NAMES:
        return None
    if result["method"] == "spectrum30":  # ten layers of 32, which no recipe names
        return None
    from benchmarks.gpu.documents import make_documents

    world = result["processes"]
    steps = result["warmup"] + result["steps"]
    parts = result.get("sequence_parallel") or 1
    mean = result.get("mean_doc") or 300.0
    documents = make_documents(
        steps * result["tokens"] * world, max_doc=result["max_doc"], vocab_size=128_256, mean=mean
    )
    lengths = [len(one.ids) for one in documents]
    trained = sum(float(one.weights.sum()) for one in documents)
    kind = "fp8" if result.get("base") == "fp8" else "nf4" if result["method"] == "qlora" else "none"
    base = {"none": "plain", "nf4": "nf4", "fp8": "fp8"}[kind]
    return Row(
        device=device, model=NAMES[result["model"]], method=result["method"], base=base, optim=result["optim"],
        tokens=result["tokens"] // parts, max_length=result["max_doc"], micro_batches=result["micro_batches"],
        recompute=result["recompute"], step_tokens=round(result["tokens_step"] / world, 1),
        supervised=round(trained / sum(lengths), 3),
        squares_per_token=round(sum(n * n for n in lengths) / sum(lengths), 1),
        peak_gib=max(result["gib_by_rank"]), reserved_gib=max(result["reserved_gib_by_rank"]),
        ms=result["ms_step_median"], replayed=False, source=commit, world=world, strategy=result["strategy"],
        reshard=not result["keep_gathered"],
        offload=result.get("offload") or "none", sequence_parallel=parts,
        keep_attention=bool(result.get("keep_attention")),
    )  # fmt: skip


def _replayed(result: dict[str, Any]) -> bool:
    """By the engine's report, which names the largest batch."""
    found = [re.search(r"CUDA graphs on batches of up to ([\d,]+) tokens", line) for line in result["report"]]
    most = max((int(match.group(1).replace(",", "")) for match in found if match), default=0)
    return result["tokens"] // result["micro_batches"] <= most


def main(arguments: list[str]) -> int:
    """Show the rows, and keep them if asked to."""
    rows = {row.key: row for row in measured_rows()}
    traces = {}
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*")
    options.add_argument("--write", action="store_true")
    options.add_argument("--device", default="H200")
    options.add_argument("--commit", default="unknown")
    given = options.parse_args(arguments)
    for name in given.files:
        for line in Path(name).read_text("utf-8").splitlines():
            result = json.loads(line)
            several = "processes" in result
            if row := distributed_row(result, given.device, given.commit) if several else row_of(result):
                rows[row.key] = row
                traces[row.key] = result.get("trace", {}).get("groups_ms", {})
    for row in rows.values():
        step, memory = row.step(), row.memory()
        parts = {name: round(1e3 * part, 1) for name, part in step.parts().items() if part > 5e-5}
        print(
            f"{row.words()}: {1e3 * step.total:.1f} ms, measured {row.ms:.1f} ({step.total / row.ms * 1e3 - 1:+.1%});"
        )
        print(f"    peak {memory.peak / 2**30:.2f} GiB, measured {row.peak_gib:.2f}; {parts}")
        if traces.get(row.key):
            print(f"    traced: {traces[row.key]}")
    if given.write:
        FILE.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows.values()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
