"""Small models: the decoder's forward and backward pass recorded once and replayed, so that launches cost nothing.

A model of 135M parameters has some 1,400 launches a step; on 8,192 tokens the card needs 20 ms for them and Python 80.
A CUDA graph replays them all at once, but works on fixed memory: one number of tokens, one size of the tables of
tiles. So a batch is filled up to a fixed number of tokens with one more document that nobody looks at, and the tables
are filled up with tiles that repeat each other (`FixedSchedule`).

Recorded is what lies between the embeddings and the last norm: noise on embeddings, the head and the loss stay
outside. Not recorded: dropout (its masks come from the generator's state), layers that were not replaced, attention
through other kernels, passes without gradients. A recording that fails is given up, with its reason in the report.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.attention import Documents
from luthier.fast.decoder.function import Replaced
from luthier.fast.kernels.attention_schedule import FixedSchedule, Prefixes, longest_seen
from luthier.fast.settings import EngineSettings
from luthier.runtime.console import note

__all__ = ["Graphs", "Shape", "graphs_for", "shape_for"]

TOKENS, DOCUMENTS, SHORTEST = 256, 32, 512
"""Steps in which a recording's tokens and documents grow, and its shortest longest document."""
ATTEMPTS = 2
"""Recordings that may fail before batches are launched for good."""
MOST_RECORDINGS = 3
"""Each holds its own activations."""
MOST_PARAMETERS = 2_000_000_000
"""Of a model that is recorded: a recording of a larger one holds gigabytes to save little."""
LAUNCH_SECONDS_A_LAYER = 2.5e-3
"""Forward and backward of a layer launched from Python (H200's host, 2.6 ms full, 3.7 ms with adapters)."""
FLOPS = 3.5e14
"""What a card of this class does on small models, a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a recording is made for."""

    tokens: int
    documents: int
    longest: int
    prefixed: bool = False
    """Documents may go on from the one before."""


