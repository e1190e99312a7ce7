"""The stages: what each depends on, what it does, what it leaves. `run.py` goes through them in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.pipeline.session import Session
from luthier.pipeline.spectrum import keep_selection, spectrum_depends
from luthier.recipe.objective import objective_values
from luthier.recipe.objective_kind import row_kind
from luthier.recipe.optimizers import require_optimizer
from luthier.recipe.schema import Recipe
from luthier.runs.stages import differences
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.model.adapters import Tuned

__all__ = ["STAGES", "Stage", "training_fingerprint", "tuned_model"]

# Raised when a change of the code changes results: finished stages of older runs are then redone.
INTENT_FILE = "training.json"
DUPLICATES_FILE = "data/duplicates.jsonl"
CODE_VERSION = {"data": 1, "evaluate": 1, "train": 1, "merge": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    title: str
    wanted: Callable[[Recipe], bool]
    depends_on: Callable[[Session], dict[str, Any]]
    action: Callable[[Session], dict[str, Any]]
    outputs: tuple[str, ...]
    """Files and folders that must exist for the stage to be reused, relative to the run folder."""


# -- data


def _data_depends(session: Session) -> dict[str, Any]:
    model = session.recipe.model
    return {
        "code": CODE_VERSION["data"],
        "data": session.recipe.data.model_dump(mode="json"),
        "sources": session.source_hashes,
        "tokenizer": model.tokenizer or session.identity["tokenizer"],
        "model": model.model_dump(mode="json", include={"chat_template", "chat_template_kwargs", "new_tokens"}),
        "seed": session.recipe.train.seed,
        "kind": row_kind(session.recipe.objective.name),
    }


def _data(session: Session) -> dict[str, Any]:
    manifest = session.prepared.manifest
    write_json(session.run.path / "data" / "manifest.json", manifest)
    _write_duplicates(session)
    dropped = sum(manifest["dropped"].values())
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
    keys = ("hash", "rows_read", "rows_used", "validation_rows", "packs", "tokens", "trained_tokens")
    more = ("trained_fraction", "dropped")
    return {key: manifest[key] for key in (*keys, *more)}


def _write_duplicates(session: Session) -> None:
    """Each row that was dropped for another one; no file when duplicates were not looked for."""
    file = session.run.path / DUPLICATES_FILE
    curated = session.prepared.curated
    if curated is None:
        file.unlink(missing_ok=True)
        return
    write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in curated.records))
    counts = Counter(record["stage"] for record in curated.records)
    listed = ", ".join(f"{count:,} {stage}" for stage, count in counts.items()) or "none"
    note(f"  duplicates dropped: {listed}; each one is in {DUPLICATES_FILE}")


# -- scores


def _scoring_depends(session: Session) -> dict[str, Any]:
    recipe = session.recipe
    return {
        "code": CODE_VERSION["evaluate"],
        "tasks": [
            {"spec": task.model_dump(mode="json"), "files": session.task_hashes(task)} for task in recipe.evaluate.tasks
        ],
        "confidence": recipe.evaluate.confidence,
        "model": recipe.model.model_dump(mode="json"),
        "base": session.identity,
    }


def _score(session: Session, model: Any, label: str) -> dict[str, Any]:
    from luthier.evaluate.run import results_to_json, run_tasks

    recipe = session.resolved.recipe
    results = run_tasks(
        model,
        session.tokenizer,
        session.tasks,
        batch_size=recipe.evaluate.batch_size,
        confidence=recipe.evaluate.confidence,
        template_kwargs=recipe.model.chat_template_kwargs,
        control_tokens=recipe.data.control_tokens,
    )
    file = "before.json" if label == "base" else "after.json"
    value = results_to_json(results, model=label)
    write_json(session.run.path / "eval" / file, value)
    for task in value["tasks"]:
        note(
            f"  {task['name']}: {task['metric']} {task['score']:.3f} [{task['low']:.3f}, {task['high']:.3f}] "
            f"on {task['n']} rows ({task['tokens_per_second']:.0f} tokens/s)"
        )
    return {
        "tasks": [
            {key: task[key] for key in ("name", "metric", "n", "score", "low", "high")} for task in value["tasks"]
        ]
    }


def _baseline(session: Session) -> dict[str, Any]:
    from luthier.model.load import load_base

    section = session.resolved.recipe.model
    model = load_base(section, device=session.device, dtype=section.dtype, quantization=section.quantization)
    return _score(session, model, "base")


def _evaluate(session: Session) -> dict[str, Any]:
    from luthier.model.load import load_tuned

    section = session.resolved.recipe.model
    model = load_tuned(
        section,
        session.run.path / "final",
        device=session.device,
        dtype=section.dtype,
        quantization=section.quantization,
    )
    return _score(session, model, "tuned")


def _evaluate_depends(session: Session) -> dict[str, Any]:
    return {**_scoring_depends(session), "weights": session.stage_result("train")["weights"]}


# -- train


def training_fingerprint(session: Session) -> dict[str, Any]:
    """Everything the trained weights depend on; a checkpoint is resumed only when all of it is equal.

    What is computed again in the backward pass is left out: the same operations give the same bits. How a step is
    split and whether a 4-bit base is kept unpacked stay in: the sums are the same, their rounding is not.
    """
    recipe = session.resolved.recipe
    left_out = {"report_to", "logging_steps", "save_steps", "save_total_limit"}
    left_out |= {"gradient_checkpointing", "gradient_checkpointing_layers"}
    return {
        "code": CODE_VERSION["train"],
        "data": session.stage_result("data")["hash"],
        "base": session.identity,
        "model": recipe.model.model_dump(mode="json", exclude={"trust_remote_code"}),
        "packing": {"packing": recipe.data.packing, "max_length": recipe.data.max_length},
        "method": recipe.method.model_dump(mode="json"),
        "objective": objective_values(recipe.objective),
        "train": recipe.train.model_dump(mode="json", exclude=left_out),
        "device": session.device.type,
        **_unfrozen(session),
    }


def _unfrozen(session: Session) -> dict[str, Any]:
    """The names that Spectrum chose: scores that are nearly equal could be ranked otherwise on another machine."""
    if session.resolved.recipe.method.name != "spectrum" or session.selection is None:
        return {}
    return {"unfrozen": list(session.selection[0].patterns)}


def _train_depends(session: Session) -> dict[str, Any]:
    """As the fingerprint, from the recipe as written: no torch needed, so a finished run is reused in a second."""
    return {**_train_depends_but_data(session), "data": session.stage_result("data")["hash"]}


def _train_depends_but_data(session: Session) -> dict[str, Any]:
    recipe = session.recipe
    return {
        "code": CODE_VERSION["train"],
        "base": session.identity,
        "model": recipe.model.model_dump(mode="json"),
        "method": recipe.method.model_dump(mode="json"),
        "objective": objective_values(recipe.objective),
        "train": recipe.train.model_dump(mode="json", exclude={"report_to", "logging_steps", "save_total_limit"}),
        **spectrum_depends(recipe),
    }


def _intent(session: Session) -> dict[str, Any]:
    """What an unfinished training is of; known from the recipe and the files alone."""
    depends_on = _train_depends_but_data(session)
    return {**depends_on, "data": _data_depends(session)}


def refuse_changed_resume(session: Session, *, wanted: Sequence[Stage]) -> None:
    """An interrupted training may only be continued as it was; told before anything in the folder changes.

    Raises:
        RecipeError: data, base or recipe changed since; lists what.
    """
    run = session.run
    interrupted = run.stage("train") is None and any((run.path / "checkpoints").glob("step-*"))
    intent = run.path / INTENT_FILE
    if session.restart or not interrupted or not intent.is_file() or all(stage.name != "train" for stage in wanted):
        return
    changed = differences(json.loads(intent.read_text("utf-8")), json.loads(json.dumps(_intent(session))))
    if changed:
        raise RecipeError(
            code="T432",
            message=f"{run.path} holds an interrupted training of another kind: " + "; ".join(changed[:10]),
            hint="undo the change to resume, or start over with --restart, or choose another `output_dir`",
        )


def tuned_model(session: Session) -> Tuned:
    """The base as the recipe's method trains it, fresh, with its account on the console."""
    from luthier.model.adapters import apply_method
    from luthier.model.load import load_base
    from luthier.train.loop import START_FOLDER

    recipe = session.resolved.recipe
    require_optimizer(recipe.train, device_type=session.device.type)
    model = load_base(
        recipe.model, device=session.device, dtype=recipe.model.dtype, quantization=recipe.model.quantization,
        reward_seed=recipe.train.seed if recipe.objective.name == "reward" else None,
    )  # fmt: skip
    new_token_ids = session.tokenizer.convert_tokens_to_ids(recipe.model.new_tokens)
    selection = session.selection
    tuned = apply_method(
        model, recipe.method, seed=recipe.train.seed, new_token_ids=new_token_ids,
        start_folder=session.run.path / START_FOLDER, unfrozen=selection[0].patterns if selection else (),
    )  # fmt: skip
    if selection:
        keep_selection(session.run.path, *selection)
    for line in tuned.report.lines():
        note(f"  {line}")
    return tuned


