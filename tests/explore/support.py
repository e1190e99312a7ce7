"""Rows to explore, made in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.types import Conversation, RowRef
from luthier.explore.rows import Explored, Item
from tests.explore.planted import planted

PAYLOADS = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    '"><img src=x onerror="window.pwned=3">',
    "<svg/onload=window.pwned=4>",
    "<!--<script>window.pwned=5//",
    "javascript:window.pwned=6",
    "<iframe srcdoc='<script>parent.pwned=7</script>'></iframe>",
    "{{constructor.constructor('window.pwned=8')()}}",
    "<style>*{background:url(http://192.0.2.1/x)}</style><link rel=stylesheet href=http://192.0.2.1/y>",
    "\u2028</textarea><a href='data:text/html,<script>window.pwned=10</script>' autofocus onfocus=window.pwned=10>",
)
"""What must stay text: script elements, handlers, URLs, frames, templates, styles, line separators."""


def chat_row(messages: Sequence[dict[str, Any]], line: int = 1, *, file: str = "a.jsonl", **keys: Any) -> Conversation:
    return Conversation(
        kind="chat", ref=RowRef(file, line), messages=tuple(messages), message_weights=(None,) * len(messages), **keys
    )


def asked(question: str, answer: str, line: int = 1, *, file: str = "a.jsonl") -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return chat_row(messages, line, file=file)


def item(row: Conversation, split: str = "train", source: str = "a.jsonl", **keys: Any) -> Item:
    return Item(row=row, split=split, source=source, **keys)


def planted_set(
    n: int, tests: int = 0, *, without: tuple[str, ...] = (), topics: int = 8
) -> tuple[Explored, list[str]]:
    """Rows with known topics; those of `without` come only among the test rows."""
    rows = [(*row, "train") for row in planted(n, topics=topics, seed=1, without=without)]
    rows += [(*row, "test") for row in planted(tests, topics=topics, seed=2)]
    items = [
        item(asked(question, answer, line, file=f"{split}.jsonl"), split, f"{split}.jsonl")
        for line, (_, question, answer, split) in enumerate(rows, 1)
    ]
    return Explored(title="planted", items=items), [row[0] for row in rows]


def hostile_set(n: int = 40) -> Explored:
    """Every payload as text, role, file name and source."""
    rows = []
    for line in range(1, n + 1):
        bad = PAYLOADS[line % len(PAYLOADS)]
        messages = [
            {"role": "user", "content": f"words of row {line} {bad}"}, {"role": bad, "content": bad},
            {"role": "assistant", "content": bad + " answer", "reasoning_content": bad},
        ]  # fmt: skip
        row = chat_row(messages, line, file=f"{bad}.jsonl", tools=[{"name": bad}])
        rows.append(item(row, "train" if line % 4 else "test", bad, why=bad if line == 3 else ""))
    return Explored(title=PAYLOADS[1], items=rows)


def page_of(explored: Explored, file: Path, **keys: Any) -> Path:
    from luthier.explore.chart import draw_chart
    from luthier.explore.page import render_map

    file.write_text(render_map(draw_chart(explored, languages=False, **keys)), "utf-8")
    return file
