"""One setting as one of several processes (torchrun); process 0 prints a line `RESULT {json}`.

    torchrun --standalone --nproc_per_node 2 benchmarks/gpu/distributed_rank.py --strategy fsdp2 ...

apply_method -> the trainer of luthier/train/setup.py -> `update`, as in bench.py, with the parts of a step dealt to the
processes as the product deals them. `--check FOLDER` takes a few steps in fp32 of every method (and, on several
processes, of both strategies) and keeps losses and trained weights.

    torchrun ... distributed_rank.py --strategy fsdp2 --folder /tmp/llama70b --method lora ...   (make_checkpoint.py)
    torchrun ... distributed_rank.py --strategy fsdp2 --method full --offload optimizer --save /tmp/saved ...

`--folder` loads that checkpoint as the product does under FSDP2: without values, then rows into shards. Every result
has the host memory of each process at its highest (`VmHWM`; `anonymous`: without mapped files, at the end), and the
time and memory of loading apart. `--save` writes a sharded checkpoint and the result, and reads the checkpoint back.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED = time.time()
sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from benchmarks.gpu.models import SHAPES  # noqa: E402

LLAMA3B = ("llama", {
    **SHAPES["llama1b"][1], "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128,
})  # fmt: skip
"""Llama-3.2-3B: the largest of the family that one 80 GB card trains in full with fp32 moments."""

LLAMA70B = ("llama", {
    **SHAPES["llama8b"][1], "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
})  # fmt: skip
OTHERS = {"llama3b": LLAMA3B, "llama70b": LLAMA70B}


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 16, "lora_alpha": 16.0},
    "qlora": {"name": "qlora", "r": 16, "lora_alpha": 16.0},
    "full": {"name": "full"},
    "freeze": {"name": "freeze", "trainable": [r"layers\.[13]\.mlp", "lm_head", "embed_tokens"]},
    "spectrum30": {"name": "freeze", "trainable": [r"layers\.(0|3|6|9|12|15|18|21|24|27)\.(self_attn|mlp)"]},
}
"""`freeze` trains some matrices of some layers, embeddings and head, as Spectrum does."""
BESIDE: dict[str, dict[str, Any]] = {
    "saved": {**METHODS["lora"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "dora": {**METHODS["lora"], "use_dora": True},
}
"""Looked at with `--check --beside`."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama8b", choices=[*SHAPES, *OTHERS])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", type=Path, help="of a model to load by rows, in place of random weights")
    parser.add_argument("--save", type=Path, help="folder for a checkpoint and the result")
    parser.add_argument("--method", default="lora", choices=[*METHODS, *BESIDE])
    parser.add_argument("--base", default="auto", choices=["auto", "fp8"], help="fp8: with --method lora")
    parser.add_argument("--keep-unpacked", action="store_true", help="qlora: model.dequantize_base: true")
    parser.add_argument("--patterns", action="store_true", help="only: which bytes fully_shard changes")
    parser.add_argument("--strategy", default="ddp", choices=["ddp", "fsdp2", "zero2", "zero3"])
    parser.add_argument("--check-strategies", default="ddp,fsdp2", help="of `--check`, by commas")
    parser.add_argument("--offload", default="none", choices=["none", "optimizer", "all"])
    parser.add_argument("--deepspeed-config", help="zero2, zero3: a JSON as `distributed.deepspeed_config` takes it")
    parser.add_argument("--keep-gathered", action="store_true", help="distributed.reshard_after_forward: false")
    parser.add_argument("--copies", type=int, default=1, metavar="R", help="fsdp2: dp_replicate_size (HSDP)")
    parser.add_argument("--sequence-parallel", type=int, default=1, metavar="S", help="processes that share a sequence")
    parser.add_argument("--tokens", type=int, default=8192, help="of a step and process (or of S that share sequences)")
    parser.add_argument("--max-doc", type=int, default=1024)
    parser.add_argument(
        "--mean-doc", type=float, default=300.0, help="before the limit; 1e9: all have --max-doc tokens"
    )
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "layer"])
    parser.add_argument("--keep-attention", action="store_true", help="with --recompute layer: do not attend again")
    parser.add_argument("--optim", default="adamw_torch_fused")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype")
    parser.add_argument("--check", type=Path, help="folder: 6 steps over 13 documents of each method")
    parser.add_argument("--beside", action="store_true", help="with --check: adapters with more beside them, instead")
    parser.add_argument("--last-memory", type=float, help="share of its memory that the last process may use (CUDA)")
    parser.add_argument("--no-roll-call", action="store_true", help="fsdp2: out of memory ends the run (for timing)")
    parser.add_argument("--separate", action="store_true", help="without shards, with their separate products")
    parser.add_argument("--profile", action="store_true", help="one more step under the profiler (trace.py)")
    parser.add_argument("--memory", action="store_true", help="one more step with the allocator's history (holders.py)")
    parser.add_argument("--label", default="")
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.check or options.device == "cpu" else "bfloat16")
    return options


