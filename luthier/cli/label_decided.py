"""What was decided on rows, for `luthier data label`: counts, speed and agreement; the file of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli.output import emit_json, show
from luthier.data.rows import number_of
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.annotate.items import Items
    from luthier.annotate.labels import Labels

__all__ = ["show_status", "write_export"]

_LISTED = 20


def show_status(items: Items, labels: Labels, *, as_json: bool) -> None:
    """Counts, speed, agreement and conflicts."""
    from luthier.annotate.status import status
    from luthier.annotate.terminal import printable

    found = status(items, labels)
    if as_json:
        emit_json(found)
        return
    show(f"{found['distinct']:,} different rows ({found['rows']:,} in all): {found['decided']:,} decided on, "
         f"{found['remaining']:,} remain")  # fmt: skip
    if found["annotators"]:
        show(_table(found["annotators"]))
    for name, own in found["annotators"].items():
        if "left" in own:
            left = own["left"]
            show(printable(f"{name} chose the left answer {left['chosen']} of {left['of']} times "
                           f"(p = {left['p']:.3f} if the side does not matter, exact binomial test)"))  # fmt: skip
    for pair in found["agreement"]:
        kappa = "not defined" if pair["kappa"] is None else f"{pair['kappa']:.3f}"
        show(printable(f"{' and '.join(pair['annotators'])}: {pair['equal']:,} of {pair['rows']:,} equal, "
                       f"Cohen's kappa {kappa}"))  # fmt: skip
    if len(found["agreement"]) > 1 and found["krippendorff_alpha"] is not None:
        show(f"all annotators: Krippendorff's alpha (nominal) {found['krippendorff_alpha']:.3f}")
    for conflict in found["conflicts"][:_LISTED]:
        said = "; ".join(f"{name}: {text}" for name, text in conflict["said"].items())
        show(printable(f"conflict {conflict['file']}:{conflict['line']}  {said}"))
    if len(found["conflicts"]) > _LISTED:
        show(f"{len(found['conflicts']):,} conflicts in all; --json lists them")
    for row in found["changed"][:_LISTED]:
        show(printable(f"changed {row['file']}:{row['line']}  {row['annotator']} had said {row['was']}"))
    if found["gone"]:
        show(f"{number_of(found['gone'], 'decision')} on rows that are in the files no more")


def _table(annotators: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from luthier.annotate.terminal import printable

    table = Table(box=None, pad_edge=False)
    for name in ("annotator", "decided", "of these", "skipped", "remain", "seconds a row", "rows an hour", "time left"):
        table.add_column(name, justify="left" if name in {"annotator", "of these"} else "right")
    for name, own in annotators.items():
        outcomes = ", ".join(f"{count:,} {what}" for what, count in own["outcomes"].items())
        known = bool(own["median_seconds"])
        table.add_row(
            Text(printable(name)), f"{own['decided']:,}", outcomes, f"{own['skipped']:,}", f"{own['remaining']:,}",
            f"{own['median_seconds']:.1f}" if known else "", f"{own['rows_per_hour'] or 0:,.0f}" if known else "",
            f"{own['remaining_seconds'] / 60:,.0f} min" if known else "",
        )  # fmt: skip
    return table


def write_export(items: Items, labels: Labels, out: Path, *, shape: Any, annotator: str | None, how: Any,
                 info: str | None, force: bool, as_json: bool) -> None:  # fmt: skip
    """Write the rows decided for, and beside them those left out with the reason.

    Raises:
        RecipeError: `annotator` decided on nothing, or `out` cannot be written to.
    """
    from luthier.annotate.export import check_export, export
    from luthier.annotate.terminal import printable
    from luthier.runtime.atomic import write_text

    check_export(out, items, force=force, info=info)
    if annotator is not None and annotator not in labels.annotators:
        known = ", ".join(labels.annotators) or "none"
        raise RecipeError(code="D296", message=f"no decisions by {annotator}; annotators are: {known}")
    done = export(items, labels, out, shape=shape, annotator=annotator, how=how, info=info)
    listing = out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".left_out.jsonl")
    if done.left_out:
        write_text(listing, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in done.left_out))
    else:
        listing.unlink(missing_ok=True)  # of an earlier export
    if as_json:
        emit_json({"written": str(out), "rows": done.written, "as": shape, "outcomes": dict(done.by_outcome),
                   "left_out": done.reasons(), "left_out_rows": done.left_out,
                   "listing": str(listing) if done.left_out else None,
                   "columns_left_out": dict(done.columns_left_out)})  # fmt: skip
        return
    show(f"{out}: {number_of(done.written, 'row')} ({_counted(done.by_outcome)})")
    for name, count in done.columns_left_out.items():
        show(printable(f"column `{name}` left out of {number_of(count, 'row')}: a format reads a column of that name"))
    if done.left_out:
        show(f"left out: {_counted(done.reasons())}; {listing} lists them")


def _counted(counts: dict[str, int] | Any) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
