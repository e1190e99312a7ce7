"""The recipe that `luthier init` writes: short, complete, each comment a trade-off rather than a meaning.

What a key means is in the JSON Schema, which the first line points editors at.
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.recipe.emit import scalar
from luthier.recipe.json_schema import SCHEMA_ID
from luthier.recipe.objective_kind import OBJECTIVES, RowKind

__all__ = ["starter_recipe"]

_COMMENT_COLUMN = 30
_METHOD_COMMENTS = {
    "lora": "small files, little forgetting; full learns more for 4 x the memory; qlora needs least",
    "qlora": "4 bits a weight: least memory, slower, a slightly worse base; lora where it fits",
    "full": "learns most and forgets most; needs about 16 bytes a parameter, lora 3 to 5",
    "freeze": "the other layers stay exactly as they are; lora usually learns more for the same memory",
    "spectrum": "a scan chooses the matrices with the strongest signal; full's rates, less memory than full",
}
_FEWEST_ROWS_TO_HOLD_OUT = 40


def starter_recipe(
    *,
    data_path: str,
    format: str,  # noqa: A002 (the key is called so)
    mapping: Mapping[str, str],
    rows: int,
    model: str,
    max_length: int,
    task_metric: str | None,
    output_dir: str,
    method: str = "lora",
    test_path: str | None = None,
    schema: str = SCHEMA_ID,
    kind: RowKind = "tokens",
) -> str:
    """A commented recipe for one file of examples; `load_recipe` takes it as it is.

    Args:
        data_path: training rows, as the recipe shall name them.
        format: format of a row (`data.train.*.format`).
        mapping: its `map`; may be empty.
        rows: how many there are; small sets get more epochs and, below 40 rows, no validation rows.
        model: hub id or folder.
        max_length: in tokens.
        task_metric: metric of the task; None for `exact`.
        output_dir: run folder.
        method: `lora`, `qlora`, `full`, `freeze` or `spectrum`.
        test_path: rows for the before/after comparison; None leaves the task commented out.
        schema: where editors find the JSON Schema.
        kind: of the rows; decides the objective.
    """
    parts = [
        _head(schema),
        _model(model),
        _data(data_path, format, mapping, rows, max_length, kind),
        _method(method),
        *_objective(kind),
        _train(rows),
        _evaluate(test_path, *(("messages", {}) if kind != "tokens" else (format, mapping)), task_metric or "exact"),
        _export(method),
        f"output_dir: {scalar(output_dir)}\n",
    ]
    return "\n".join(parts)


def _row(line: str, comment: str) -> str:
    """A line with its comment, the comments below each other."""
    return f"{line:<{_COMMENT_COLUMN - 2}}  # {comment}\n"


def _head(schema: str) -> str:
    return (
        f"# yaml-language-server: $schema={schema}\n"
        f"# `luthier schema > {schema}` writes that file: editors then complete and explain each key.\n"
        "# Next: `luthier data check` this file, `luthier plan` it, `luthier run` it. Keys left out have defaults;\n"
        "# resolved.yaml in the run folder shows every value with the reason of each derived one.\n"
    )


def _model(model: str) -> str:
    return (
        "model:\n"
        + _row(f"  name_or_path: {scalar(model)}", "bigger ones know more, at a cost in proportion")
        + _row("  dtype: auto", "bfloat16 halves the memory where the device has units for it; float32 elsewhere")
    )


def _data(path: str, format_name: str, mapping: Mapping[str, str], rows: int, max_length: int, kind: RowKind) -> str:
    loss_on = "all also teaches the questions: useful for raw text, rarely for chats"
    if kind != "tokens":
        loss_on = "every answer behind the shared prompt; last_assistant compares only the last ones"
    if rows >= _FEWEST_ROWS_TO_HOLD_OUT:
        fraction = f"    fraction: {0.05 if rows >= 400 else 0.1}"
        validation = "  validation:\n" + _row(fraction, "rows held out show overfitting, and are not learned from")
    else:
        validation = f"  # {rows} rows are too few to hold some out. With more: validation: {{fraction: 0.05}}\n"
    return (
        "data:\n  train:\n"
        + _row(f"    - path: {scalar(path)}", f"{rows:,} rows; more entries mix files")
        + f"      format: {format_name}\n{_map(mapping, '      ')}{validation}"
        + _row(f"  max_length: {max_length}", "longer rows are dropped and counted; memory grows with it")
        + _row("  overlong: drop", "truncate keeps the row but teaches answers without their end")
        + _row("  loss_on: assistant", loss_on)
        + _row("  packing: true", "several times faster on short rows; false only to compare with other tools")
    )


def _map(mapping: Mapping[str, str], indent: str) -> str:
    if not mapping:
        return ""
    lines = [f"{indent}map:", *(f"{indent}  {scalar(key)}: {scalar(value)}" for key, value in mapping.items())]
    return "\n".join(lines) + "\n"


def _method(method: str) -> str:
    text = "method:\n" + _row(f"  name: {method}", _METHOD_COMMENTS[method])
    if method in {"lora", "qlora"}:
        text += _row("  r: 16", "8 is enough for format and style; 64 holds more facts for little memory")
        text += _row("  lora_alpha: 32", "keep at 2 x r, and the learning rate needs no change with r")
        text += _row("  target_modules: all-linear", "attention alone, [q_proj, v_proj], is faster and clearly weaker")
    elif method == "spectrum":
        text += _row("  top_percent: 30", "of each kind of matrix; more learns more, costs more memory, forgets more")
        text += _row(
            "  train_embeddings: true", "false saves their memory and the backward pass below the lowest choice"
        )
    elif method == "freeze":
        text += _row("  last_n_layers: 2", "more layers learn more, cost more memory, and forget more")
    return text


def _objective(kind: RowKind) -> list[str]:
    """None for plain examples: the default is right."""
    if kind == "tokens":
        return []
    name, others = OBJECTIVES[kind][0], ", ".join(OBJECTIVES[kind][1:])
    why = f"compares with the untuned model; others for pairs: {others}" if kind == "pairs" else "for rated answers"
    return ["objective:\n" + _row(f"  name: {name}", why)]


def _train(rows: int) -> str:
    epochs = 3 if rows < 2_000 else 2 if rows < 20_000 else 1
    return (
        "train:\n"
        + _row(f"  num_train_epochs: {epochs}", "more passes fit better, then memorise: watch the validation loss")
        + _row("  learning_rate: auto", "from method and size; too high forgets or diverges, too low learns nothing")
        + _row("  tokens_per_step: auto", "bigger steps are smoother but fewer; keep some 100 of them")
        + _row("  eval_steps: auto", "each validation pass costs time; null: only at the end")
        + _row("  save_steps: auto", "a checkpoint bounds what a crash can cost, and takes disk")
        + _row("  seed: 0", "a second seed tells luck from learning")
    )


def _evaluate(test_path: str | None, format_name: str, mapping: Mapping[str, str], metric: str) -> str:
    task = (
        "  tasks:\n"
        "    - name: held-out\n"
        f"      path: {scalar(test_path or 'test.jsonl')}\n"
        f"      format: {format_name}\n{_map(mapping, '      ')}"
        f"      metric: {metric}\n"
        + _row("      limit: 200", "200 rows show changes of some 10 points; half of that takes four times the rows")
    )
    if test_path is not None:
        return "evaluate:\n" + task
    why = "  # Scored before and after, on rows that are in no training file: rows seen in training prove nothing.\n"
    return "evaluate:\n" + why + "".join(f"  # {line[2:]}\n" for line in task.splitlines())


def _export(method: str) -> str:
    if method in {"lora", "qlora"}:
        return "export:\n" + _row("  merge: true", "one plain model to serve; false keeps the small adapter only")
    return "export:\n" + _row("  max_shard_size: 5GB", "smaller files resume better over slow networks")
