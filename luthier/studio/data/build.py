"""Prepare a view: read, split and tokenise by the code that trains, then write what the pages need.

`python -m luthier.studio.data.build FOLDER` reads an `AskedRows` as JSON from its input. It runs as a process of its
own: the server keeps answering, and its memory is given back.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.runtime.atomic import atomic_folder
from luthier.runtime.errors import LuthierError
from luthier.studio.clean import clean, read_json, without
from luthier.studio.data.asked import AskedRows
from luthier.studio.data.stored import ViewWriter
from luthier.studio.data.summary import manifest_summary

if TYPE_CHECKING:
    from luthier.data.types import TrainRow
    from luthier.explore.rows import Explored, Item

__all__ = ["build_view", "main"]

_ANY_LENGTH = 1 << 24


def build_view(asked: AskedRows, folder: Path, *, more_chips: bool = False) -> None:
    """Write the view of some rows into `folder`, complete or not at all.

    Args:
        asked: Which rows.
        folder: The view's folder; replaced if it exists.
        more_chips: Look for near duplicates, languages, personal data and the rest, too.

    Raises:
        LuthierError: what `luthier data check` would refuse.
    """
    from luthier.studio.data.chips import first_chips, further_chips

    explored, summary, model = _run(asked) if asked.kind == "run" else _file(asked)
    lost = _loses_answer(explored, asked)
    chips = first_chips(explored, lost, max_length=summary["max_length"])
    chips += further_chips(explored) if more_chips else []
    summary["loses_answer"] = sum(lost) if explored.tokenizer is not None else None
    summary["more_chips"] = "done" if more_chips else "offered"
    summary["command"] = asked.command
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        writer = ViewWriter(temporary)
        _write_rows(writer, explored, asked)
        about = {
            "asked": asked.to_json(), "summary": without(clean(summary), asked.root), "model": model,
            "chips": [{"key": f"c{n}", "label": without(chip.label, asked.root), "group": chip.group,
                       "command": chip.command, "rows": int(sum(chip.mask))} for n, chip in enumerate(chips)],
        }  # fmt: skip
        writer.close(about, packs=_packs(explored), chips={f"c{n}": chip.mask for n, chip in enumerate(chips)})


def _write_rows(writer: ViewWriter, explored: Explored, asked: AskedRows) -> None:
    from luthier.explore.turns import turns_of

    for item in explored.items:
        writer.add(
            ref=item.row.ref, split=item.split, source=item.source,
            turns=[(turn.role, turn.text, turn.mark) for turn in turns_of(item.row)],
            notes=[*(item.tokens.notes if item.tokens is not None else ())], why=item.why, tokens=item.tokens,
        )  # fmt: skip


def _run(asked: AskedRows) -> tuple[Explored, dict[str, Any], dict[str, Any]]:
    """The rows of a run, and whether they are still those it trained on."""
    from luthier.explore.rows import explore_recipe
    from luthier.pipeline.rerun import recipe_of_run
    from luthier.recipe.resolve import recipe_to_dict

    folder = Path(asked.path)
    recipe = recipe_of_run(folder)
    explored = explore_recipe(recipe)
    assert explored.prepared is not None
    manifest = explored.prepared.manifest
    summary = manifest_summary(manifest, recipe_to_dict(recipe))
    trained_on = read_json(folder / "data" / "manifest.json").get("hash")
    summary["exact"] = trained_on is not None and trained_on == manifest["hash"]
    return explored, summary, {"section": recipe.model.model_dump(mode="json"), **_encoding(recipe)}


def _encoding(recipe: Any) -> dict[str, Any]:
    return {"control_tokens": recipe.data.control_tokens, "kwargs": dict(recipe.model.chat_template_kwargs)}


def _file(asked: AskedRows) -> tuple[Explored, dict[str, Any], dict[str, Any]]:
    """The rows of a file: how they are read, how long they are."""
    from luthier.data.lengths import length_summary
    from luthier.data.sniff import sniff
    from luthier.explore.rows import explore_files
    from luthier.explore.turns import turns_of
    from luthier.recipe.objective_kind import row_kind
    from luthier.recipe.schema import ModelSection

    looked = sniff(asked.path)
    kind = row_kind(asked.objective) if asked.objective else looked.kind
    rows_format, columns = asked.format, dict(asked.map)
    guessed = asked.format == "auto" and not columns and looked.suggested and looked.format is not None
    if guessed:
        rows_format, columns = str(looked.format), dict(looked.map)
    explored = explore_files([asked.path], format=rows_format, map=columns, kind=kind, tokenizer=asked.tokenizer)
    tokens = [item.tokens for item in explored.items if item.tokens is not None]
    if explored.tokenizer is not None:
        lengths, unit = [len(row) for row in tokens], "tokens"
    else:
        lengths = [sum(len(turn.text) for turn in turns_of(item.row)) for item in explored.items]
        unit = "characters"
    total, trained = sum(map(len, tokens)), sum(row.trained_tokens for row in tokens)
    known = explored.tokenizer is not None
    over = sum(length > asked.max_length for length in lengths) if asked.max_length and known else None
    result = explored.results[0]
    dropped = Counter(item.why.partition(":")[0] for item in explored.items if item.split == "dropped")
    dropped.update(item.reason for item in explored.empty)
    summary = {
        "title": Path(asked.shown).name, "kind": kind, "rows_read": result.rows, "rows_used": len(explored.items),
        "validation_rows": 0, "tokens": total if known else None, "trained_tokens": trained if known else None,
        "trained_fraction": trained / total if known and total else None, "max_length": asked.max_length,
        "sources": [{
            "path": asked.shown, "format": result.format, "rows": result.rows,
            "verdict": looked.verdict if guessed else result.verdict,
            "map": columns or dict(looked.map), "notes": list(result.notes),
        }],
        "lengths": {"unit": unit, **length_summary(lengths)}, "truncated": over, "loses_answer": None,
        "over_max_length": over, "dropped": dict(dropped), "packs": None, "pack_capacity": None,
        "pack_efficiency": None, "duplicates": None, "notes": {}, "has_tokens": known, "has_packs": False,
        "exact": False, "chips": [], "more_chips": "offered", "command": "",
    }  # fmt: skip
    section = ModelSection(name_or_path=asked.tokenizer).model_dump(mode="json") if asked.tokenizer else None
    return explored, summary, {"section": section, "control_tokens": "text", "kwargs": {}}


def _loses_answer(explored: Explored, asked: AskedRows) -> list[bool]:
    """Of each row whether `max_length` takes some of what is trained.

    Rows of a run that were dropped for their length get the tokens that they would have, so that a page can show them.
    """
    if asked.kind == "file":
        return [_trained_beyond(item, asked.max_length) for item in explored.items]
    found = [False] * len(explored.items)
    places = [place for place, item in enumerate(explored.items) if _is_cut(item) or _is_overlong(item)]
    for place, whole in zip(places, _whole(explored, places, asked), strict=True):
        item = explored.items[place]
        if item.tokens is None:
            found[place] = True
            explored.items[place] = replace(item, tokens=whole)
        else:
            found[place] = whole is not None and whole.trained_tokens > item.tokens.trained_tokens
    return found


def _is_cut(item: Item) -> bool:
    return item.tokens is not None and any(note.startswith("truncated ") for note in item.tokens.notes)


def _is_overlong(item: Item) -> bool:
    return item.split == "dropped" and item.why.startswith("overlong")


def _trained_beyond(item: Item, limit: int | None) -> bool:
    from luthier.data.types import Example

    if limit is None or item.tokens is None or len(item.tokens) <= limit:
        return False
    return any(item.tokens.weights[limit:]) if isinstance(item.tokens, Example) else True


def _whole(explored: Explored, places: Sequence[int], asked: AskedRows) -> list[TrainRow | None]:
    """Rows as they would be without `data.max_length`."""
    from luthier.data.branching import tokenize_preferences
    from luthier.data.template import ChatTemplate
    from luthier.data.tokenize import tokenize_all
    from luthier.data.types import Dropped
    from luthier.pipeline.rerun import recipe_of_run
    from luthier.recipe.objective_kind import row_kind

    if not places:
        return []
    recipe = recipe_of_run(Path(asked.path))
    section = recipe.data.model_copy(update={"max_length": _ANY_LENGTH})
    template = ChatTemplate(
        explored.tokenizer, kwargs=recipe.model.chat_template_kwargs, control_tokens=section.control_tokens
    )
    pairs = row_kind(recipe.objective.name) in ("pairs", "rated")
    tokenize = tokenize_preferences if pairs else tokenize_all
    rows = [explored.items[place].row for place in places]
    results = [outcome.result for outcome in tokenize(rows, template, section=section)]
    return [None if isinstance(result, Dropped) else result for result in results]


def _packs(explored: Explored) -> list[list[int]]:
    """Training sequences as numbers of rows of the view."""
    prepared = explored.prepared
    if prepared is None:
        return []
    place = {_key(item.row.ref, item.tokens): number for number, item in enumerate(explored.items)}
    train = [place[_key(row.ref, row)] for row in prepared.train]
    return [[train[row] for row in pack.examples] for pack in prepared.packs]


def _key(ref: Any, row: Any) -> tuple[Any, Any]:
    """Pairs that are read as two rated rows have one place and two labels."""
    return ref, getattr(row, "label", None)


def main(arguments: Sequence[str]) -> int:
    """The process: `FOLDER [more]`, the request on standard input, an error as JSON on standard output."""
    value: Mapping[str, Any] = json.loads(sys.stdin.read())
    try:
        build_view(AskedRows(**value), Path(arguments[0]), more_chips="more" in arguments[1:])
    except LuthierError as error:
        sys.stdout.write(json.dumps({"problems": [asdict(problem) for problem in error.problems]}) + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
