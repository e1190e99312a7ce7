"""Statistics of rows: everything `luthier data stats` says, as one JSON value. Every number is a plain count.

Lengths are in characters (code points) of all texts of a row, tools and thoughts included, and in tokens where a
tokenizer is known: all tokens of the row as the model sees it, template included.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from luthier.data.content import row_hash
from luthier.data.lengths import length_summary
from luthier.data.types import Conversation, TrainRow
from luthier.explore.languages import guess_languages
from luthier.explore.rows import Explored, Item
from luthier.explore.turns import Turn, text_to_embed, turns_of

__all__ = ["compute_stats"]

_DUPLICATES_NAMED = 20


def compute_stats(explored: Explored, *, languages: bool = True, examples: int = 3) -> dict[str, Any]:
    """All statistics.

    Args:
        explored: The rows.
        languages: Guess the language of each row, if py3langid is installed; else that is said.
        examples: Longest and shortest rows to name.

    Returns:
        `rows`, `splits`, `sources` (one entry each), `dropped`, `kinds`, `characters` (of rows, and by role), `tokens`
        (None without a tokenizer), `turns`, `roles`, `system`, `tools`, `languages` (None if not guessed),
        `duplicates`, `longest`, `shortest`.
    """
    items = explored.items
    turns = [turns_of(item.row) for item in items]
    characters = [sum(len(turn.text) for turn in own) for own in turns]
    guessed = guess_languages([text_to_embed(own, "conversation") for own in turns]) if languages else None
    return {
        "title": explored.title,
        "rows": len(items),
        "splits": _counted(item.split for item in items),
        "sources": _sources(items, characters),
        "dropped": _dropped(explored),
        "kinds": _counted(item.row.kind for item in items),
        "characters": {"rows": length_summary(characters), "total": sum(characters), "by_role": _by_role(turns)},
        "tokens": _tokens(explored),
        "turns": _turns(items),
        "roles": _roles(turns),
        "system": _system(turns),
        "tools": _tools(items, turns),
        "languages": None if guessed is None else _counted(guessed),
        "duplicates": _duplicates(items),
        "longest": _extremes(items, characters, examples, longest=True),
        "shortest": _extremes(items, characters, examples, longest=False),
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _sources(items: Sequence[Item], characters: Sequence[int]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for item, length in zip(items, characters, strict=True):
        entry = found.setdefault(
            item.source, {"source": item.source, "rows": 0, "dropped": 0, "characters": 0, "tokens": 0, "trained": 0}
        )
        entry["rows"] += 1
        entry["dropped"] += item.split == "dropped"
        entry["characters"] += length
        if item.tokens is not None:
            entry["tokens"] += len(item.tokens)
            entry["trained"] += item.tokens.trained_tokens
    return list(found.values())


def _dropped(explored: Explored) -> dict[str, int]:
    """Rows by the reason why nothing of them is trained."""
    reasons = [item.why.partition(":")[0] for item in explored.items if item.split == "dropped"]
    return _counted([*reasons, *(item.reason for item in explored.empty)])


def _by_role(turns: Sequence[Sequence[Turn]]) -> dict[str, Any]:
    """Lengths in characters of single turns, by role."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for own in turns:
        for turn in own:
            lengths[turn.role].append(len(turn.text))
    return {role: length_summary(own) | {"total": sum(own)} for role, own in lengths.items()}


def _tokens(explored: Explored) -> dict[str, Any] | None:
    if explored.tokenizer is None:
        return None
    rows: list[TrainRow] = [item.tokens for item in explored.items if item.tokens is not None]
    lengths = [len(row) for row in rows]
    total, trained = sum(lengths), sum(row.trained_tokens for row in rows)
    value: dict[str, Any] = {
        "rows": length_summary(lengths), "total": total, "trained": trained,
        "trained_share": trained / total if total else 0.0, "max_length": explored.max_length,
    }  # fmt: skip
    by_split: dict[str, Any] = {}
    for split in dict.fromkeys(item.split for item in explored.items if item.tokens is not None):
        own = [item.tokens for item in explored.items if item.split == split and item.tokens is not None]
        by_split[split] = {"total": sum(map(len, own)), "trained": sum(row.trained_tokens for row in own)}
    return value | {"by_split": by_split}


def _turns(items: Sequence[Item]) -> dict[str, Any]:
    """Messages a row, of a pair those of one answer; a prompt and its completion are two, plain text is one."""
    counts = [_messages(item.row) for item in items]
    return {"mean": sum(counts) / len(counts) if counts else 0.0, "total": sum(counts),
            "counts": {str(number): rows for number, rows in sorted(Counter(counts).items())}}  # fmt: skip


def _messages(row: Conversation) -> int:
    if row.answers:
        return max(_messages(answer) for answer in row.answers)
    if row.kind == "chat":
        return len(row.messages)
    return {"text": 1, "segments": len(row.segments)}.get(row.kind, 2)


def _roles(turns: Sequence[Sequence[Turn]]) -> dict[str, int]:
    return _counted(turn.role for own in turns for turn in own if turn.mark not in {"reasoning", "call"})


def _system(turns: Sequence[Sequence[Turn]]) -> dict[str, int]:
    texts = [turn.text for own in turns for turn in own if turn.role in {"system", "developer"}]
    return {"rows": sum(any(t.role in {"system", "developer"} for t in own) for own in turns),
            "different": len(set(texts))}  # fmt: skip


def _tools(items: Sequence[Item], turns: Sequence[Sequence[Turn]]) -> dict[str, int]:
    return {
        "rows_with_tools": sum(any(turn.role == "tools" for turn in own) for own in turns),
        "rows_with_calls": sum(any(turn.mark == "call" for turn in own) for own in turns),
        "calls": sum(_calls(item.row) for item in items),
        "rows_with_reasoning": sum(any(turn.mark == "reasoning" for turn in own) for own in turns),
    }


def _calls(row: Conversation) -> int:
    if row.answers:
        return max(_calls(answer) for answer in row.answers)
    return sum(
        len(message.get("tool_calls") or ()) + bool(message.get("function_call")) for message in row.messages
    )  # fmt: skip


def _duplicates(items: Sequence[Item]) -> dict[str, Any]:
    """Rows that repeat an earlier one word for word, and those of them whose earlier one is in another split."""
    first: dict[str, int] = {}
    again: list[tuple[int, int]] = []
    for index, item in enumerate(items):
        earlier = first.setdefault(row_hash(item.row), index)
        if earlier != index:
            again.append((index, earlier))
    across = [(row, of) for row, of in again if {items[row].split, items[of].split} - {"dropped"} and
              items[row].split != items[of].split and "dropped" not in {items[row].split, items[of].split}]  # fmt: skip
    return {
        "rows": len(again),
        "across_splits": len(across),
        "examples": [
            {"row": items[row].ref, "of": items[of].ref} for row, of in (across + again)[:_DUPLICATES_NAMED]
        ],
    }  # fmt: skip


def _extremes(items: Sequence[Item], characters: Sequence[int], count: int, *, longest: bool) -> list[dict[str, Any]]:
    order = sorted(range(len(items)), key=lambda index: (-characters[index] if longest else characters[index], index))
    found = []
    for index in order[:count]:
        row = items[index].tokens
        entry = {"ref": items[index].ref, "split": items[index].split, "characters": characters[index]}
        found.append(entry | ({"tokens": len(row)} if row is not None else {}))
    return found
