"""Preparation of rows against TRL's SFTTrainer: reading, tokenising, masking, packing; tokens/s and peak memory.

    python benchmarks/prepare_vs_trl.py --gsm8k train.jsonl --rows 1000000 --repeats 2

Both read the same JSON Lines file with the same tokenizer and template into packs of 1,024 tokens, each in a process of
its own, one after the other and in turns, so that another load on the machine meets both. TRL prepares with
`assistant_only_loss` and `packing_strategy="bfd"`; its template marks the answers with `{% generation %}`, ours finds
and proves them. Tokens and trained tokens of both must be equal, or the run fails. Imports are not timed; TRL is timed
from `load_dataset` to `SFTTrainer(...).train_dataset`, ours is `prepare`, in memory and streamed to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

MAX_LENGTH = 1024
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# The text of SmolLM2's own template, with its answers marked for transformers' `return_assistant_tokens_mask`.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information"
).split()


def write_chats(path: Path, rows: int) -> None:
    """Short chats: a question of 4 to 16 words, an answer of 4 to 24, no two alike."""
    chooser = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for row in range(rows):
            question = " ".join(chooser.choices(WORDS, k=chooser.randint(4, 16)))
            answer = " ".join(chooser.choices(WORDS, k=chooser.randint(4, 24)))
            messages = [
                {"role": "user", "content": f"{question}?"}, {"role": "assistant", "content": f"{answer} {row}."}
            ]  # fmt: skip
            out.write(json.dumps({"messages": messages}) + "\n")


def as_messages(gsm8k: Path, out: Path) -> None:
    with gsm8k.open(encoding="utf-8") as rows, out.open("w", encoding="utf-8") as written:
        for line in rows:
            row = json.loads(line)
            messages = [
                {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}
            ]  # fmt: skip
            written.write(json.dumps({"messages": messages}) + "\n")


# --- one side, in a process of its own ----------------------------------------------------------------------------


def tokenizer():
    from luthier.model.tokenizer import load_tokenizer
    from luthier.recipe.schema import ModelSection

    return load_tokenizer(ModelSection(name_or_path="smollm2-135m-instruct"))


def run_luthier(file: Path, folder: Path, *, streaming: bool) -> dict[str, int]:
    from luthier.data.prepare import prepare
    from luthier.recipe.schema import DataSection

    loaded = tokenizer()
    loaded.chat_template = TEMPLATE
    section = DataSection(train=[{"path": str(file)}], max_length=MAX_LENGTH, streaming=streaming)
    started = begin()
    prepared = prepare(section, loaded, seed=0, cache_dir=folder if streaming else None)
    found = end(started)
    names = ("rows_used", "tokens", "trained_tokens", "packs")
    return {**found, **{name: prepared.manifest[name] for name in names}}


def run_trl(file: Path, folder: Path) -> dict[str, int]:
    import datasets
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    loaded = tokenizer()
    loaded.chat_template = TEMPLATE
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(loaded), num_key_value_heads=1, **shape)).to(torch.float32)
    settings = SFTConfig(
        output_dir=str(folder), assistant_only_loss=True, packing=True, packing_strategy="bfd", max_length=MAX_LENGTH,
        use_cpu=True, report_to=[], bf16=False,
    )  # fmt: skip
    started = begin()
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder))
    trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=loaded)
    found = end(started)
    packed = trainer.train_dataset
    table = packed.data.table
    tokens = sum(len(chunk.values) for chunk in table.column("input_ids").chunks)
    name = "assistant_masks" if "assistant_masks" in packed.column_names else "labels"
    trained = 0
    for start in range(0, len(packed), 1_000):
        values = packed[start : start + 1_000][name]
        trained += sum(sum(row) if name == "assistant_masks" else sum(v != -100 for v in row) for row in values)
    return {**found, "rows_used": len(rows), "tokens": tokens, "trained_tokens": trained, "packs": len(packed)}


def begin() -> tuple[float, float]:
    return time.perf_counter(), cpu_seconds()


def cpu_seconds() -> float:
    """Of this process and of the workers that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def end(started: tuple[float, float]) -> dict[str, float]:
    seconds, cpu = time.perf_counter() - started[0], cpu_seconds() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak, "largest_worker_mib": worker}


SIDES = {
    "luthier": lambda file, folder: run_luthier(file, folder, streaming=False),
    "luthier, streamed": lambda file, folder: run_luthier(file, folder, streaming=True),
    "trl": run_trl,
}


# --- both, in turns -----------------------------------------------------------------------------------------------


def measure(side: str, file: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--side", side, "--file", str(file), "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
        if done.returncode or not lines:
            raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
        return json.loads(lines[-1])


def compare(name: str, file: Path, sides: list[str], repeats: int) -> dict:
    """Runs of all sides in turns; fails if they do not prepare the same tokens."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            runs[side].append(measure(side, file))
            last = runs[side][-1]
            print(
                f"  {name}, {side}: {last['seconds']:.1f} s, {last['peak_mib']:,.0f} MiB", file=sys.stderr, flush=True
            )
    same = {(run["rows_used"], run["tokens"], run["trained_tokens"]) for own in runs.values() for run in own}
    if len(same) != 1:
        raise SystemExit(f"{name}: rows, tokens, trained tokens differ between the sides: {sorted(same)}")
    rows, tokens, trained = same.pop()
    return {"set": name, "rows": rows, "tokens": tokens, "trained_tokens": trained, "runs": runs}


def table(results: list[dict]) -> list[str]:
    lines = ["| set | side | tokens/s (wall) | tokens/s (CPU) | peak memory | sequences | times TRL, wall | CPU |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for result in results:
        medians = {
            side: {key: statistics.median(run[key] for run in own) for key in own[0]}
            for side, own in result["runs"].items()
        }
        trl = medians.get("trl")
        for side, own in medians.items():
            wall = f"{trl['seconds'] / own['seconds']:.2f}" if trl else "-"
            cpu = f"{trl['cpu_seconds'] / own['cpu_seconds']:.2f}" if trl else "-"
            lines.append(
                f"| {result['set']} | {side} | {own['tokens'] / own['seconds']:,.0f} | "
                f"{own['tokens'] / own['cpu_seconds']:,.0f} | {own['peak_mib']:,.0f} MiB | {own['packs']:,.0f} | "
                f"{wall} | {cpu} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, help="GSM8K train.jsonl (question, answer)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="short chats to generate; 0: none")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sides", default=",".join(SIDES).replace("luthier, ", "luthier; "))
    parser.add_argument("--out", type=Path, help="JSON with every run")
    parser.add_argument("--side")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.file, options.folder)))
        return
    sides = [side.replace(";", ",") for side in options.sides.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if options.gsm8k:
            as_messages(options.gsm8k, Path(folder) / "gsm8k.jsonl")
            results.append(compare("GSM8K train", Path(folder) / "gsm8k.jsonl", sides, options.repeats))
        if options.rows:
            write_chats(Path(folder) / "chats.jsonl", options.rows)
            name = f"{options.rows:,} short chats"
            results.append(compare(name, Path(folder) / "chats.jsonl", sides, options.repeats))
    packages = ("transformers", "tokenizers", "datasets", "trl", "numpy", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{versions}; load average at the end {os.getloadavg()[0]:.1f}\n")
    print("\n".join(table(results)))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2), "utf-8")


if __name__ == "__main__":
    main()