def build(options: argparse.Namespace, world: int) -> tuple[Any, Any, Any]:
    """(trainer, batches, trained model)."""
    import torch
    from torch.distributed import is_initialized

    from benchmarks.gpu import trainers
    from benchmarks.gpu.documents import make_documents
    from benchmarks.gpu.models import random_model, shape
    from benchmarks.gpu.streamed import streamed_model
    from luthier.data.pack import one_by_one, pack
    from luthier.model.adapters import apply_method
    from luthier.train.prefetch import Batches
    from luthier.train.processes import make_accelerator
    from luthier.train.setup import fit_base, make_feed, make_order, make_trainer

    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))  # torchrun says 1, the product does not
    accelerator = make_accelerator(torch.device(options.device), report_to=[], logging_dir="none")
    assert accelerator.num_processes == world, (accelerator.num_processes, world, is_initialized())
    kind, settings = OTHERS[options.model] if options.model in OTHERS else shape(options.model)
    if options.layers:
        settings = {**settings, "num_hidden_layers": options.layers}
    quantization = "fp8" if options.base == "fp8" else "nf4" if options.method == "qlora" else "none"
    if options.folder:
        model = load_hollow(options)
        settings = {"vocab_size": model.config.vocab_size}
    elif quantization != "none" and options.strategy == "fsdp2" and world > 1 and not options.check:
        model = streamed_model(
            kind, settings, device=accelerator.device, dtype=options.dtype, nf4=quantization == "nf4"
        )
    else:
        model = random_model(kind, settings, device=options.device, dtype=options.dtype, nf4=quantization == "nf4")
    sequences = max(1, options.tokens // options.max_doc)
    shared, groups = options.sequence_parallel, world // options.sequence_parallel
    if options.check:
        documents = make_documents(40 * options.max_doc, max_doc=options.max_doc, vocab_size=settings["vocab_size"])[
            :13
        ]
        packs, per_process, accumulate, steps = one_by_one([len(one) for one in documents]), 1, 8 // groups, 6
    else:
        steps = options.warmup + options.steps + options.profile + options.memory
        documents = make_documents(
            (steps * sequences * groups + 1) * options.max_doc, max_doc=options.max_doc,
            vocab_size=settings["vocab_size"], mean=options.mean_doc,
        )  # fmt: skip
        packs = pack([len(one) for one in documents], options.max_doc)
        per_process, accumulate = sequences // options.micro_batches, options.micro_batches
    method = {**METHODS, **BESIDE}[options.method]
    recipe = trainers.make_recipe(
        method=method, sequences=per_process * accumulate, micro_batches=accumulate, max_steps=steps,
        max_length=options.max_doc, strategy=options.strategy, reshard=not options.keep_gathered, shared=shared,
        offload=options.offload if options.strategy == "fsdp2" else "none",
        quantization=quantization, dequantize_base=options.keep_unpacked,
        train={"optim": options.optim, "learning_rate": 1e-3 if options.check else 2e-4, "shuffle": False,
               **trainers.recompute_keys(options.recompute, None, keep_attention=options.keep_attention)},
    )  # fmt: skip
    if options.strategy == "fsdp2" and world > 1:
        own = {"dp_replicate_size": options.copies}
        recipe = recipe.model_copy(update={"distributed": recipe.distributed.model_copy(update=own)})
    if options.strategy.startswith("zero"):
        own = {"offload": options.offload, "deepspeed_config": options.deepspeed_config}
        recipe = recipe.model_copy(update={"distributed": recipe.distributed.model_copy(update=own)})
    tuned = apply_method(model, recipe.method, seed=0).model
    began = time.perf_counter()
    if options.separate:
        _separate_products()
    bring = getattr(model, "luthier_bring", None)  # streamed.py makes layers when they are sharded
    trainer = make_trainer(accelerator, tuned, recipe, total_steps=steps, bring=bring)
    options.shard_s, options.loaded_host = round(time.perf_counter() - began, 1), host_gib()
    order = make_order(recipe.train, sequences=len(packs), world_size=world, parts=shared)
    fit_base(trainer, documents, packs, order=order)
    feed = make_feed(accelerator, order, recipe.train, examples=documents, packs=packs, size=None, parts=shared)
    return trainer, Batches(feed), tuned


def load_hollow(options: argparse.Namespace) -> Any:
    """The model of a folder, without values."""
    import torch

    from luthier.model.load import load_model_folder
    from luthier.recipe.schema import ModelSection
    from luthier.runtime.device import Device

    host = Device(type="cpu", index=0, name="host", memory_bytes=0, native_bf16=True, reason="benchmark")
    section = ModelSection(name_or_path=str(options.folder))
    return load_model_folder(
        options.folder, section, device=host, dtype=getattr(torch, options.dtype), hollow=True
    )  # fmt: skip


def sharded_over(model: Any) -> dict[str, Any]:
    """The mesh of sharded parameters and how they lie on it; nothing without shards."""
    sharded = next((p for p in model.parameters() if hasattr(p, "device_mesh")), None)
    if sharded is None:
        return {}
    return {"mesh": sharded.device_mesh.mesh.tolist(), "placements": str(sharded.placements)}


def host_gib() -> tuple[float, float]:
    """Host memory of this process: (most of all times, anonymous pages now), GiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = [int(fields[key].split()[0]) if key in fields else 0 for key in ("VmHWM", "RssAnon")]
    return round(kilobytes[0] / 2**20, 2), round(kilobytes[1] / 2**20, 2)


def save(options: argparse.Namespace, trainer: Any, model: Any, rank: int) -> dict[str, Any]:
    """A checkpoint and back, and the result in files: seconds, and whether the checkpoint restores every bit."""
    import shutil

    import torch

    from luthier.train.checkpoint import checkpoint_path
    from luthier.train.distributed.gathered import write_gathered
    from luthier.train.progress import Progress
    from luthier.train.snapshot import load_weights, take

    def write(source: Any) -> None:
        shutil.rmtree(options.save / "final", ignore_errors=True)
        (options.save / "final").mkdir(parents=True)
        from luthier.model.save import save_model_files

        save_model_files(model, options.save / "final", whole=source)

    steps = 6 if options.check else options.warmup + options.steps
    before = {name: tensor.detach().clone() for name, tensor in trainer.weights.tensors.items()}
    seconds = {}
    began = time.perf_counter()
    take(trainer, Progress(step=steps), folder=options.save, identity={}, keep=1)
    seconds["checkpoint_s"], began = round(time.perf_counter() - began, 1), time.perf_counter()
    load_weights(trainer, checkpoint_path(options.save, steps))
    seconds["restore_s"], began = round(time.perf_counter() - began, 1), time.perf_counter()
    same = all(torch.equal(before[name], tensor) for name, tensor in trainer.weights.tensors.items())
    if trainer.weights.sharded:
        write_gathered(trainer.accelerator, model, write)
        seconds["result_s"] = round(time.perf_counter() - began, 1)
    return {**seconds, "restored_bit_for_bit": same}


def run(options: argparse.Namespace, world: int, rank: int) -> dict[str, Any]:
    import torch

    from benchmarks.gpu.clock import Clock, median

    clock = Clock(options.device)
    trainer, batches, model = build(options, world)
    if options.no_roll_call and getattr(trainer.wrapper, "roll", None) is not None:
        trainer.wrapper.roll = None
    if options.last_memory and rank == world - 1:
        torch.cuda.set_per_process_memory_fraction(options.last_memory)
    info: dict[str, Any] = {
        "wrapper": type(trainer.wrapper).__name__, "root": type(getattr(trainer.wrapper, "root", None)).__name__,
        "layers": [
            f"{part.name}: {part.runs}" for part in trainer.engine.report
            if part.name in ("decoder layers", "sequences")],
        **sharded_over(model),
        "rows_of_a_pass": len(batches.take(0)[0].batch.input_ids),
        "setup_s": round(time.time() - STARTED, 1),
    }  # fmt: skip
    marks, losses, tokens = [], [], []
    for step in range(6 if options.check else options.warmup + options.steps):
        done = halving_update(trainer, batches, step, info)
        losses.append(done.loss)
        if step == options.warmup - 1:
            clock.wait()
            clock.reset_peak()
        if step >= options.warmup - 1:
            marks.append(clock.mark())
            tokens.append(done.tokens)
    clock.wait()
    peak = torch.tensor([clock.peak_gib()[0] or 0.0, clock.peak_gib()[1] or 0.0], device=trainer.accelerator.device)
    each = trainer.accelerator.gather(peak[None]).tolist()
    info |= {"losses": losses, "gib_by_rank": [round(a, 2) for a, _ in each],
             "reserved_gib_by_rank": [round(b, 2) for _, b in each]}  # fmt: skip
    if options.save:
        info |= save(options, trainer, model, rank)
    info |= {"shard_s": options.shard_s, **hosts(trainer.accelerator, options.loaded_host)}
    if options.check:
        how = "separate" if options.separate else options.strategy
        how += f"-{world}" + (f"-s{options.sequence_parallel}" if options.sequence_parallel > 1 else "")
        how += f"-r{options.copies}" if options.copies > 1 and options.strategy == "fsdp2" else ""
        _keep(model, losses, options.check / f"{options.method}-{how}.pt", rank)
    else:
        ms = [clock.milliseconds(a, b) for a, b in pairwise(marks)]
        info |= {
            "tok_s": round(sum(tokens[1:]) / sum(ms) * 1e3, 1), "ms_step_median": round(median(ms), 1),
            "tok_s_median": round(median([t / m * 1e3 for t, m in zip(tokens[1:], ms, strict=True)]), 1),
            "tokens_step": round(sum(tokens[1:]) / len(ms)),
        }  # fmt: skip
    if options.profile:
        from benchmarks.gpu.trace import profile_step

        info["profile"] = profile_step(
            lambda: halving_update(trainer, batches, step + 1, info),
            device=options.device, step_ms=info["ms_step_median"],
        )  # fmt: skip
    if options.memory:
        from benchmarks.gpu.holders import holders_of_step

        last = options.warmup + options.steps + options.profile
        info["memory"] = holders_of_step(trainer, lambda: halving_update(trainer, batches, last, info))
    batches.close()
    trainer.weights.close()
    return info


def hosts(accelerator: Any, loaded: tuple[float, float]) -> dict[str, Any]:
    """Host memory of every process, after loading and at the end."""
    import torch

    mine = torch.tensor([*loaded, *host_gib()], device=accelerator.device)
    each = [[round(value, 2) for value in one] for one in accelerator.gather(mine[None]).tolist()]
    names = ("host_gib_loading", "host_anonymous_gib_loaded", "host_gib", "host_anonymous_gib")
    return {name: [one[place] for one in each] for place, name in enumerate(names)}


def halving_update(trainer: Any, batches: Any, step: int, info: dict[str, Any]) -> Any:
    """One step; in smaller micro-batches where they do not fit, as in `luthier/train/running.py`."""
    from luthier.train.split import TooLarge
    from luthier.train.step import update

    while True:
        try:
            return update(trainer, batches.take(step), step=step, stop_requested=lambda: False)
        except TooLarge as error:
            failed = error.failed
        info.setdefault("halved", []).append([step, str(batches.size)])
        smaller = batches.size.halved(failed)
        if smaller is None:
            raise RuntimeError("a single document does not fit")
        batches.resize(smaller)


def _separate_products() -> None:
    """The engine's layers as under FSDP2, in a process that shards nothing: what the products alone cost and round."""
    from dataclasses import replace

    from luthier.train import setup

    plain = setup.engine_settings
    setup.engine_settings = lambda recipe: replace(plain(recipe), sharded=True)


def has_bitsandbytes() -> bool:
    """Whether `qlora` can be checked here."""
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None


def patterns(options: argparse.Namespace) -> dict[str, Any]:
    """See `streamed.gathered_patterns`."""
    import torch

    from benchmarks.gpu.streamed import gathered_patterns
    from luthier.train.processes import make_accelerator

    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    make_accelerator(torch.device(options.device), report_to=[], logging_dir="none")
    return {"changed_patterns": gathered_patterns()}


def check(options: argparse.Namespace, world: int, rank: int) -> dict[str, Any]:
    """Every method, on several processes with each strategy."""
    cases = {}
    left_out = {"spectrum30"} if has_bitsandbytes() else {"spectrum30", "qlora"}
    for method in BESIDE if options.beside else [name for name in METHODS if name not in left_out]:
        for strategy in ("ddp",) if world == 1 else options.check_strategies.split(","):
            options.method, options.strategy = method, strategy
            cases[f"{method} {strategy}"] = run(options, world, rank)
    return {"cases": cases}


def _keep(model: Any, losses: list[float], file: Path, rank: int) -> None:
    import torch

    held = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if hasattr(parameter, "ds_id"):
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    held[name] = parameter.detach().to("cpu", copy=True)
                continue
            whole = parameter.detach()
            held[name] = (whole.full_tensor() if hasattr(whole, "full_tensor") else whole).cpu()
    if rank == 0:
        torch.save({"losses": losses, "weights": held}, file)


def main() -> None:
    options = parse()
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    info: dict[str, Any] = {"label": options.label, "processes": world, **{
        key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}}  # fmt: skip
    try:
        if options.patterns:
            info |= patterns(options)
        else:
            info |= check(options, world, rank) if options.check else run(options, world, rank)
    except Exception as error:  # noqa: BLE001  said in the result
        info["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        traceback.print_exc()
    if rank == 0 or "error" in info:
        print("RESULT " + json.dumps({**info, "rank": rank}), flush=True)
    if world > 1 and "error" not in info:
        import torch

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    os._exit(1 if "error" in info else 0)


if __name__ == "__main__":
    main()
