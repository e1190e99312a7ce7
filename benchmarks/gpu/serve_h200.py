"""Generation on one GPU: evaluation and serving against plain transformers, its continuous batching and its server.

    python benchmarks/gpu/serve_h200.py --model smol135m --stages evaluate,batching,engine,http
    python benchmarks/gpu/serve_h200.py --model tiny --device cpu --quick          # a dry run

Random weights of the true shape, made on the device; prompts of random ids (40 to 240 tokens), each asked once.
Random weights never end an answer, so answers have a fixed number of tokens, or (`ends`) end at one of 1% of the ids.

evaluate   512 prompts: transformers' `generate` batched by length; `luthier.generation` before (batch after batch) and
           after (pages, rows enter as others finish), with and without CUDA graphs. Same ids? Peak memory.
batching   the same prompts through transformers' `generate_batch` (continuous batching, paged attention).
engine     closed loop of N streams on the serving engine in this process, two requests a stream.
http       the same over HTTP: `luthier serve` and `transformers serve --continuous-batching`, as processes of their
           own, asked by four processes with the openai client, streaming.
exact      same ids as plain greedy decoding, and how often plain decoding agrees with itself at another batch size.

One JSON line a measurement, into $OUT/serve.jsonl too. Everything is done once before it is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

ONE_PERCENT = 100


def out(**numbers: Any) -> None:
    """A result."""
    line = json.dumps(numbers)
    print("RESULT", line, flush=True)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "serve.jsonl").open("a") as stream:
            stream.write(line + "\n")


class Words:
    """A tokenizer for ids of any vocabulary: the text is that of another, of the usual length."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(folder)
        self.pad_token_id, self.size = 0, len(self.inner)

    def decode(self, ids: Any, **more: Any) -> str:
        """Text."""
        return self.inner.decode([index % self.size for index in ids], **more)


