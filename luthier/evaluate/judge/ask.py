"""Questions to a judge, and its answers as JSON. What is judged is material, never an instruction.

An answer that cannot be used is asked for once more, with what was wrong; then the row has none. No failure becomes a
verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest
from luthier.recipe.judge_schema import EvaluationJudge
from luthier.runtime.console import progress
from luthier.runtime.hashing import hash_json
from luthier.scoring.answer_json import answer_json

__all__ = ["Judge", "Unusable", "blocks", "question_text"]

_T = TypeVar("_T")


class Unusable(Exception):
    """An answer that is no verdict; the text says why."""


def question_text(row: Mapping[str, Any]) -> str:
    """What both models were asked."""
    if row["messages"]:
        return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in row["messages"])
    return str(row["prompt"])


def blocks(parts: Sequence[tuple[str, str]]) -> str:
    """Named texts between marks that none of them can hold: a mark is a hash of all of them."""
    mark = hash_json([text for _, text in parts])[:12]
    return "\n\n".join(f"[{mark} {name}]\n{text}\n[{mark} end]" for name, text in parts)


@dataclass(frozen=True, slots=True)
class Judge:
    """A server's model, and how it is asked."""

    section: EvaluationJudge
    client: Endpoint

    def ask(
        self, system: str, texts: Sequence[str], read: Callable[[Mapping[str, Any]], _T], *, form: str, label: str
    ) -> list[tuple[_T | None, str]]:
        """(verdict or None, reason or what was wrong) for every text.

        Args:
            system: The task.
            texts: What is judged.
            read: From the JSON object to a verdict; raises `Unusable`.
            form: The form of an answer, repeated when one is unusable.
            label: Shown beside the progress bar.

        Raises:
            LuthierError: the server cannot be used, or the budget is used up.
        """
        asked = [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in texts]
        with progress(label, len(asked)) as bar:
            replies = self.client.chat_many(
                [self._request(messages) for messages in asked], on_answer=lambda: bar.advance(1)
            )
        found = [_read(reply.text, read) for reply in replies]
        left = [index for index, (verdict, _) in enumerate(found) if verdict is None]
        again = [
            self._request(
                [
                    *asked[index],
                    {"role": "assistant", "content": replies[index].text},
                    {"role": "user", "content": f"That was no usable answer: {found[index][1]}. {form}"},
                ]
            )
            for index in left
        ]
        for index, reply in zip(left, self.client.chat_many(again) if again else [], strict=True):
            found[index] = _read(reply.text, read)
        return found

    def _request(self, messages: Sequence[Mapping[str, Any]]) -> ChatRequest:
        section = self.section
        return ChatRequest(
            messages=messages, max_tokens=section.max_tokens, temperature=section.temperature, extra=section.extra_body
        )


def _read(text: str, read: Callable[[Mapping[str, Any]], _T]) -> tuple[_T | None, str]:
    try:
        value = answer_json(text)
        if not isinstance(value, dict):
            raise Unusable("it is no JSON object")
        return read(value), str(value.get("reason") or "")
    except ValueError:
        return None, "it is no JSON object"
    except Unusable as error:
        return None, str(error)