def _train(session: Session) -> dict[str, Any]:
    from luthier.pipeline.preferences import measure_preferences
    from luthier.runtime.hashing import hash_folder
    from luthier.train.loop import fit
    from luthier.train.predicted import tell_next_plan

    resolved = session.resolved
    tuned = tuned_model(session)
    write_json(session.run.path / INTENT_FILE, _intent(session))
    result = fit(
        tuned,
        session.prepared,
        resolved,
        run=session.run,
        tokenizer=session.tokenizer,
        fingerprint=training_fingerprint(session),
        restart=session.restart or session.again,
        reference_cache=read_env().cache_dir / "reference",
    )
    if result.micro_batch is None:  # it was the run that was planned
        tell_next_plan(session.run, result.measured, cache_dir=read_env().cache_dir)
    weights = hash_folder(session.run.path / "final", ("*.safetensors",))
    preferences = measure_preferences(session.run, confidence=resolved.recipe.evaluate.confidence)
    return {"weights": weights, "method": tuned.report.to_json(), **result.to_json(), **preferences}


# -- compare


def _compare_depends(session: Session) -> dict[str, Any]:
    from luthier.runtime.hashing import hash_file

    folder = session.run.path / "eval"
    return {
        "code": CODE_VERSION["evaluate"],
        "before": hash_file(folder / "before.json"),
        "after": hash_file(folder / "after.json"),
        "confidence": session.recipe.evaluate.confidence,
    }


