"""The tables of docs/distributed.md, "On paper": plans of models on machines that were not bought.

    python docs/paper.py            print them
    python docs/generate.py         write them into the page

Each row is a `luthier plan recipes/on-paper.yaml ...` that anyone can repeat; `tests/docs/test_paper.py` does. The plan
alone decides, so rows stand here whose keys a run refuses so far.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from luthier.plan.result import Plan

__all__ = ["ROWS", "Row", "paper_tables"]

ROOT = Path(__file__).parents[1]
RECIPE = "recipes/on-paper.yaml"
M70 = "model.name_or_path=meta-llama/Llama-3.1-70B"
M405 = "model.name_or_path=meta-llama/Llama-3.1-405B"
FSDP2, OPTIMIZER, ALL = "distributed.strategy=fsdp2", "distributed.offload=optimizer", "distributed.offload=all"
SHARED = "distributed.sequence_parallel_size"
QLORA, FULL = "method.name=qlora", "method.name=full"
CHATS = "--rows 10000 --mean-tokens 1000"
PUBLISHED = f"{QLORA} data.max_length=1024 train.tokens_per_step=131072 --rows 10000"
TABLES = 'method.modules_to_save=["embed_tokens","lm_head"]'
"""Embeddings and head."""
DDP = "distributed.strategy=ddp"
ON_L4, ON_H100 = "--mean-tokens 554 --gpu L4 --num-gpus 8", "--mean-tokens 554 --gpu H100 --num-gpus 8"


class Row(NamedTuple):
    """One plan."""

    what: str
    words: str
    """Overrides of the recipe and options of `luthier plan`."""

    def command(self) -> str:
        """To be typed."""
        return f"luthier plan {RECIPE} {self.words}"

    def plan(self) -> Plan:
        """What the command plans."""
        from luthier.plan.devices import find_device
        from luthier.plan.known import known_model
        from luthier.plan.machine import with_network
        from luthier.plan.request import make_request
        from luthier.plan.search import make_plan
        from luthier.plan.work import assumed_documents
        from luthier.recipe.overrides import apply_overrides
        from luthier.recipe.validate import validate
        from luthier.recipe.yaml12 import parse_yaml

        words = self.words.split()
        options = {word: words[place + 1] for place, word in enumerate(words) if word.startswith("--")}
        document = parse_yaml((ROOT / RECIPE).read_text("utf-8"), origin=RECIPE)
        apply_overrides(document, [word for word in words if "=" in word])
        recipe, problems = validate(document)
        assert recipe is not None, problems
        shape = known_model(recipe.model.name_or_path)
        assert shape is not None
        documents = assumed_documents(
            max_length=recipe.data.max_length, packing=True, mean_tokens=int(options["--mean-tokens"]),
            rows=int(options["--rows"]),
        )  # fmt: skip
        network = float(options["--network"]) if "--network" in options else None
        device = with_network(find_device(options["--gpu"]), network)
        request = make_request(recipe, shape, documents, device, num_gpus=int(options["--num-gpus"]))
        return make_plan(request, with_remedies=False)


ROWS: dict[str, tuple[Row, ...]] = {
    "models": (
        Row("8B LoRA", f"--gpu H100 --num-gpus 2 {CHATS}"),
        Row("70B LoRA", f"{M70} --gpu H100 --num-gpus 8 {CHATS}"),
        Row("70B LoRA", f"{M70} --gpu H100 --num-gpus 64 {CHATS}"),
        Row("70B LoRA, network of 25 Gbit/s a GPU", f"{M70} --gpu H100 --num-gpus 64 --network 25 {CHATS}"),
        Row("70B LoRA, network of 25 Gbit/s a GPU", f"{M70} {FSDP2} --gpu H100 --num-gpus 64 --network 25 {CHATS}"),
        Row("70B QLoRA", f"{M70} {QLORA} {FSDP2} --gpu H100 --num-gpus 8 {CHATS}"),
        Row("70B QLoRA", f"{M70} {QLORA} {FSDP2} --gpu H100 --num-gpus 64 {CHATS}"),
        Row("70B full", f"{M70} {FULL} {FSDP2} --gpu H100 --num-gpus 8 {CHATS}"),
        Row("70B full", f"{M70} {FULL} {FSDP2} {OPTIMIZER} --gpu H100 --num-gpus 8 {CHATS}"),
        Row("70B full", f"{M70} {FULL} {FSDP2} {ALL} --gpu H100 --num-gpus 8 {CHATS}"),
        Row("70B full", f"{M70} {FULL} --gpu H100 --num-gpus 64 {CHATS}"),
        Row("70B full", f"{M70} {FULL} {FSDP2} {OPTIMIZER} --gpu H100 --num-gpus 64 {CHATS}"),
        Row("70B full", f"{M70} {FULL} distributed.strategy=zero3 --gpu H100 --num-gpus 64 {CHATS}"),
        Row("405B full", f"{M405} {FULL} {FSDP2} --gpu H100 --num-gpus 512 {CHATS}"),
        Row("405B full", f"{M405} {FULL} {FSDP2} {ALL} --gpu H100 --num-gpus 512 {CHATS}"),
        Row("405B full", f"{M405} {FULL} {FSDP2} {OPTIMIZER} {SHARED}=4 --gpu H100 --num-gpus 512 {CHATS}"),
        Row("405B full", f"{M405} {FULL} {FSDP2} --gpu H200 --num-gpus 512 {CHATS}"),
        Row("405B LoRA", f"{M405} --gpu H100 --num-gpus 64 {CHATS}"),
    ),
    "contexts": tuple(
        Row(
            f"{length:,} tokens",
            f"{FSDP2} {SHARED}={shared} data.max_length={length} "
            f"train.tokens_per_step={8 * length} --gpu H100 --num-gpus 8 --rows 1000 --mean-tokens {length}",
        )
        for length, shared in ((131_072, 1), (131_072, 8), (1_048_576, 1), (1_048_576, 8))
    ),
    "published": (
        Row("as published: embeddings and head too", f"{PUBLISHED} {TABLES} {DDP} {ON_L4}"),
        Row("the same", f"{PUBLISHED} {TABLES} {FSDP2} {ON_L4}"),
        Row("the same, 8-bit AdamW", f"{PUBLISHED} {TABLES} {FSDP2} train.optim=adamw_8bit {ON_L4}"),
        Row("adapters alone", f"{PUBLISHED} {DDP} {ON_L4}"),
        Row("adapters alone, rows of 1,024", f"{PUBLISHED} {DDP} {ON_L4.replace('554', '1024')}"),
        Row("as published: embeddings and head too", f"{PUBLISHED} {TABLES} {DDP} {ON_H100}"),
        Row("adapters alone", f"{PUBLISHED} {DDP} {ON_H100}"),
        Row("adapters alone, rows of 1,024", f"{PUBLISHED} {DDP} {ON_H100.replace('554', '1024')}"),
    ),
}


def paper_tables() -> dict[str, str]:
    """Each table as Markdown, by name."""
    return {name: "\n".join(_table(name, rows)) for name, rows in ROWS.items()}


def _table(name: str, rows: tuple[Row, ...]) -> Iterator[str]:
    timed = name == "published"
    last = " time |" if timed else ""
    yield f"| | on | way | GiB each | GiB a host | tokens/s |{last} what decides |"
    yield f"|---|---|---|---|---|---|{'---|' if timed else ''}---|"
    for row in rows:
        plan = row.plan()
        chosen, request = plan.chosen, plan.request
        need = f"{chosen.needed_bytes / 2**30:.1f}" + ("" if plan.fits else ": does not fit")
        speed = f"{chosen.tokens_per_second:,.0f}" if plan.fits else "-"
        time = f" {plan.seconds / 60:.1f} min |" if timed and plan.fits else " - |" if timed else ""
        yield (
            f"| {row.what} | {request.num_gpus} {request.device.name} | {chosen.setting.way.words()} | {need} "
            f"| {plan.host.total / 2**30:,.0f} | {speed} |{time} {_decides(plan)} |"
        )
    yield ""
    yield "<details><summary>Commands of these rows</summary>\n"
    yield "```sh"
    yield from (row.command() for row in rows)
    yield "```"
    yield "</details>"


def _decides(plan: Plan) -> str:
    """Recompute and the parts of the time, or the largest parts of the memory."""
    chosen, layers = plan.chosen, plan.request.sizes.shape.layers
    if not plan.fits:
        parts = sorted(chosen.memory.parts().items(), key=lambda part: -part[1])[:4]
        over = (chosen.needed_bytes - chosen.available_bytes) / 2**30
        return f"{over:.1f} GiB too much: " + ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts)
    setting, step = chosen.setting, chosen.step
    whole = setting.whole_layers(layers)
    kept = whole - setting.attending(layers)
    but = f", {kept} but for attention" if kept else ""
    said = [f"{whole} of {layers} layers recomputed{but}"] if whole else []
    said += ["selective" + (" elsewhere" if whole else "")] if setting.rest == "selective" and whole < layers else []
    said += [f"{setting.micro_tokens:,} tokens a device and pass"]
    for part, words in (("attention", "attention"), ("exchange", "communication"), ("offload", "offload")):
        share = step.parts()[part] / step.total
        said += [f"{words} {share:.0%} of the time"] if share >= (0.3 if part == "attention" else 0.01) else []
    return "; ".join(said)


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(paper_tables().values()) + "\n")
