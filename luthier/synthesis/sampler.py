"""Answers of a model of this machine to batches of requests; on several processes each has the model on its device.

Process 0 has the works and the journal (`local.py`), and hands out batches whole: the draws of a batch are seeded by
its requests, so whichever process computes it draws the same, and the files are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import LuthierError, OutOfMemory, RunFailed
from luthier.runtime.hashing import hash_json
from luthier.runtime.signals import stop_on_signals
from luthier.runtime.spread import Spread
from luthier.synthesis.spec import LocalSection

__all__ = ["Answered", "Request", "Sampler", "Together"]

Answered = dict[str, Any] | str
"""The answer as servers give it, or why the request cannot be asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is computed, and under which key it is kept."""

    body: dict[str, Any]
    key: str


class Sampler:
    """The model; loaded when it is first asked."""

    def __init__(self, local: LocalSection) -> None:
        self.local = local
        self._loaded: tuple[Any, Any, Any] | None = None
        self._name: str | None = None

    @property
    def name(self) -> str:
        """The model by content: its name in the journal."""
        if self._name is None:
            from luthier.model.identity import base_identity
            from luthier.model.locate import locate_model

            folder = locate_model(self.local.name_or_path, self.local.revision, trust_remote_code=False)
            self._name = f"local {base_identity(folder)['hash']}"
        return self._name

    def answers(self, requests: Sequence[Request]) -> list[Answered]:
        """One for each request of a batch; those that do not fit into the model are not asked.

        Raises:
            OutOfMemory: with what to lower.
        """
        from luthier.generation.generate import generate
        from luthier.model.stops import stop_ids
        from luthier.runtime.console import quiet_progress

        model, tokenizer, _ = self._load()
        found = [self._prompt(request) for request in requests]
        prompts = [ids for ids in found if not isinstance(ids, str)]
        if not prompts:
            return [fault for fault in found if isinstance(fault, str)]
        first = requests[0].body
        longest, sampling = first["max_tokens"], {}
        if first["temperature"] > 0:
            sampling = {"do_sample": True, "temperature": first["temperature"], "top_p": first["top_p"], "top_k": 0}
        _seed(requests)
        try:
            with quiet_progress():
                said = iter(generate(
                    model, tokenizer, prompts, max_new_tokens=longest, stop_ids=stop_ids(tokenizer, model),
                    batch_size=len(prompts), sampling=sampling,
                ))  # fmt: skip
        except OutOfMemory as error:
            hint = f"lower `local.batch_size` (now {self.local.batch_size}) or `sampling.max_tokens` (now {longest})"
            raise OutOfMemory(code="E501", message="out of memory while sampling", hint=hint) from error
        return [ids if isinstance(ids, str) else _as_a_server(request, ids, next(said))
                for request, ids in zip(requests, found, strict=True)]  # fmt: skip

    def _prompt(self, request: Request) -> list[int] | str:
        """Tokens of the prompt, or what is wrong with it."""
        from luthier.generation.decode import context_length

        model, _, template = self._load()
        longest, room = request.body["max_tokens"], context_length(model)
        try:
            ids: list[int] = template.prompt_ids(request.body["messages"])
        except LuthierError as error:
            return error.problems[0].message
        if room is not None and len(ids) + longest > room:
            return f"the prompt has {len(ids)} tokens and {longest} may follow; the model holds {room}"
        return ids

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


def _seed(requests: Sequence[Request]) -> None:
    import torch

    torch.manual_seed(int(hash_json([request.key for request in requests])[:12], 16))


def _as_a_server(request: Request, ids: list[int], answer: Any) -> dict[str, Any]:
    return {
        "id": f"local-{request.key[:12]}",
        "choices": [{"message": {"role": "assistant", "content": answer.text}, "finish_reason": answer.finish_reason}],
        "usage": {"prompt_tokens": len(ids), "completion_tokens": len(answer.ids)},
    }  # fmt: skip


class Together:
    """Batches computed by all processes at once, a batch each; `Together(sampler)` is one process."""

    def __init__(self, sampler: Sampler, spread: Spread | None = None) -> None:
        self.sampler, self.spread = sampler, spread or Spread()
        self._round = 0
        self._midway = False

    def answers(self, batches: Sequence[Sequence[Request]]) -> list[list[Answered]]:
        """As `Sampler.answers`, of at most as many batches as there are processes; process 0 calls it."""
        self._round, self._midway = self._round + 1, True
        self._exchange("asked", (self.sampler.name, batches))
        found = self._exchange("answers", self.sampler.answers(batches[0]))
        self._midway = False
        return found[: len(batches)]

    def done(self) -> None:
        """Process 0 asks for no more. Where it failed in a batch the others wait for that: its launcher ends them."""
        if self._midway:
            return
        self._round += 1
        self._exchange("asked", None)

    def help(self) -> None:
        """Compute what process 0 asks for, until it is done; called by the others.

        A signal ends process 0, which then says that it is done.

        Raises:
            RunFailed: this process has another model than process 0.
        """
        with stop_on_signals():
            while True:
                self._round += 1
                order = self._exchange("asked", None)[0]
                if order is None:
                    return
                name, batches = order
                if self.sampler.name != name:
                    raise RunFailed(
                        code="L302", message=f"process {self.spread.rank} has another model than process 0 at "
                        f"{self.sampler.local.name_or_path}", hint="all processes must read the same files",
                    )  # fmt: skip
                mine = batches[self.spread.rank] if self.spread.rank < len(batches) else []
                self._exchange("answers", self.sampler.answers(mine) if mine else [])

    def _exchange(self, what: str, value: Any) -> list[Any]:
        return self.spread.exchange(f"batches {self._round}: {what}", value)
