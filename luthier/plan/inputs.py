"""Where a plan's model sizes and document lengths come from, and how far they are known. Loads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from luthier.data.files import DataFile, find_files, is_local
from luthier.data.mixing import passes
from luthier.data.sources import read_conversations
from luthier.data.types import Conversation
from luthier.model.locate import locate_model
from luthier.plan.known import known_model
from luthier.plan.shape import ModelShape, read_shape
from luthier.plan.work import Documents, assumed_documents, documents_from_lengths, documents_from_manifest
from luthier.recipe.objective_kind import pack_capacity, read_as, row_kind
from luthier.recipe.schema import DataSection, MixSection, Recipe, Source
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import LuthierError

__all__ = ["documents_of", "shape_of"]

SAMPLE = 1_000
"""Rows that are read to estimate lengths."""
CHEAP_BYTES = 64 << 20
"""Files above are not looked at: an assumption stands in for them."""
_PIECE = re.compile(r"\d|[A-Za-z]{1,12}|[^\W\d_]|[^\w\s]+|_|\n")
TOKENS_PER_PIECE = 1.09
"""Tokens by words, digits, runs of punctuation, line breaks and single letters beyond ASCII: within 3% on questions
and answers of GSM8K, on our documentation and on our code with SmolLM2's tokenizer."""
TEMPLATE_TOKENS = 5
"""What a chat template adds to a message."""


def shape_of(recipe: Recipe) -> ModelShape:
    """Sizes of the base: of a local folder, from the table that ships with us, or from the hub's `config.json`.

    Raises:
        EnvironmentProblem, RecipeError, AccessError: the model is not there or cannot be read.
    """
    name = recipe.model.name_or_path
    if not Path(name).expanduser().exists() and (known := known_model(name)) is not None:
        return known
    return read_shape(locate_model(name, recipe.model.revision, weights=False))


def documents_of(recipe: Recipe, *, mean_tokens: int | None = None, rows: int | None = None) -> Documents:
    """Number and lengths of the training rows: as given; from the finished data stage of the run folder; estimated
    from local files; else assumed. `Documents.how` says which."""
    data = recipe.data
    if mean_tokens is not None or rows is not None:
        return assumed_documents(max_length=data.max_length, packing=data.packing, mean_tokens=mean_tokens, rows=rows)
    found = _finished_stage(recipe)
    if found is not None:
        return found
    try:
        return _estimated(recipe)
    except (LuthierError, OSError, _NotCheap) as error:
        why = str(error).splitlines()[0][:80] if not isinstance(error, LuthierError) else error.problems[0].message[:80]
        assumed = assumed_documents(max_length=data.max_length, packing=data.packing, mean_tokens=None, rows=None)
        return assumed.with_how(f"{assumed.how}; the data were not looked at: {why}")


class _NotCheap(Exception):
    """Reading would take too long for a plan."""


