"""Time to the first token of each turn of a talk, with and without the store of earlier answers.

    OMP_NUM_THREADS=1 python benchmarks/serve_talk.py [--turns 5]

The engine without HTTP, SmolLM2-135M-Instruct in float32; a turn adds 60 tokens of question and an answer of 40. Both
engines take turns; processor time of this process up to the first token.
"""

from __future__ import annotations

import argparse
import random
import threading
import time

import torch

from luthier.model.load import load_base
from luthier.model.tokenizer import load_tokenizer
from luthier.recipe.schema import ModelSection
from luthier.runtime.device import pick_device
from luthier.serve.engine.loop import Engine
from luthier.serve.engine.request import Request, Sampling
from luthier.serve.engine.scheduler import EngineLimits


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    section = ModelSection(name_or_path="smollm2-135m-instruct")
    tokenizer = load_tokenizer(section)
    engines = {}
    for kept in (0, 16_384):
        model = load_base(section, device=pick_device(), dtype="float32").eval()
        engines[kept] = Engine(model, EngineLimits(prefix_tokens=kept))
        engines[kept].start()

    def answer(engine: Engine, prompt: list[int]) -> tuple[list[int], float, float]:
        ids: list[int] = []
        done, first = threading.Event(), []

        def on_piece(piece) -> None:
            if not first:
                first.append((time.process_time(), time.monotonic()))
            ids.extend(piece.ids)
            if piece.finish:
                done.set()

        started = (time.process_time(), time.monotonic())
        engine.submit(
            Request(prompt=tuple(prompt), max_new_tokens=40, sampling=Sampling(), tokenizer=tokenizer,
                    stop_ids=frozenset(), on_piece=on_piece)
        )  # fmt: skip
        done.wait()
        return ids, first[0][0] - started[0], first[0][1] - started[1]

    chooser = random.Random(0)
    talk: list[int] = []
    print("| turn | prompt tokens | CPU s to the first token, nothing kept | with the store | wall s | wall s |")
    print("|---|---|---|---|---|---|")
    for turn in range(args.turns + 1):
        talk = [*talk, *(chooser.randrange(1000, 40000) for _ in range(60))]
        found = {kept: answer(engine, talk) for kept, engine in engines.items()}
        assert found[0][0] == found[16_384][0], "the answers differ"
        (ids, cpu, wall), (_, cpu_kept, wall_kept) = found[0], found[16_384]
        if turn:  # the first warms up
            print(f"| {turn} | {len(talk)} | {cpu:.2f} | {cpu_kept:.2f} | {wall:.2f} | {wall_kept:.2f} |", flush=True)
        talk = [*talk, *ids]
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
