"""What the model is, what it was trained on, and how: the first three sections of a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.recipe.emit import dump_yaml
from luthier.report.card.facts import CardFacts
from luthier.report.card.text import bullets, code, fence, number, percent, plain, table
from luthier.report.loss_view import compared_with
from luthier.runtime.scrub import HIDDEN, scrub, scrub_path

__all__ = ["data", "scrubbed", "summary", "training"]

_KINDS = {
    "adapter": "An adapter (PEFT), to be loaded on top of its base",
    "model": "A model trained beyond its base; all its weights are here",
    "merged": "A whole model: base and adapter merged, and compared with the adapter",
    "gguf": "GGUF files for llama.cpp and its kin",
}
_OBJECTIVES = {
    "sft": "supervised fine-tuning", "dpo": "DPO over pairs of answers", "orpo": "ORPO over pairs of answers",
    "simpo": "SimPO over pairs of answers", "kto": "KTO over rated answers", "grpo": "GRPO, online RL",
    "reward": "a reward model over pairs of answers",
}  # fmt: skip
_METHODS = {
    "lora": "LoRA", "qlora": "QLoRA (4-bit base)", "full": "all weights", "freeze": "chosen weights",
    "spectrum": "Spectrum (matrices with the strongest signal)",
}  # fmt: skip
_TOLD = {"dedup", "validation", "decontaminate", "filters"}
_PATHS = (
    "name_or_path", "tokenizer", "chat_template", "path", "fewshot_path", "init_from", "spectrum_file", "output_dir",
    "embedding_model",
)  # fmt: skip


def summary(facts: CardFacts) -> str:
    """Title, what it is, base, licence."""
    base = facts.base
    rows = [("Base", _base(facts))]
    if base.revision:
        rows.append(("Revision of the base", code(base.revision)))
    rows.append(("Licence of the base", f"{plain(base.license)} ({plain(base.license_from)})" if base.license
                 else "unknown: not stated where Luthier could read it"))  # fmt: skip
    rows.append(("Made by", f"{_METHODS.get(facts.method, plain(facts.method))}, "
                 f"{_OBJECTIVES.get(facts.objective, plain(facts.objective))}"))  # fmt: skip
    merge = facts.run.merge
    if facts.kind == "merged" and merge:
        rows.append(("Merged against adapter", f"largest logit difference {merge['max_logit_difference']:.3g} "
                     f"(rounding alone: {merge.get('rounding', merge['bound']):.3g}), same most likely token at "
                     f"{percent(merge['argmax_agreement'])} of {merge['tokens']:,} positions"))  # fmt: skip
    return f"# {plain(facts.name)}\n\n{_KINDS[facts.kind]}. Written by Luthier from the files of the run.\n\n" + table(
        ("", ""), rows
    )


def _base(facts: CardFacts) -> str:
    base = facts.base
    if base.hub_id and base.hub_id == base.shown:
        return code(base.hub_id)
    if base.hub_id:
        return f"{code(base.hub_id)}, used here as {code(base.shown)}"
    return f"{code(base.shown)}, a folder of the machine it was made on; its place on the Hub, if any, is unknown"


def data(facts: CardFacts) -> str:
    """Sources, counts, and what was done to the rows."""
    manifest = facts.run.data
    if manifest is None:
        return "## Data\n\nUnknown: this run folder has no data manifest."
    sources = table(
        ("source", "rows", "format", "licence", "hash"),
        (
            (code(item.shown), number(item.rows) if item.rows is not None else "unknown", plain(item.format),
             plain(item.license) if item.license else "unknown", code(item.hash[:12]))
            for item in facts.sources
        ),
    )  # fmt: skip
    lines = [
        f"{manifest['rows_read']:,} rows read, {manifest['rows_used']:,} trained on, "
        f"{manifest['validation_rows']:,} held out for the validation loss.",
        f"{manifest['tokens']:,} tokens an epoch, {manifest['trained_tokens']:,} of them "
        f"({percent(manifest['trained_fraction'])}) count in the loss.",
    ]
    if manifest.get("dropped"):
        lines.append("Left out: " + _counts(manifest["dropped"]) + ".")
    if manifest.get("truncated"):
        lines.append(
            f"{manifest['truncated']:,} rows cut at the longest length; {manifest['cut_tokens']:,} tokens lost."
        )
    lines.append(f"{manifest.get('duplicates', 0):,} rows repeat an earlier one word for word.")
    lines += _curated(manifest.get("curated", {}))
    text = f"## Data\n\n{sources}\n\n{bullets(lines)}"
    if facts.run.data_card.strip():
        said = "\n".join(
            f"> {plain(line)}" if line.strip() else ">" for line in facts.run.data_card.strip().splitlines()
        )
        text += f"\n\nWhat the maker of the rows says:\n\n{said}"
    return text


def _curated(report: Mapping[str, Any]) -> list[str]:
    """What looks at all rows as a set found; steps this module does not know are told by their counts."""
    lines = []
    if dedup := report.get("dedup"):
        lines.append("Duplicates looked for and dropped: " + (_counts(dedup.get("dropped", {})) or "none") + ".")
    if near := report.get("validation"):
        what = f"{near['dropped']:,} training rows dropped" if "dropped" in near else "groups kept on one side"
        lines.append(f"Near-duplicates of validation rows (similarity {number(near.get('threshold'))}): {what}.")
    if decon := report.get("decontaminate"):
        lines.append(
            f"{decon['of_rows']:,} training rows compared with {plain(compared_with(decon))}: "
            f"{_counts(decon.get('found', {})) or 'none alike'}; {decon.get('dropped', 0):,} dropped."
        )
    for name, stage in ((report.get("filters") or {}).get("stages") or {}).items():
        counts = {key: stage.get(key, 0) for key in ("dropped", "changed")}
        lines.append(f"Filter {plain(name)}, over {stage.get('rows', 0):,} rows: {_counts(counts) or 'nothing found'}.")
    for name, step in report.items():
        if name not in _TOLD and isinstance(step, Mapping):
            counts = {
                key: value for key, value in step.items() if isinstance(value, int) and not isinstance(value, bool)
            }
            dropped = step.get("dropped")
            counts |= dropped if isinstance(dropped, Mapping) else {}
            lines.append(f"{plain(name.replace('_', ' ').capitalize())}: {_counts(counts) or 'nothing changed'}.")
    return lines


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:,} {plain(name)}" for name, value in counts.items() if isinstance(value, int) and value)


def training(facts: CardFacts) -> str:
    """Trained parameters, steps, losses, time; the recipe as the user wrote it."""
    train = facts.run.train
    rows = [(what, shown) for what, shown in _numbers(facts, train) if shown]
    recipe = dump_yaml(scrubbed(facts.recipe)) if facts.recipe else ""
    text = "## Training\n\n" + (table(("", ""), rows) or "The training has not finished.")
    return text + (f"\n\nThe recipe, paths and secrets taken out:\n\n{fence(scrub(recipe), 'yaml')}" if recipe else "")


def _numbers(facts: CardFacts, train: Mapping[str, Any]) -> list[tuple[str, str]]:
    report = train.get("method") if isinstance(train.get("method"), Mapping) else {}
    assert isinstance(report, Mapping)
    rows = []
    if report.get("trainable") is not None and report.get("total"):
        share = report["trainable"] / report["total"]
        rows.append(("trained parameters", f"{report['trainable']:,} of {report['total']:,} ({percent(share)})"))
    if facts.kind == "adapter":
        rows.append(("rank, alpha", f"{number(facts.files.get('r', ''))}, {number(facts.files.get('lora_alpha', ''))}"))
    names = (
        ("steps", "steps"), ("epochs", "epochs"), ("tokens seen", "tokens"), ("of them in the loss", "trained_tokens"),
        ("first loss", "first_loss"), ("last loss", "final_loss"), ("validation loss", "eval_loss"),
        ("lowest validation loss", "best_eval_loss"), ("weights from step", "weights_from_step"),
        ("first mean reward", "first_reward"), ("last mean reward", "final_reward"),
    )  # fmt: skip
    rows += [(title, number(train[key])) for title, key in names if train.get(key) is not None]
    if train.get("seconds") is not None:
        rows.append(("time", f"{train['seconds']:,.0f} s{_processes(train)}"))
    if train.get("peak_bytes"):
        rows.append(("peak memory", f"{train['peak_bytes'] / 2**30:.2f} GiB"))
    return rows


def _processes(train: Mapping[str, Any]) -> str:
    """` on 8 processes (fsdp2)`; ` on 1 process` for one."""
    count = train.get("processes") or 1
    strategy = f" ({plain(train['strategy'])})" if train.get("strategy") else ""
    return f" on {count:,} processes{strategy}" if count > 1 else " on 1 process"


def scrubbed(value: Any, key: str = "") -> Any:
    """A recipe without places of this machine: paths keep their last part, the rest loses secrets."""
    if isinstance(value, Mapping):
        return {str(name): scrubbed(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if _secret_name(key) and len(value) > 0:
        return HIDDEN
    return scrub_path(value) if key in _PATHS else scrub(value)


def _secret_name(key: str) -> bool:
    name = key.lower()
    if name.endswith("_env") or "tokens" in name:
        return False
    return name.endswith(("token", "secret", "password", "api_key", "access_key", "apikey"))