def _compare(session: Session) -> dict[str, Any]:
    from luthier.evaluate.compare import compare_files

    folder = session.run.path / "eval"
    value = compare_files(folder / "before.json", folder / "after.json", confidence=session.recipe.evaluate.confidence)
    write_json(folder / "comparison.json", value)
    for task in value["tasks"]:
        note(
            f"  {task['name']}: {task['before']:.3f} -> {task['after']:.3f}, difference {task['delta']:+.3f} "
            f"[{task['low']:+.3f}, {task['high']:+.3f}], p = {task['p_value']:.2g} ({task['test']}): {task['verdict']}",
            style="green" if task["verdict"] == "better" else None,
        )
    return {"tasks": [{key: item for key, item in task.items() if key != "changed"} for task in value["tasks"]]}


# -- merge and report


def _merge_depends(session: Session) -> dict[str, Any]:
    return {
        "code": CODE_VERSION["merge"],
        "weights": session.stage_result("train")["weights"],
        "base": session.identity,
        "max_shard_size": session.recipe.export.max_shard_size,
    }


def _merge(session: Session) -> dict[str, Any]:
    from luthier.export.merge import merge

    run = session.run.path
    report = merge(
        session.recipe.model,
        run / "final",
        run / "merged",
        max_shard_size=session.recipe.export.max_shard_size,
        device=session.device,
    )
    value = report.to_json()
    write_json(run / "export" / "merge.json", value)
    note(
        f"  merged model and adapter agree: largest logit difference {value['max_logit_difference']:.2g} "
        f"(bound {value['bound']:.2g}) over {value['tokens']} tokens, "
        f"same first choice on {value['argmax_agreement']:.1%}"
    )
    return value


def _report_depends(session: Session) -> dict[str, Any]:
    done = {stage.name: session.run.stage(stage.name) for stage in STAGES[:-1]}
    return {name: record.finished_at for name, record in done.items() if record is not None}


def _report(session: Session) -> dict[str, Any]:
    from luthier.report.write import write_report

    path = write_report(session.run)
    note(f"  {path}")
    return {"file": path.name}


def _always(recipe: Recipe) -> bool:
    return True


def _has_tasks(recipe: Recipe) -> bool:
    return bool(recipe.evaluate.tasks)


def _compares(recipe: Recipe) -> bool:
    return bool(recipe.evaluate.tasks) and recipe.evaluate.compare_with_base


STAGES: tuple[Stage, ...] = (
    Stage(name="data", title="read, render, mask, pack", wanted=_always, depends_on=_data_depends, action=_data,
          outputs=("data/manifest.json",)),
    Stage(name="baseline", title="score the untouched model", wanted=_compares, depends_on=_scoring_depends,
          action=_baseline, outputs=("eval/before.json",)),
    Stage(name="train", title="tune", wanted=_always, depends_on=_train_depends, action=_train, outputs=("final",)),
    Stage(name="evaluate", title="score the tuned model", wanted=_has_tasks, depends_on=_evaluate_depends,
          action=_evaluate, outputs=("eval/after.json",)),
    Stage(name="compare", title="before against after, same rows", wanted=_compares, depends_on=_compare_depends,
          action=_compare, outputs=("eval/comparison.json",)),
    Stage(name="merge", title="into the original base", wanted=lambda recipe: recipe.export.merge,
          depends_on=_merge_depends, action=_merge, outputs=("merged", "export/merge.json")),
    Stage(name="report", title="one page", wanted=_always, depends_on=_report_depends, action=_report,
          outputs=("report.html",)),
)  # fmt: skip
