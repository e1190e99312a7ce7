"""What lm-evaluation-harness asks of a model, answered by our own generation or by an endpoint.

The harness builds messages and hands the rendered text back as the prompt. Both models here remember what a text was
rendered from: the one on this machine asks with the ids of `ChatTemplate.prompt_ids`, those of training, and an
endpoint gets the messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from luthier.data.template import ChatTemplate
from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest, completion_tokens
from luthier.evaluate.harness.likelihood import Pair
from luthier.evaluate.harness.shared import Computing
from luthier.generation.decode import inner_model
from luthier.runtime.console import progress
from luthier.runtime.errors import DataError, Problem, RecipeError
from luthier.runtime.hashing import hash_json

__all__ = ["DEFAULT_NEW_TOKENS", "EndpointModel", "LocalModel", "cut_at"]

DEFAULT_NEW_TOKENS = 256
"""Longest answer when neither recipe nor task says; the harness' own default."""


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    places = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class _Asked(LM):  # type: ignore[misc]
    """What both have in common: answers are greedy, cut at the task's stop strings, and remembered."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self.said: dict[str, tuple[str | None, int, str]] = {}
        """By prompt: why the answer ended, its tokens, and the text before it was cut."""
        self.rendered: dict[str, Any] = {}
        """By prompt: the messages it was rendered from."""
        self.max_new_tokens = DEFAULT_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Only a name for the harness' request cache, which is off."""
        return "luthier"

    def loglikelihood_rolling(self, requests: Any) -> Any:
        """Refused when the task is loaded; see `load.py`."""
        raise NotImplementedError

    def generate_until(self, requests: Any) -> list[str]:
        """Greedy answers, cut at the stop strings of each request."""
        contexts = [request.args[0] for request in requests]
        kwargs = [request.args[1] for request in requests]
        sizes = {_longest(one) for one in kwargs}
        self.max_new_tokens = max(sizes)
        answers = self._answers(contexts, [_longest(one) for one in kwargs])
        results = []
        for context, one, (text, reason, tokens) in zip(contexts, kwargs, answers, strict=True):
            until = one.get("until") or []
            self.said[context] = (reason, tokens, text)
            results.append(cut_at(text, [until] if isinstance(until, str) else until))
        return results

    def _answers(self, contexts: list[str], sizes: list[int]) -> list[tuple[str, str | None, int]]:
        raise NotImplementedError

    def _remember(self, text: str, messages: Any, known: Any) -> None:
        if self.rendered.setdefault(text, known) != known:
            message = f"two conversations of {self.label} look alike once rendered, but have different tokens"
            raise DataError(code="E548", message=message, hint="`data.control_tokens: allow`, or rewrite the rows")