def _finished_stage(recipe: Recipe) -> Documents | None:
    run = RunFolder(Path(recipe.output_dir))
    try:
        record = run.stage("data")
        manifest = json.loads((run.path / "data" / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError, LuthierError):
        return None
    if record is None or record.depends_on.get("data") != recipe.data.model_dump(mode="json"):
        return None
    if record.depends_on.get("kind", "tokens") != row_kind(recipe.objective.name):
        return None
    how = f"exact: the finished data stage of {run.path}"
    return documents_from_manifest(manifest, max_length=recipe.data.max_length, packing=recipe.data.packing, how=how)


def _estimated(recipe: Recipe) -> Documents:
    """Lengths of the first rows of each source, by their words and digits."""
    data, kind = recipe.data, read_as(row_kind(recipe.objective.name))
    sources: list[list[tuple[int, int, float]]] = []
    exact = True
    for index, source in enumerate(data.train):
        if not is_local(source.path):
            raise _NotCheap(f"{source.path} is not on this disk")
        files = find_files(source.path, split=source.split)
        if sum(file.path.stat().st_size for file in files) > CHEAP_BYTES:
            raise _NotCheap(f"{source.path} is larger than {CHEAP_BYTES >> 20} MiB")
        limit = min(SAMPLE, source.limit or SAMPLE)
        sample = read_conversations(
            source.model_copy(update={"limit": limit}), index, on_empty="drop", loss_on=data.loss_on, kind=kind
        )
        count = _rows(files, source, sample.rows)
        exact = exact and sample.rows < limit
        used = [size for row in sample.conversations if (size := _size(row, data)) is not None]
        factor = source.weight * count / max(1, sample.rows)
        sources.append([(total, trained, factor) for total, trained in used])
    lengths = [row for own, times in zip(sources, _times(data, sources), strict=True) for row in _repeated(own, times)]
    share = _trained_share(data, sum(times for _, _, times in lengths))
    lengths = [(total, trained, times * share) for total, trained, times in lengths]
    return documents_from_lengths(
        lengths, max_length=pack_capacity(kind, data.max_length), packing=data.packing, overlong=data.overlong,
        how=f"estimated from words and digits of {'all rows' if exact else f'the first {SAMPLE:,} rows'}",
    )  # fmt: skip


def _times(data: DataSection, sources: Sequence[Sequence[tuple[int, int, float]]]) -> list[float]:
    """How often each source is used in a mixture by shares; 1 without shares (weights are in the factors)."""
    shares = [source.share for source in data.train if source.share is not None]
    if not shares:
        return [1.0] * len(sources)
    mix = data.mix or MixSection()
    place = {"tokens": 0, "trained_tokens": 1}.get(mix.by)
    totals = [sum((1 if place is None else row[place]) * row[2] for row in own) for own in sources]
    return passes(mix, shares, totals) if all(totals) else [1.0] * len(sources)


def _repeated(rows: Sequence[tuple[int, int, float]], times: float) -> list[tuple[int, int, float]]:
    return [(total, trained, factor * times) for total, trained, factor in rows]


def _trained_share(data: DataSection, rows: float) -> float:
    """Share of the rows that is left to train on when the validation rows are taken out of them."""
    section = data.validation
    held_out = rows * section.fraction if section.path is None else 0.0
    if section.max_rows is not None:
        held_out = min(held_out, section.max_rows)
    return 1.0 - held_out / rows if rows else 1.0


def _rows(files: Sequence[DataFile], source: Source, sampled: int) -> int:
    """Rows of a source: exact when all were sampled, lines of plain JSON lines; else by the size of the files."""
    if sampled < SAMPLE:
        return sampled
    if all(file.kind == "jsonl" and file.path.suffix == ".jsonl" for file in files):
        count = sum(file.path.read_bytes().count(b"\n") for file in files)
    else:
        raise _NotCheap(f"{source.path}: rows of such files cannot be counted in a moment")
    return min(count, source.limit or count)


def _size(row: Conversation, data: DataSection) -> tuple[int, int] | None:
    """(all, trained) tokens of a row, estimated; of a pair the prompt once. None: its longer answer is too long."""
    if not row.answers:
        return _tokens(row, data.loss_on)
    sizes = [_tokens(answer, data.loss_on) for answer in row.answers]
    prompt = max(0, min(total - trained for total, trained in sizes))
    if data.overlong != "truncate" and max(total for total, _ in sizes) > data.max_length:
        return None
    answers = [min(total, data.max_length) - prompt for total, _ in sizes]
    return prompt + max(1, sum(answers)), max(1, sum(trained for _, trained in sizes))


def _tokens(row: Conversation, loss_on: str) -> tuple[int, int]:
    """(all, trained) tokens of a row, estimated."""
    if row.kind == "chat":
        texts = [(str(message.get("role")), str(message.get("content") or "")) for message in row.messages]
        sizes = [_count(text) + TEMPLATE_TOKENS for _, text in texts]
        weights = row.message_weights or [None] * len(texts)
        answers = [
            size
            for (role, _), size, weight in zip(texts, sizes, weights, strict=True)
            if (role == "assistant" or loss_on == "all") and weight != 0
        ]
        trained = sum(answers[-1:] if loss_on == "last_assistant" else answers)
    elif row.kind == "prompt_completion":
        sizes = [_count(row.prompt), _count(row.completion) + 1]
        trained = sizes[1]
    elif row.kind == "text":
        sizes = [_count(row.text) + 1]
        trained = sizes[0]
    else:
        sizes = [_count(segment.text) for segment in row.segments]
        trained = sum(size for size, segment in zip(sizes, row.segments, strict=True) if segment.weight)
    return max(1, round(sum(sizes))), max(1, round(trained))


def _count(text: str) -> float:
    return TOKENS_PER_PIECE * len(_PIECE.findall(text))
