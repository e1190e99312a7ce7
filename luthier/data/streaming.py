"""Rows for sets larger than memory: read once, tokenised with proven masks, kept on disk (`stored.py`).

    rows, one after the other -> masks and ids, 256 at a time -> disk -> split, mixture, packs from lengths and hashes

The same rows, packs and losses as in memory. An entry of the cache belongs to the bytes of the files, the options that
touch a row, and all that `cache.key_parts` names, so that an unchanged set is neither parsed nor tokenised again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.curated import Curate
from luthier.data.describe import build_manifest
from luthier.data.losses import account_stored
from luthier.data.mixing import choose_rows, mix_report
from luthier.data.prepared import Prepared, left_out_row, pack_rows, require_targets, wanted_sources, warn, warn_raw
from luthier.data.row_cache import open_rows
from luthier.data.sources import SourceResult, source_files
from luthier.data.split import held_out
from luthier.data.stored import RowStore, StoredRows
from luthier.data.tally import Tally
from luthier.data.template import ChatTemplate
from luthier.recipe.data_rules import needs_all_rows
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import DataSection
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, Problem
from luthier.runtime.host_memory import free_memory_bytes

__all__ = ["prepare_streaming", "streams"]

MEMORY_PER_BYTE = 20
"""Peak memory of rows prepared in memory, in bytes for each byte of plain JSON Lines. 9.6 was measured on 20,000 chats
of two short turns (238 bytes a row), where rows cost most for their size; twice that leaves room for what follows."""
_EXPANSION = {".gz": 5, ".bz2": 6, ".xz": 6, ".zst": 5, ".parquet": 4}
_MOST_OF_MEMORY = 0.5

Places = npt.NDArray[np.int64]


def streams(section: DataSection, kind: RowKind, curate: Curate | None) -> bool:
    """Whether the rows are kept on disk; tells why where the recipe leaves it open and they are large.

    Raises:
        DataError: `streaming: true` with keys that ask for all rows at once.
    """
    if section.streaming is False:
        return False
    needs = needs_all_rows(section, None)
    if kind != "tokens":
        needs.append((f"rows of kind {kind}", "need all of them"))
    if curate is not None and not needs:
        # It runs by itself where a recipe has `evaluate.tasks`; {action: off} is how to say that it should not.
        needs.append(("data.decontaminate", "looks at all of them (write `{action: off}` to leave it out)"))
    if section.streaming:
        problems = [
            Problem(code="D248", message=f"`data.streaming` keeps no rows in memory, and `{key}` {why}",
                    hint="streaming: false, or prepare the rows once (`luthier data dedup --out`)")
            for key, why in needs
        ]  # fmt: skip
        if problems:
            raise DataError(problems=problems)
        return True
    expected = _expected_memory(section)
    free = free_memory_bytes()
    if expected <= _MOST_OF_MEMORY * free:
        return False
    told = f"the rows would take about {expected / 2**30:,.1f} GiB in memory, and {free / 2**30:,.1f} GiB are free"
    if needs:
        note(f"warning: {told}; they stay in memory, because `{needs[0][0]}` {needs[0][1]}", style="yellow")
        return False
    note(f"  rows are kept on disk: {told} (data.streaming)", style="dim")
    return True


def _expected_memory(section: DataSection) -> float:
    """Bytes that the rows would take in memory, by the size of their files."""
    sizes = 0.0
    for source in wanted_sources(section):
        if source.limit is not None:
            continue  # how much of a file its first rows are is not known; they are few as a rule
        for file in source_files(source, Counter()):
            sizes += file.path.stat().st_size * _EXPANSION.get(Path(file.shown).suffix.lower(), 1)
    return sizes * MEMORY_PER_BYTE


def prepare_streaming(
    section: DataSection, template: ChatTemplate, *, seed: int, cache_dir: Path | None = None
) -> Prepared:
    """`prepare` for rows that stay on disk. Without a `cache_dir` they live in a temporary folder, as long as `train`.

    Raises:
        DataError: as `prepare`.
        EnvironmentProblem: the disk does not allow it.
    """
    about, store, tally, state = open_rows(section, template, cache_dir)
    tally.raise_refused()
    lengths, trained, sources = store.column("tokens"), store.column("trained"), store.column("source")
    own = len(section.train)
    usable = np.flatnonzero((lengths > 0) & (sources < own))
    apart = np.flatnonzero((lengths > 0) & (sources == own))
    if not section.validation.path and section.validation.fraction:
        hashes = store.hashes(usable)
        keys = held_out(hashes, section.validation, seed)
        is_apart = np.fromiter((key in keys for key in hashes), bool, len(usable))
        usable, apart = usable[~is_apart], usable[is_apart]
    used = _mixed(usable, store, section, seed, tally)

    def rows(places: Places) -> StoredRows:
        return StoredRows(store, places, lengths[places], trained[places])

    train, validation = rows(used[0]), rows(apart)
    results = [
        SourceResult(conversations=[], dropped=[], path=source.path, **{**said, "notes": tuple(said["notes"])})
        for source, said in zip(wanted_sources(section), about["sources"], strict=True)
    ]
    require_targets(bool(train.trained.any()), tally, sum(result.rows for result in results))
    packs, capacity = pack_rows(train.lengths.tolist(), section, "tokens")
    manifest = build_manifest(
        sources=results, train=train, validation=validation, packs=packs, tally=tally,
        duplicates=_duplicates(store, np.flatnonzero(sources < own)), overlap=_overlap(store, usable, apart),
        template=template, cache_state=state, kind="tokens", capacity=capacity,
    )  # fmt: skip
    manifest["mix"] = used[1]
    losses = account_stored(
        results,
        used=Counter(sources[np.unique(used[0])].tolist()),
        held_out=Counter(sources[apart].tolist()),
        tally=tally,
    )
    manifest["losses"] = losses.summary
    manifest["streaming"] = {"rows": len(store), "bytes": sum(said["bytes"] for said in about["files"].values())}
    warn(manifest)
    warn_raw(about["raw"], template.tokenizer)
    return Prepared(train=train, validation=validation, packs=packs, manifest=manifest, losses=losses.records)


def _mixed(
    usable: Places, store: RowStore, section: DataSection, seed: int, tally: Tally
) -> tuple[Places, dict[str, Any]]:
    """Places of the rows of an epoch, and the report on the mixture."""
    sizes: dict[str, Any] = {"tokens": store.column("tokens")[usable].astype(np.int64)}
    sizes["trained_tokens"] = store.column("trained")[usable].astype(np.int64)
    sizes["rows"] = np.ones(len(usable), np.int64)
    sources = store.column("source")[usable].astype(np.int64)
    chosen = choose_rows(
        section, seed, sources=sources, sizes=sizes.__getitem__, hashes=lambda wanted: store.hashes(usable[wanted])
    )
    tally.drop_all(left_out_row(store.ref(int(usable[place])), section) for place in chosen.left_out)
    report = mix_report(
        section, sources=sources, tokens=sizes["tokens"], trained=sizes["trained_tokens"], chosen=chosen
    )
    return usable[chosen.used], report


def _duplicates(store: RowStore, rows: Places) -> int:
    return len(rows) - len(np.unique(store.column("hash")[rows].view("S16")))


def _overlap(store: RowStore, train: Places, validation: Places) -> int:
    hashes = store.column("hash").view("S16")
    return int(np.isin(hashes[validation], hashes[train]).sum()) if len(validation) else 0