class LocalModel(_Asked):
    """A loaded model.

    Args:
        computing: The model, and the processes that have it.
        template: The template of the run.
        room: Tokens the model holds.
    """

    def __init__(self, computing: Computing, template: ChatTemplate, *, room: int) -> None:
        super().__init__(computing.label)
        self.computing, self.template, self.room = computing, template, room
        self.inputs: list[list[int]] = []
        """Ids of every prompt asked."""

    def settings(self) -> dict[str, Any]:
        """What a score depends on, in the words of `compare.BINDING`."""
        inner = inner_model(self.computing.model)
        own = getattr(self.computing.tokenizer, "chat_template", None)
        return {
            "stop_ids": sorted(self.computing.stop_ids),
            "template_hash": hash_json([own, self.template.kwargs, self.template.control_tokens]),
            "template_kwargs": self.template.kwargs,
            "inputs_hash": hash_json(self.inputs),
            "batch_size": self.computing.batch_size,
            "device": inner.device.type,
            "dtype": str(inner.dtype).removeprefix("torch."),
        }

    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(getattr(self.computing.tokenizer, "chat_template", None))

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """The text of a prompt; its ids, those of training, are kept for when the text comes back."""
        messages, begun = (list(chat_history), "") if add_generation_prompt else _split_begun(chat_history)
        ids = self.template.prompt_ids(messages)
        text = self.template.render(messages, add_generation_prompt=True) + begun
        if begun:
            ids = [*ids, *self.template.encoder.encode(begun, continued=True).ids]
        self._remember(text, messages, ids)
        return text

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        """Log-likelihoods of the continuations."""
        pairs = [self._pair(*request.args[:2]) for request in requests]
        self._require_room([len(context) + len(continuation) for context, continuation in pairs])
        self.inputs += [[*context, *continuation] for context, continuation in pairs]
        return self.computing.likelihoods(pairs)

    def _answers(self, contexts: list[str], sizes: list[int]) -> list[tuple[str, str | None, int]]:
        ids = [self._ids(context) for context in contexts]
        self._require_room([len(one) + size for one, size in zip(ids, sizes, strict=True)])
        self.inputs += ids
        found: list[tuple[str, str | None, int]] = [("", None, 0)] * len(contexts)
        for size in sorted(set(sizes)):
            mine = [index for index, one in enumerate(sizes) if one == size]
            answers = self.computing.answers([ids[index] for index in mine], size)
            for index, answer in zip(mine, answers, strict=True):
                found[index] = (answer.text, answer.finish_reason, len(answer.ids))
        return found

    def _ids(self, text: str) -> list[int]:
        """Of a prompt: what it was rendered with, or the text with what the tokenizer puts in front."""
        if text in self.rendered:
            return list(self.rendered[text])
        encoder = self.template.encoder
        return [*encoder.default_prefix, *encoder.encode(text).ids]

    def _pair(self, context: str, continuation: str) -> Pair:
        encoder = self.template.encoder
        if context in self.rendered:
            return self._ids(context), encoder.encode(continuation, continued=True).ids
        if not context:
            front = encoder.default_prefix or self.computing.stop_ids[:1]
            return list(front), encoder.encode(continuation).ids
        # As the harness: blanks at the end go with what follows, and both are one text for the tokenizer.
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        first = self._ids(bare)
        return first, self._ids(bare + continuation)[len(first) :]

    def _require_room(self, lengths: list[int]) -> None:
        problems = [
            Problem(
                code="E522",
                message=f"{self.label}: request {index} needs {length} tokens, the model holds {self.room}",
                hint="lower the task's `max_new_tokens` or `num_fewshot`",
            )
            for index, length in enumerate(lengths)
            if length > self.room
        ]
        if problems:
            raise DataError(problems=problems)


class EndpointModel(_Asked):
    """A model behind a server: it gets messages, and renders them itself."""

    def __init__(self, endpoint: Endpoint, *, label: str) -> None:
        super().__init__(label)
        self.endpoint = endpoint
        self.inputs: list[str] = []

    def settings(self) -> dict[str, Any]:
        """What is known of a server: the messages it was sent."""
        return {"messages_hash": hash_json(self.inputs), "server": self.endpoint.settings.base_url}

    def has_template(self) -> bool:
        """Servers of chats have one."""
        return True

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """The messages themselves, as JSON."""
        if not add_generation_prompt:
            message = f"{self.label} begins the answer for the model (`gen_prefix`); chat servers do not take that"
            raise RecipeError(code="E545", message=message, hint="score it with the model on this machine")
        text = json.dumps(list(chat_history), ensure_ascii=False)
        self._remember(text, chat_history, list(chat_history))
        return text

    def loglikelihood(self, requests: Any) -> Any:
        """No chat server tells the likelihood of a text it did not write."""
        message = f"{self.label} compares log-likelihoods of given texts; a chat endpoint does not tell them"
        raise RecipeError(code="E545", message=message, hint="score it with the model on this machine")

    def _answers(self, contexts: list[str], sizes: list[int]) -> list[tuple[str, str | None, int]]:
        self.inputs += contexts
        requests = [
            ChatRequest(messages=json.loads(text), max_tokens=size) for text, size in zip(contexts, sizes, strict=True)
        ]
        with progress(self.label, len(requests)) as bar:
            replies = self.endpoint.chat_many(requests, on_answer=lambda: bar.advance(1))
        return [(reply.text, reply.finish_reason, completion_tokens(reply)) for reply in replies]


def _longest(kwargs: Any) -> int:
    """Tokens that an answer may have."""
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens"):
        if kwargs.get(name) is not None:
            return int(kwargs[name])
    return DEFAULT_NEW_TOKENS


def _split_begun(messages: Any) -> tuple[list[Any], str]:
    """The messages before a begun answer, and that beginning."""
    *before, last = messages
    return before, str(last["content"])