def shape_for(lengths: Sequence[int], prefixes: Prefixes = ()) -> Shape:
    """The smallest recording these documents and their filling fit into."""
    tokens = sum(lengths)
    filled = -(-tokens // TOKENS) * TOKENS
    longest = SHORTEST
    while longest < longest_seen(lengths, prefixes):
        longest *= 2
    documents = -(-(len(lengths) + 1) // DOCUMENTS) * DOCUMENTS
    return Shape(tokens=filled, documents=documents, longest=longest, prefixed=bool(prefixes))


def graphs_for(
    trunk: Any, decoder: Replaced, settings: EngineSettings
) -> tuple[Graphs | None, tuple[tuple[str, str, str], ...]]:
    """Recordings for a trunk, and the line of the report; None where nothing can be recorded or it does not pay."""
    obstacle = "weights are sharded" if settings.sharded else _obstacle(trunk, decoder)
    if settings.cuda_graphs is False or obstacle is not None:
        return None, ((("launches", "one by one", obstacle or "asked for"),) if settings.cuda_graphs else ())
    graphs = Graphs(trunk, always=bool(settings.cuda_graphs))
    runs = f"replayed as CUDA graphs on batches of up to {graphs.most_tokens:,} tokens"
    return graphs, (("launches", runs, "there launching takes longer than the work"),)


def _obstacle(trunk: Any, decoder: Replaced) -> str | None:
    layers = len(getattr(trunk, "layers", ()))
    if not decoder.programs or decoder.programs[0].parts.input_norm.weight.device.type != "cuda":
        return "only replaced layers on CUDA are recorded"
    if sum(parameter.numel() for parameter in trunk.parameters()) > MOST_PARAMETERS:
        return f"the model has more than {MOST_PARAMETERS:,} parameters"
    if len(decoder.programs) != layers:
        return "some layers were not replaced"
    if any(program.attention != "packed" for program in decoder.programs):
        return "attention does not run on the engine's own kernels"
    views = [view for program in decoder.programs for projection in program.projections for view in projection.views]
    return "adapters have dropout" if any(view.dropout for view in views) else None


class Graphs:
    """Recordings of one trunk."""

    def __init__(self, trunk: Any, *, always: bool = False) -> None:
        embeddings = {id(parameter) for parameter in trunk.get_input_embeddings().parameters()}
        self.trunk = trunk
        self.parameters = [p for p in trunk.parameters() if p.requires_grad and id(p) not in embeddings]
        weights = sum(parameter.numel() for parameter in trunk.parameters() if id(parameter) not in embeddings)
        trained = sum(parameter.numel() for parameter in self.parameters)
        operations = 6 if 2 * trained > weights else 4
        fitting = int(len(trunk.layers) * LAUNCH_SECONDS_A_LAYER * FLOPS / (operations * weights))
        self.most_tokens = 1 << 40 if always else fitting
        """Batches of more tokens keep the card busy longer than launching them takes."""
        self.failure: str | None = None
        """Why nothing is recorded any more."""
        self._causes: list[str] = []
        self._said: set[str] = set()
        self._recordings: dict[tuple[Shape, bool], _Recording] = {}

    def hidden(
        self, embeds_td: Tensor, positions_t: Tensor, lengths: Sequence[int], *, prefixes: Prefixes = ()
    ) -> Tensor | None:
        """Last hidden states (T, d) of flat documents, differentiable; None where there is no recording for them."""
        if self.failure is not None or not self.parameters or not torch.is_grad_enabled():
            return None
        # What was recorded are these adapters at these places.
        if not all(layer.luthier_program.unchanged() for layer in self.trunk.layers):
            return None
        key = (shape_for(lengths, prefixes), embeds_td.requires_grad)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) == MOST_RECORDINGS:
                self._say_once(f"batches of more than {MOST_RECORDINGS} shapes; those of further ones are launched")
                return None
            recording = self._record(key[0], embeds_td, positions_t, lengths, prefixes)
            if recording is None:
                return None
            self._recordings[key] = recording
        recording.load(positions_t, lengths, prefixes)
        whole: Tensor = _Replay.apply(embeds_td, recording, *self.parameters)
        return whole[: embeds_td.shape[0]]

    def _record(
        self, shape: Shape, embeds_td: Tensor, positions_t: Tensor, lengths: Sequence[int], prefixes: Prefixes
    ) -> _Recording | None:
        """A recording, or None: the batch is launched, and one more attempt is made with the next.

        A library that sets itself up in the first pass of a process can break a recording; after a launched pass it
        does not (seen on an H200: the first recording of a test process, never one in a training process).
        """
        gc.collect()
        try:
            return _Recording(self.trunk, self.parameters, shape, embeds_td, positions_t, lengths, prefixes)
        except RuntimeError as error:
            self._causes.append(_first_cause(error))
            if len(self._causes) == ATTEMPTS or isinstance(error, torch.OutOfMemoryError):
                self.failure = "; then ".join(dict.fromkeys(self._causes))
        if self.failure is None:
            note(f"  launches: this batch one by one (recording failed: {self._causes[-1]}); tried again with the next")
        else:  # what failed is gone by now, its memory with it
            note(f"  launches: one by one (recording them failed: {self.failure})")
            self._recordings.clear()
            gc.collect()
            torch.cuda.empty_cache()
        return None

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            note(f"  launches: {text}")

    def forget(self) -> None:
        """Drop all recordings."""
        self._recordings.clear()


def _first_cause(error: BaseException) -> str:
    """The error that came first: the end of a broken recording raises one of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class _Recording:
    """Forward and backward pass for one shape, and the memory they work on."""

    def __init__(
        self, trunk: Any, parameters: Sequence[nn.Parameter], shape: Shape, embeds_td: Tensor, positions_t: Tensor,
        lengths: Sequence[int], prefixes: Prefixes,
    ) -> None:  # fmt: skip
        device = embeds_td.device
        self.shape, self.parameters = shape, tuple(parameters)
        self.embeds = torch.zeros(shape.tokens, embeds_td.shape[1], dtype=embeds_td.dtype, device=device)
        self.embeds.requires_grad_(embeds_td.requires_grad)
        self.positions = torch.zeros(shape.tokens, dtype=positions_t.dtype, device=device)
        self.schedule = FixedSchedule(
            tokens=shape.tokens,
            documents=shape.documents,
            longest=shape.longest,
            device=device,
            prefixed=shape.prefixed,
        )
        self.generation = 0
        self.load(positions_t, lengths, prefixes)
        with torch.no_grad():
            self.embeds[: embeds_td.shape[0]].copy_(embeds_td)
        with _stand_ins(trunk, self.parameters) as leaves:
            wanted = [*([self.embeds] if self.embeds.requires_grad else []), *leaves]
            found = self._record(trunk, wanted, device)
        self.d_embeds = found[0] if self.embeds.requires_grad else None
        self.grads = list(found[len(wanted) - len(self.parameters) :])

    def _record(self, trunk: Any, wanted: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
        """Record both passes; gradients of `wanted`, where replaying puts them."""
        # One stream throughout: products choose algorithms by stream, and loading one breaks a recording.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles kernels, fills tables, chooses algorithms
                out = self._run(trunk)
                torch.autograd.grad(out, wanted, torch.zeros_like(out))
            del out
        torch.cuda.current_stream(device).wait_stream(stream)
        # `thread_local`: the thread that pins the next batch's memory must not break a recording.
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, stream=stream, capture_error_mode="thread_local"):
            self.out = self._run(trunk)
        self.d_out = torch.zeros_like(self.out)
        with torch.cuda.graph(
            self.backward, pool=self.forward.pool(), stream=stream, capture_error_mode="thread_local"
        ):
            found: tuple[Tensor, ...] = torch.autograd.grad(self.out, wanted, self.d_out)
        self.out = self.out.detach()
        return found

    def _run(self, trunk: Any) -> Tensor:
        documents = Documents(
            cu_seqlens=self.positions, lengths=(self.shape.tokens,), longest=self.shape.longest, groups=()
        )
        documents.__dict__["schedule"] = self.schedule
        hidden: Tensor = trunk(
            inputs_embeds=self.embeds[None], position_ids=self.positions[None], luthier_documents=documents,
            use_cache=False,
        )[0]  # fmt: skip
        return hidden.squeeze(0)

    def load(self, positions_t: Tensor, lengths: Sequence[int], prefixes: Prefixes) -> None:
        """Take other documents of the same shape, and the one that fills them up."""
        tokens = positions_t.shape[0]
        spare = self.shape.tokens - tokens
        self.positions[:tokens].copy_(positions_t)
        if spare:
            torch.arange(spare, out=self.positions[tokens:])
        if spare:
            lengths, prefixes = (*lengths, spare), (*prefixes, (0, 0)) if prefixes else ()
        self.schedule.load(lengths, prefixes)


@contextmanager
def _stand_ins(trunk: Any, parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Tensors over the parameters' memory that autograd is given in their place inside, in their order.

    Autograd remembers the stream in which a parameter was first used for as long as any pass over it lives, and makes
    that stream wait for the gradient: in a recording that is an error. New tensors have no past.
    """
    programs = [layer.luthier_program for layer in trunk.layers]
    norm = trunk.norm if hasattr(trunk.norm, "luthier_norm") else None
    known = {id(parameter) for program in programs for parameter in program.trained}
    known |= set() if norm is None else {id(norm.weight)}
    made = {id(each): each.detach().requires_grad_() for each in parameters if id(each) in known}
    try:
        for program in programs:
            program.stand_ins = made
        if norm is not None:
            norm.luthier_stand_in = made.get(id(norm.weight))
        yield [made.get(id(each), each) for each in parameters]
    finally:
        for program in programs:
            program.stand_ins = {}
        if norm is not None:
            norm.luthier_stand_in = None


class _Replay(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, embeds_td: Tensor, recording: _Recording, *_: Tensor) -> Tensor:
        recording.embeds.detach()[: embeds_td.shape[0]].copy_(embeds_td)
        recording.forward.replay()
        recording.generation += 1
        ctx.recording, ctx.generation, ctx.tokens = recording, recording.generation, embeds_td.shape[0]
        return recording.out.detach()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        recording: _Recording = ctx.recording
        if recording.generation != ctx.generation:
            raise RuntimeError("another forward pass was replayed in between: its activations are gone")
        recording.d_out.copy_(d_out)
        recording.backward.replay()
        d_embeds = None if recording.d_embeds is None else recording.d_embeds[: ctx.tokens].clone()
        # Copies: the next replay writes over the recording's own, while autograd may still add to these.
        return d_embeds, None, *torch._foreach_mul(recording.grads, 1.0)
