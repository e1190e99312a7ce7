"""The stage that reads, proves and packs the rows."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from luthier.curate.contamination.step import STAGE as CONTAMINATION_STAGE
from luthier.data.sources import hash_source
from luthier.pipeline.session import Session
from luthier.pipeline.stage import CODE_VERSION
from luthier.recipe.objective_kind import row_kind
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import note

__all__ = ["data_depends", "prepare_data"]

DUPLICATES_FILE = "data/duplicates.jsonl"
CONTAMINATION_FILE = "data/contamination.jsonl"


def data_depends(session: Session) -> dict[str, Any]:
    """What the rows depend on."""
    model = session.recipe.model
    return {
        "code": CODE_VERSION["data"],
        "data": session.recipe.data.model_dump(mode="json"),
        "sources": session.source_hashes,
        "tokenizer": model.tokenizer or session.identity["tokenizer"],
        "model": model.model_dump(mode="json", include={"chat_template", "chat_template_kwargs", "new_tokens"}),
        "seed": session.recipe.train.seed,
        "kind": row_kind(session.recipe.objective.name),
        **_prompt_facts(session),
        **_evaluation_facts(session),
    }


def _evaluation_facts(session: Session) -> dict[str, Any]:
    """Evaluation rows decide which training rows stay only where `data.decontaminate` drops or refuses some."""
    section = session.recipe.data.decontaminate
    if section is None or section.action not in {"drop", "error"}:
        return {}
    tasks = [session.task_hashes(task) for task in session.recipe.evaluate.tasks]
    against = [hash_source(source.path, split=source.split, name=source.name) for source in section.against]
    return {"evaluation": {"tasks": tasks, "against": against}}


def _prompt_facts(session: Session) -> dict[str, Any]:
    """What decides which prompts online RL can use."""
    if not session.is_online:
        return {}
    grpo = session.recipe.objective.grpo
    kept = grpo.model_dump(mode="json", include={"reference_column", "max_completion_length"})
    needs = [reward.model_dump(mode="json", include={"name", "python", "pattern"}) for reward in grpo.rewards]
    return {"prompts": {**kept, "rewards": needs}}


def prepare_data(session: Session) -> dict[str, Any]:
    """Rows as tokens, their manifest, and what was dropped as a duplicate."""
    manifest = session.prepared.manifest
    write_json(session.run.path / "data" / "manifest.json", manifest)
    _write_duplicates(session)
    _write_contamination(session)
    dropped = sum(manifest["dropped"].values())
    if session.is_online:
        note(
            f"  {manifest['rows_used']:,} prompts ({manifest['references']:,} with a reference), "
            f"{manifest['validation_rows']:,} held out, {dropped:,} dropped; {manifest['tokens']:,} tokens"
        )
    else:
        _say_rows(manifest, dropped)
    keys = ("hash", "rows_read", "rows_used", "validation_rows", "packs", "tokens", "trained_tokens")
    more = ("trained_fraction", "dropped")
    return {key: manifest[key] for key in (*keys, *more)}


def _say_rows(manifest: dict[str, Any], dropped: int) -> None:
    note(
        f"  {manifest['rows_used']:,} training rows, {manifest['validation_rows']:,} validation rows, "
        f"{dropped:,} dropped; {manifest['tokens']:,} tokens, {manifest['trained_fraction']:.0%} trained; "
        f"{manifest['packs']:,} sequences, "
        f"{manifest['pack_efficiency']:.0%} full; every mask proven; cache {manifest['cache']}"
    )
    if "preferences" in manifest:
        from luthier.data.preference_stats import preference_lines

        for line in preference_lines(manifest["preferences"]):
            note(f"  {line}")


def _write_duplicates(session: Session) -> None:
    """Each row that was dropped for another one; no file when duplicates were not looked for."""
    file = session.run.path / DUPLICATES_FILE
    curated = session.prepared.curated
    if curated is None or not {"dedup", "validation"} & set(curated.report):
        file.unlink(missing_ok=True)
        return
    records = [record for record in curated.records if record["stage"] != CONTAMINATION_STAGE]
    write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    counts = Counter(record["stage"] for record in records)
    listed = ", ".join(f"{count:,} {stage}" for stage, count in counts.items()) or "none"
    note(f"  duplicates dropped: {listed}; each one is in {DUPLICATES_FILE}")


def _write_contamination(session: Session) -> None:
    """Each training row that holds an evaluation row, dropped or not; no file when none were looked for."""
    file = session.run.path / CONTAMINATION_FILE
    curated = session.prepared.curated
    if curated is None or CONTAMINATION_STAGE not in curated.report:
        file.unlink(missing_ok=True)
        return
    records = [record for record in curated.records if record["stage"] == CONTAMINATION_STAGE]
    write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    told = curated.report[CONTAMINATION_STAGE]
    listed = ", ".join(f"{count:,} {verdict}" for verdict, count in told["found"].items()) or "none"
    dropped = f", {told['dropped']:,} dropped" if told["dropped"] else ""
    note(
        f"  training rows like one of {told['against_rows']:,} evaluation rows: {listed}{dropped}; {CONTAMINATION_FILE}"
    )