class Bench:
    """A model, and what is asked of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from machine import machine
        from models import random_model, shape

        self.torch, self.args = torch, args
        self.cuda = args.device == "cuda"
        self.facts = machine(args.device)
        self.model = random_model(*shape(args.model), device=args.device, dtype=args.dtype).eval()
        self.vocabulary = self.model.config.vocab_size
        self.tokenizer: Any = Words(args.tokenizer)
        if self.vocabulary <= self.tokenizer.size:
            self.tokenizer = self.tokenizer.inner
        self.prompts = self.ids(args.prompts, seed=1)

    def ids(self, count: int, seed: int) -> list[list[int]]:
        """Prompts."""
        chooser = random.Random(seed)
        low, high = (40, 240) if not self.args.quick else (4, 24)
        return [
            [chooser.randrange(3, self.vocabulary) for _ in range(chooser.randint(low, high))] for _ in range(count)
        ]

    def timed(self, work: Any) -> tuple[Any, float, float]:
        """(result, seconds, GiB that tensors took above the model)."""
        gc.collect()
        if not self.cuda:
            started = time.monotonic()
            return work(), time.monotonic() - started, 0.0
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated()
        self.torch.cuda.synchronize()
        started = time.monotonic()
        result = work()
        self.torch.cuda.synchronize()
        seconds = time.monotonic() - started
        return result, seconds, (self.torch.cuda.max_memory_allocated() - before) / 2**30

    # --- evaluate -------------------------------------------------------------------------------------------------

    def plain(self, prompts: list[list[int]], new: int, stops: list[int]) -> list[tuple[int, ...]]:
        """transformers' `generate`, batches of one length class, padded on the left."""
        answers: list[tuple[int, ...]] = [()] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.args.batch):
            rows = order[start : start + self.args.batch]
            width = len(prompts[rows[0]])
            ids = self.torch.tensor(
                [[0] * (width - len(prompts[i])) + prompts[i] for i in rows], device=self.model.device
            )
            mask = self.torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=self.model.device
            )
            said = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=stops or None,
                pad_token_id=0,
                use_cache=True,
            )[:, width:].tolist()  # fmt: skip
            ends = set(stops)
            for index, answer in zip(rows, said, strict=True):
                end = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
                answers[index] = tuple(answer[:end])
        return answers

    def ours(self, prompts: list[list[int]], new: int, stops: list[int], paged: bool) -> list[tuple[int, ...]]:
        """`luthier.generation`."""
        from luthier.generation.generate import generate

        found = generate(
            self.model, self.tokenizer, prompts, max_new_tokens=new, stop_ids=stops, batch_size=self.args.batch,
            paged=paged,
        )  # fmt: skip
        return [one.ids for one in found]

    def continuous(
        self, prompts: list[list[int]], new: int, stops: list[int], graphs: bool, counts: Any = None
    ) -> list[tuple[int, ...]]:
        """The continuous path itself."""
        from luthier.generation.generate import token_capacity
        from luthier.generation.paged.run import answer_all, paged_shape

        with self.torch.no_grad():
            found = dict(
                answer_all(
                    self.model, paged_shape(self.model, wanted=True), prompts, max_new_tokens=new,
                    stop_ids=frozenset(stops), batch_size=self.args.batch, capacity=token_capacity(self.model),
                    shared=0, on_tokens=lambda new: None, counts=counts, graphs=graphs,
                )
            )  # fmt: skip
        return [found[index] for index in range(len(prompts))]

    def evaluate(self) -> None:
        """All ways, two kinds of answers."""
        from luthier.generation.paged.continuous import Counts

        chooser = random.Random(5)
        ends = chooser.sample(range(3, self.vocabulary), self.vocabulary // ONE_PERCENT)
        ways = {
            "transformers generate": self.plain,
            "luthier before": lambda *asked: self.ours(*asked, paged=False),
            "luthier": lambda *asked: self.ours(*asked, paged=True),
            "luthier, no graphs": lambda *asked: self.continuous(*asked, graphs=False),
        }
        for kind, new, stops in (("fixed", self.args.tokens, []), ("ends", 2 * self.args.tokens, ends)):
            if kind not in self.args.kinds:
                continue
            own: list[tuple[int, ...]] | None = None
            for name, way in ways.items():
                if self.args.only and name not in self.args.only.split(","):
                    continue
                way(self.prompts[: self.args.batch // 4], 4, stops)
                answers, seconds, gib = self.timed(lambda way=way, new=new, stops=stops: way(self.prompts, new, stops))
                own = own or answers
                tokens = sum(map(len, answers))
                same = sum(a == b for a, b in zip(answers, own, strict=True)) / len(own)
                begin = sum(a[:16] == b[:16] for a, b in zip(answers, own, strict=True)) / len(own)
                out(
                    stage="evaluate", model=self.args.model, dtype=self.args.dtype, kind=kind, way=name, tokens=tokens,
                    seconds=round(seconds, 3), tokens_s=round(tokens / seconds, 1), gib=round(gib, 2),
                    same_as_plain=round(same, 3), first_16_same=round(begin, 3),
                )  # fmt: skip
            counts = Counts()
            self.continuous(self.prompts, new, stops, graphs=True, counts=counts)
            out(
                stage="syncs", model=self.args.model, kind=kind, steps=counts.steps, reads=counts.reads,
                waits=counts.waits, tokens=counts.tokens, waits_per_token=round(counts.waits / counts.tokens, 4),
            )  # fmt: skip

    def exact(self) -> None:
        """Same ids as plain greedy decoding: as it is, and between plain decoding's own batch sizes."""
        prompts, new = self.prompts[:32], min(48, self.args.tokens)
        plain = self.plain(prompts, new, [])
        self.args.batch, batch = 8, self.args.batch
        smaller = self.plain(prompts, new, [])
        self.args.batch = batch
        ways = {
            "plain, batches of 8": smaller,
            "pages": self.continuous(prompts, new, [], graphs=False),
            "pages, graphs": self.continuous(prompts, new, [], graphs=True),
            "batch after batch": self.ours(prompts, new, [], paged=False),
        }
        for name, answers in ways.items():
            out(
                stage="exact", model=self.args.model, dtype=self.args.dtype, way=name, prompts=len(prompts), new=new,
                same=sum(a == b for a, b in zip(answers, plain, strict=True)) / len(plain),
                first_16_same=sum(a[:16] == b[:16] for a, b in zip(answers, plain, strict=True)) / len(plain),
                different_ids=len({token for answer in plain for token in answer}),
            )  # fmt: skip

    def batching(self) -> None:
        """transformers' own continuous batching."""
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=self.args.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        self.model.generation_config = config
        self.model.config.use_cache = True
        self.model.generate_batch(inputs=self.prompts[:8], generation_config=config, progress_bar=False)
        found, seconds, gib = self.timed(
            lambda: self.model.generate_batch(inputs=self.prompts, generation_config=config, progress_bar=False)
        )
        tokens = sum(len(one.generated_tokens) for one in found.values())
        out(
            stage="evaluate", model=self.args.model, dtype=self.args.dtype, kind="fixed", tokens=tokens,
            way=f"transformers generate_batch ({self.model.config._attn_implementation})", seconds=round(seconds, 3),
            tokens_s=round(tokens / seconds, 1), gib=round(gib, 2), answers=len(found), label=self.args.label,
        )  # fmt: skip

    # --- engine ---------------------------------------------------------------------------------------------------

    def engine(self) -> None:
        """Streams on the engine in this process."""
        from luthier.generation.generate import token_capacity
        from luthier.serve.engine.loop import Engine
        from luthier.serve.engine.scheduler import EngineLimits

        limits = EngineLimits(
            max_batch_size=max(self.args.streams), max_queue=4096, prefill_tokens=self.args.prefill,
            prefix_tokens=16_384,
            cache_tokens=min(token_capacity(self.model), max(self.args.streams) * 1024),
        )  # fmt: skip
        engine = Engine(self.model, limits, paged=True)
        engine.start()
        try:
            for adapters, sampled in ((0, False), (4, False), (0, True)):
                for streams in self.args.streams if not (adapters or sampled) else self.args.streams[-1:]:
                    self.streams(engine, streams, adapters=adapters, sampled=sampled, timed=False)
                    self.streams(engine, streams, adapters=adapters, sampled=sampled, timed=True)
        finally:
            engine.close()

    def streams(self, engine: Any, streams: int, *, adapters: int, sampled: bool, timed: bool) -> None:
        """A closed loop."""
        from luthier.serve.engine.request import Request, Sampling

        each = 2 if timed else 1
        banks = [self.adapter(number) for number in range(adapters)] if adapters else [None]
        prompts = self.ids(streams * each, seed=streams * 10 + timed + 100 * adapters)
        first: list[float] = []
        last: list[float] = []
        made = 0
        lock, over = threading.Lock(), threading.Event()
        running = streams

        def ask(place: int) -> None:
            begun = time.monotonic()
            times: list[float] = []

            def on_piece(piece: Any) -> None:
                nonlocal made, running
                if piece.ids:
                    times.append(time.monotonic())
                if piece.finish is None:
                    made += len(piece.ids)
                    return
                made += len(piece.ids)
                assert piece.finish == "length", piece
                first.append(times[0] - begun)
                last.append((times[-1] - times[0]) / (self.args.tokens - 1))
                if place + streams < len(prompts):
                    ask(place + streams)
                else:
                    with lock:
                        running -= 1
                        if not running:
                            over.set()

            engine.submit(
                Request(
                    prompt=tuple(prompts[place]), max_new_tokens=self.args.tokens, tokenizer=self.tokenizer,
                    sampling=Sampling(temperature=1.0, seed=place) if sampled else Sampling(), stop_ids=frozenset(),
                    on_piece=on_piece, adapter=banks[place % len(banks)],
                )
            )  # fmt: skip

        before = (engine.counters.waits, engine.counters.steps)
        started = time.monotonic()
        for place in range(streams):
            ask(place)
        assert over.wait(400), "no answer in 400 s"
        seconds = time.monotonic() - started
        if timed:
            graphs = engine.slots.paged.graphs
            out(
                stage="engine", model=self.args.model, dtype=self.args.dtype, streams=streams, adapters=adapters,
                sampled=sampled, tokens=made, seconds=round(seconds, 3), tokens_s=round(made / seconds, 1),
                first_token_ms=round(1000 * statistics.median(first), 1),
                first_token_p95_ms=round(1000 * sorted(first)[int(0.95 * (len(first) - 1))], 1),
                between_ms=round(1000 * statistics.median(last), 2),
                waits_per_token=round((engine.counters.waits - before[0]) / made, 4),
                steps=engine.counters.steps - before[1], graphs=len(graphs) if graphs else 0,
                gib=round(self.torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else 0.0,
            )  # fmt: skip

    def adapter(self, number: int) -> Any:
        """Rank 16 on all linear layers of the decoder, made once."""
        from luthier.serve.engine.adapters import Adapter, RowAdapters

        made = self.__dict__.setdefault("_adapters", {})
        if number not in made:
            factors = {}
            for path, module in list(self.model.named_modules()):
                base = module.base if isinstance(module, RowAdapters) else module
                if path.endswith("_proj") and not path.endswith(".base"):
                    down = self.torch.randn(16, base.in_features, device=base.weight.device, dtype=base.weight.dtype)
                    up = self.torch.randn(base.out_features, 16, device=base.weight.device, dtype=base.weight.dtype)
                    factors[path] = (down * 0.01, up * 0.01)
            made[number] = Adapter(f"adapter-{number}", 16, factors)
        return made[number]

    def http(self) -> None:
        """Servers as processes of their own."""
        from serve_http import serve_all

        serve_all(self, out)


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol135m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--stages", default="evaluate,engine")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--tokenizer", default=str(Path(os.environ.get("SITE", ".")) / "tok"))
    parser.add_argument("--servers", default="luthier,batching", help="luthier, transformers, batching (theirs)")
    parser.add_argument("--only", help="ways of `evaluate`, by their full names")
    parser.add_argument("--label", default="")
    parser.add_argument("--prefill", type=int, default=4096, help="prompt tokens between two steps of the engine")
    parser.add_argument("--kinds", default="fixed,ends")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.batch, args.tokens, args.streams = 12, 4, 8, [1, 3]
    started = time.monotonic()
    bench = Bench(args)
    out(stage="machine", model=args.model, **bench.facts)
    for stage in args.stages.split(","):
        try:
            getattr(bench, stage)()
        except Exception as error:  # noqa: BLE001 - the next stage must still run
            traceback.print_exc()
            out(stage=stage, model=args.model, label=args.label, failed=f"{type(error).__name__}: {error}"[:300])
        print(f"[{time.monotonic() - started:.0f} s] {stage} is over", flush=True)


if __name__ == "__main__":
    main()
