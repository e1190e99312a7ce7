"""Models of this server asked by the server itself: the grading models of graders."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.api.caller import Caller
from luthier.api.catalog import Catalog
from luthier.api.loading import Loader
from luthier.data.messages import Findings, read_messages
from luthier.scoring.graders.models import Asked
from luthier.serve.engine.request import Sampling
from luthier.serve.host import Served
from luthier.serve.http.asking import Answers, Service
from luthier.serve.http.errors import invalid, unsupported

__all__ = ["InternalChat"]

_KNOWN = {"max_completions_tokens", "seed", "temperature", "top_p"}


class InternalChat:
    """Chat without HTTP; the caller's rights hold as for a request of its own."""

    def __init__(self, catalog: Catalog, loader: Loader) -> None:
        self.catalog, self.loader = catalog, loader
        self.service: Service | None = None
        """Set when the application is made."""

    async def check(self, model: str, caller: Caller) -> None:
        """Whether the caller has this model.

        Raises:
            ApiError: 404.
        """
        await self.catalog.find(model, caller)

    async def ask(
        self, model: str, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any], caller: Caller
    ) -> Asked:
        """One answer.

        Raises:
            ApiError: as a chat completion.
        """
        assert self.service is not None
        _check(sampling)
        async with self.loader.lease(model, await self.catalog.find(model, caller)) as served:
            prompt = await asyncio.to_thread(_prompt, served, messages)
            new = self.service.room(served, prompt, sampling.get("max_completions_tokens"), param="grader.input")
            answers = Answers(self.service, served)
            settings = Sampling(
                temperature=sampling.get("temperature", 1.0), top_p=sampling.get("top_p", 1.0),
                presence_penalty=0.0, frequency_penalty=0.0, logit_bias={}, seed=sampling.get("seed"), logprobs=None,
            )  # fmt: skip
            answers.add(prompt, max_new_tokens=new, sampling=settings, stop=())
            answers.submit()
            try:
                pieces = (await answers.whole())[0]
            finally:
                answers.cancel()
        return Asked(text="".join(piece.text for piece in pieces), tokens=len(prompt) + answers.made)


def _check(sampling: Mapping[str, Any]) -> None:
    if strange := set(sampling) - _KNOWN:
        raise unsupported(f"grader.sampling_params.{min(strange)}", "has no effect on models of this server")
    if not 0 <= sampling.get("temperature", 1.0) <= 2:
        raise invalid("grader.sampling_params.temperature", "`temperature` must be from 0 to 2")
    if not 0 < sampling.get("top_p", 1.0) <= 1:
        raise invalid("grader.sampling_params.top_p", "`top_p` must be above 0 and at most 1")


def _prompt(served: Served, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    findings = Findings()
    found = read_messages(list(messages), ("grader", "input"), findings)
    if findings.faults:
        raise invalid("grader.input", f"`grader.input`: {findings.faults[0][1]}")
    with served.lock:
        return served.template.prompt_ids(found.messages, None)
