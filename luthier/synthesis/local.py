"""Works on a model of this machine: in waves, batch by batch, journalled like answers of a server.

A wave is what all works ask at the same time; it is cut into batches in their order. The draw of a batch is seeded by
its requests, so a resumed job repeats the batch it was killed in and goes on alike. Nothing here is paid, so a
batch that is not whole in the journal is computed again as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from luthier.endpoint.cache import request_key
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import Interrupted, LuthierError, OutOfMemory
from luthier.runtime.hashing import hash_json
from luthier.runtime.signals import Stop
from luthier.synthesis.asking import Ask, Got, Halt, Made, Steps, Work, draw_seed, ended
from luthier.synthesis.journal import Journal
from luthier.synthesis.spec import SynthSpec

__all__ = ["Local"]


@dataclass(frozen=True, slots=True)
class _Request:
    """What is computed, and under which key it is kept."""

    body: dict[str, Any]
    key: str


@dataclass(slots=True)
class _Live:
    """A work under way."""

    index: int
    work: Work
    steps: Steps
    ask: Ask


class Local:
    """The driver for a local model; loaded when the first answer is missing.

    Args:
        spec: With a `local` section.
        journal: Where answers are kept.
        stop: Raised by Ctrl-C.
    """

    def __init__(self, spec: SynthSpec, journal: Journal, stop: Stop) -> None:
        assert spec.local is not None
        self.spec, self.local, self.journal, self.stop = spec, spec.local, journal, stop
        self._loaded: tuple[Any, Any, Any] | None = None
        self._name: str | None = None

    @property
    def host(self) -> str:
        """Name in the journal: the model by content."""
        if self._name is None:
            from luthier.model.identity import base_identity
            from luthier.model.locate import locate_model

            folder = locate_model(self.local.name_or_path, self.local.revision, trust_remote_code=False)
            self._name = f"local {base_identity(folder)['hash']}"
        return self._name

    def run(self, works: Sequence[Work], on_done: Callable[[list[Made]], None]) -> list[list[Made]]:
        """As `Driver.run`."""
        results: list[list[Made]] = [[] for _ in works]
        live: list[_Live] = []

        def step(index: int, work: Work, steps: Steps, advance: Callable[[], Ask]) -> None:
            try:
                live.append(_Live(index, work, steps, advance()))
            except StopIteration as stop:
                results[index] = stop.value
                on_done(results[index])
            except Halt as halt:
                results[index] = ended(work, halt)
                on_done(results[index])

        for index, work in enumerate(works):
            steps = work.start()
            step(index, work, steps, lambda steps=steps: next(steps))  # type: ignore[misc]
        while live:
            wave, live = live, []
            for one, got in self._answers(wave):
                advance = (lambda: one.steps.throw(got)) if isinstance(got, Halt) else (lambda: one.steps.send(got))  # noqa: B023 (called at once)
                step(one.index, one.work, one.steps, advance)
        return results

    def _answers(self, wave: list[_Live]) -> Iterator[tuple[_Live, Got | Halt]]:
        """Answers to a wave, in its order within batches of one kind."""
        for _, kind in groupby(sorted(wave, key=lambda one: one.ask.judge), key=lambda one: one.ask.judge):
            members = list(kind)
            for start in range(0, len(members), self.local.batch_size):
                batch = members[start : start + self.local.batch_size]
                yield from zip(batch, self._batch([one.ask for one in batch]), strict=True)

    def _batch(self, asks: list[Ask]) -> list[Got | Halt]:
        requests = [self._request(ask) for ask in asks]
        missing = [request for request in requests if self.journal.get(request.key, request.body) is None]
        if missing:
            if self.stop.requested:
                raise Interrupted(
                    code="D273", message=f"stopped by {self.stop.signal.name if self.stop.signal else 'a signal'}: "
                    f"answers so far ({len(self.journal):,}) are in {self.journal.path}",
                    hint="the same command goes on from here",
                )  # fmt: skip
            faults = self._compute(requests)
        else:
            faults = {}
        return [faults[place] if place in faults else self._got(request) for place, request in enumerate(requests)]

    def _request(self, ask: Ask) -> _Request:
        sampling, judge = self.spec.sampling, self.spec.judge
        greedy = ask.judge or sampling.temperature == 0
        longest = judge.max_tokens if ask.judge and judge is not None else sampling.max_tokens
        body = {"messages": [dict(message) for message in ask.messages], "max_tokens": longest,
                "temperature": 0.0 if greedy else sampling.temperature, "top_p": 1.0 if greedy else sampling.top_p,
                "seed": draw_seed(self.spec.seed, ask.draw), "batch_size": self.local.batch_size}  # fmt: skip
        return _Request(body, request_key(self.host, body, variant=ask.draw))

    def _got(self, request: _Request) -> Got:
        answer = self.journal.get(request.key, request.body)
        assert answer is not None
        choice = answer["choices"][0]
        return Got(
            text=choice["message"]["content"], finish_reason=choice["finish_reason"], model=self.local.name_or_path,
            parameters={key: value for key, value in request.body.items() if key != "messages"},
            request_id=answer["id"], at=self.journal.at(request.key),
        )  # fmt: skip

    # -- the model

    def _compute(self, requests: list[_Request]) -> dict[int, Halt]:
        """Answer all requests of a batch, and journal them; returns those that cannot be asked."""
        import torch

        from luthier.generation.decode import context_length
        from luthier.generation.generate import generate
        from luthier.model.stops import stop_ids
        from luthier.runtime.console import quiet_progress

        model, tokenizer, template = self._load()
        longest = requests[0].body["max_tokens"]
        room = context_length(model)
        prompts: list[list[int]] = []
        places: list[int] = []
        faults: dict[int, Halt] = {}
        for place, request in enumerate(requests):
            try:
                ids = template.prompt_ids(request.body["messages"])
            except LuthierError as error:
                faults[place] = Halt("bad_request", error.problems[0].message)
                continue
            if room is not None and len(ids) + longest > room:
                faults[place] = Halt("bad_request", f"the prompt has {len(ids)} tokens and {longest} may follow; the "
                                     f"model holds {room}")  # fmt: skip
                continue
            prompts.append(ids)
            places.append(place)
        if not prompts:
            return faults
        first = requests[0].body
        sampling = {}
        if first["temperature"] > 0:
            sampling = {"do_sample": True, "temperature": first["temperature"], "top_p": first["top_p"], "top_k": 0}
        torch.manual_seed(int(hash_json([request.key for request in requests])[:12], 16))
        try:
            with quiet_progress():
                answers = generate(
                    model, tokenizer, prompts, max_new_tokens=longest, stop_ids=stop_ids(tokenizer, model),
                    batch_size=len(prompts), sampling=sampling,
                )  # fmt: skip
        except OutOfMemory as error:
            hint = f"lower `local.batch_size` (now {self.local.batch_size}) or `sampling.max_tokens` (now {longest})"
            raise OutOfMemory(code="E501", message="out of memory while sampling", hint=hint) from error
        for place, ids, answer in zip(places, prompts, answers, strict=True):
            request = requests[place]
            if request.key in self.journal:
                continue
            value = {
                "id": f"local-{request.key[:12]}",
                "choices": [{"message": {"role": "assistant", "content": answer.text},
                             "finish_reason": answer.finish_reason}],
                "usage": {"prompt_tokens": len(ids), "completion_tokens": len(answer.ids)},
            }  # fmt: skip
            self.journal.put(request.key, request.body, value, host=self.host)
        return faults

    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            from luthier.data.template import ChatTemplate
            from luthier.model.load import load_base
            from luthier.model.tokenizer import load_tokenizer
            from luthier.runtime.device import pick_device, set_threads

            device = pick_device()
            set_threads()
            section = ModelSection(name_or_path=self.local.name_or_path, revision=self.local.revision)
            model = load_base(section, device=device, dtype="bfloat16" if device.native_bf16 else "float32")
            tokenizer = load_tokenizer(section)
            self._loaded = (model, tokenizer, ChatTemplate(tokenizer))
        return self._loaded
