"""The stage that reads, proves and packs the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.curate.contamination.step import STAGE as CONTAMINATION_STAGE
from luthier.data.sources import hash_source
from luthier.pipeline.session import Session
from luthier.pipeline.stage import CODE_VERSION
from luthier.recipe.objective_kind import row_kind
from luthier.recipe.online_rules import split_python
from luthier.recipe.paths import expand
from luthier.report.loss_view import compared_with
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import note
from luthier.runtime.hashing import hash_file, hash_json

__all__ = ["data_depends", "prepare_data", "template_facts"]

LOSSES_FILE = "data/losses.jsonl"
SCORES_FILE = "data/scores.jsonl"
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
        **template_facts(session),
        **_filter_facts(session),
        **_prompt_facts(session),
        **_evaluation_facts(session),
    }


def template_facts(session: Session) -> dict[str, Any]:
    """The content of a chat template in a file: its name says nothing about what is in it."""
    from luthier.model.tokenizer import read_chat_template

    value = session.recipe.model.chat_template
    text = None if value is None else read_chat_template(value)
    return {} if text is None or text == value else {"template": hash_json(text)}


def _say_template(session: Session) -> None:
    """A base that is asked in other words than its own is the usual reason for a tune that seems to do nothing."""
    from luthier.data.template import ChatTemplate
    from luthier.model.contract import other_template

    section = session.recipe.model
    words = other_template(ChatTemplate(session.tokenizer, kwargs=section.chat_template_kwargs), section)
    if words is not None:
        note(f"  note: the recipe asks in other words than the base's own chat template: {words}", style="yellow")


def _filter_facts(session: Session) -> dict[str, Any]:
    """Files of the user that decide which rows stay: functions, lists of rows."""
    filters = session.recipe.data.filters
    if filters is None:
        return {}
    files = {"filter_code": [split_python(one)[0] for one in filters.python]}
    files["filter_lists"] = filters.listed.files if filters.listed is not None else []
    return {name: [hash_file(expand(file)) for file in some] for name, some in files.items() if some}


def _evaluation_facts(session: Session) -> dict[str, Any]:
    """Evaluation rows decide which training rows stay only where `data.decontaminate` drops or refuses some."""
    section = session.recipe.data.decontaminate
    if section is None or section.action not in {"drop", "error"}:
        return {}
    read = {"name", "format", "map", "limit"}
    tasks = [
        {**task.model_dump(mode="json", include=read), "files": session.task_hashes(task)}
        for task in session.recipe.evaluate.tasks
    ]
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
    """Rows as tokens, their manifest, and what was lost on the way."""
    _say_template(session)
    manifest = session.prepared.manifest
    write_json(session.run.path / "data" / "manifest.json", manifest)
    _write_losses(session)
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


def _write_contamination(session: Session) -> None:
    """Each training row that holds an evaluation row, dropped or not; no file when none were looked for."""
    file = session.run.path / CONTAMINATION_FILE
    curated = session.prepared.curated
    if curated is None or CONTAMINATION_STAGE not in curated.report:
        file.unlink(missing_ok=True)
        return
    _write_lines(file, [record for record in curated.records if record["stage"] == CONTAMINATION_STAGE])
    told = curated.report[CONTAMINATION_STAGE]
    listed = ", ".join(f"{count:,} {verdict}" for verdict, count in told["found"].items()) or "none"
    dropped = f", {told['dropped']:,} dropped" if told["dropped"] else ""
    note(f"  training rows like one of {compared_with(told)}: {listed}{dropped}; {CONTAMINATION_FILE}")


def _write_losses(session: Session) -> None:
    """Each dropped or changed row, and the scores of a judge; what an earlier run left is replaced."""
    prepared, folder = session.prepared, session.run.path
    _write_lines(folder / LOSSES_FILE, prepared.losses)
    _write_lines(folder / SCORES_FILE, prepared.curated.scored if prepared.curated else [], keep_empty=False)
    (folder / "data" / "duplicates.jsonl").unlink(missing_ok=True)  # the list of an older Luthier
    for what in ("dropped", "changed"):
        told = prepared.manifest["losses"][what]
        counts = [(", ".join(filter(None, pair)), n) for reason in told for pair, n in _pairs(reason, told[reason])]
        if counts:
            note(f"  {what}: {'; '.join(f'{n:,} {name}' for name, n in counts)}; each one is in {LOSSES_FILE}")


def _pairs(reason: str, stages: dict[str, int]) -> list[tuple[tuple[str, str], int]]:
    return [((reason, stage), count) for stage, count in stages.items()]


def _write_lines(file: Path, records: list[dict[str, Any]], *, keep_empty: bool = True) -> None:
    if records or keep_empty:
        write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    else:
        file.unlink(missing_ok=True)
