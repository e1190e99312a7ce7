"""Ask an engine without HTTP: submit requests, collect their pieces."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from luthier.serve.engine.loop import Engine
from luthier.serve.engine.request import Piece, Request, Sampling
from luthier.serve.engine.scheduler import EngineLimits
from tests.support.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@dataclass
class Asked:
    """One request and what came back."""

    request: Request
    pieces: list[Piece] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def ids(self):
        return tuple(token for piece in self.pieces for token in piece.ids)

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def infos(self):
        return [info for piece in self.pieces for info in piece.infos]

    @property
    def finish(self):
        return self.pieces[-1].finish

    def wait(self):
        assert self.done.wait(60), "no answer in 60 s"
        return self


def ask(prompt, *, new=20, stop_ids=(2,), tokenizer=TOKENIZER, sampling=None, on_piece=None, **more) -> Asked:
    """A request that collects its own pieces."""
    asked = None

    def collect(piece):
        asked.pieces.append(piece)
        if on_piece is not None:
            on_piece(asked)
        if piece.finish is not None:
            asked.done.set()

    asked = Asked(
        Request(
            prompt=tuple(prompt),
            max_new_tokens=new,
            sampling=sampling or Sampling(),
            tokenizer=tokenizer,
            stop_ids=frozenset(stop_ids),
            on_piece=collect,
            **more,
        )
    )
    return asked


class Running:
    """An engine that is closed at the end of a test."""

    def __init__(self, model, *, paged=None, **limits):
        self.engine = Engine(model.eval(), EngineLimits(**limits), paged=paged)

    def __enter__(self):
        self.engine.start()
        return self.engine

    def __exit__(self, *_):
        self.engine.close()
        assert not self.engine._thread.is_alive()
