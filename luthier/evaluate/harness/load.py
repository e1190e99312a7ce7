"""A task of the recipe with `lm_eval` -> tasks of the harness with their rows, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data.types import Conversation, RowRef
from luthier.evaluate.harness.library import import_harness, undisturbed, version
from luthier.evaluate.task import TaskRow
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import AccessError, DataError, LuthierError, RecipeError
from luthier.runtime.hashing import hash_json

__all__ = ["HarnessTask", "is_file", "load_harness"]

FEWSHOT_SEED = 1234
"""Of the generator that draws worked examples: the harness' own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTask:
    """One or, for a group, several tasks of the harness."""

    name: str
    spec: TaskSpec
    loaded: Mapping[str, Any]
    """What `TaskManager.load` gave."""
    rows: tuple[TaskRow, ...]
    """Question and reference of every document, for the search for contaminated training rows."""
    data_hash: str
    """Hash of the documents that are scored and of the tasks' configurations."""
    version: str
    """Of the harness."""

    @property
    def limit(self) -> int | None:
        """As `Task.limit`; of a group that of each task."""
        return self.spec.limit


def is_file(name: str) -> bool:
    """Whether `lm_eval: name` is a file of the user's, rather than a name."""
    return name.endswith((".yaml", ".yml"))


def load_harness(spec: TaskSpec) -> HarnessTask:
    """Find the task, read its data, set its worked examples.

    Raises:
        EnvironmentProblem: lm-evaluation-harness is not installed.
        RecipeError: no such task, one that cannot be scored here, worked examples it does not allow.
        DataError: its data cannot be read.
        AccessError: its data are on the hub, and that cannot be reached.
    """
    import_harness()
    with undisturbed():
        return _loaded_task(spec)


def _loaded_task(spec: TaskSpec) -> HarnessTask:
    loaded = _load(spec)
    for task in loaded["tasks"].values():
        _check(spec, task)
        _set_up(spec, task)
    rows, seen = [], []
    for name, task in loaded["tasks"].items():
        for index, doc in enumerate(_docs(task, spec.limit)):
            rows.append(_row(task, doc, RowRef(file=f"lm_eval:{name}", line=index + 1)))
            seen.append(_plain(doc))
    configs = {name: _plain(task.dump_config()) for name, task in loaded["tasks"].items()}
    return HarnessTask(
        name=spec.name,
        spec=spec,
        loaded=loaded,
        rows=tuple(rows),
        data_hash=hash_json([seen, configs]),
        version=version(),
    )


def _load(spec: TaskSpec) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    wanted = spec.lm_eval
    assert wanted is not None
    if is_file(wanted) and not Path(wanted).expanduser().is_file():
        raise RecipeError(code="E543", message=f"task `{spec.name}`: there is no file {wanted} (`lm_eval`)")
    if spec.include_path is not None and not Path(spec.include_path).expanduser().is_dir():
        message = f"task `{spec.name}`: `include_path` {spec.include_path} is no folder"
        raise RecipeError(code="E543", message=message)
    folder = str(Path(spec.include_path).expanduser()) if spec.include_path else None
    name = str(Path(wanted).expanduser()) if is_file(wanted) else wanted
    # Looking through the thousands of files of the harness takes seconds; a file of one's own rarely needs them.
    manager = TaskManager(include_path=folder, include_defaults=not is_file(wanted))
    if not is_file(wanted) and wanted not in manager.all_tasks:
        close = get_close_matches(wanted, manager.all_tasks, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
        message = f"task `{spec.name}`: lm-evaluation-harness has no task `{wanted}`"
        raise RecipeError(code="E543", message=message, hint=hint)
    try:
        loaded: dict[str, Any] = manager.load([name])
    except LuthierError:
        raise
    except Exception as error:
        # Tasks are code of others: whatever they raise while reading their data is told with its task.
        raise _unreadable(spec, error) from error
    if not loaded["tasks"]:
        raise RecipeError(code="E543", message=f"task `{spec.name}`: `{wanted}` holds no task")
    return loaded


def _unreadable(spec: TaskSpec, error: Exception) -> LuthierError:
    kind = type(error).__name__
    message = f"task `{spec.name}`: lm-evaluation-harness cannot load `{spec.lm_eval}`: {kind}: {error}"
    if isinstance(error, (ConnectionError, TimeoutError)) or "Offline" in kind or "Hub" in kind:
        hint = "its data are on the hub; without one, give a YAML file with `dataset_path: json` and local `data_files`"
        return AccessError(code="E544", message=message, hint=hint)
    return DataError(code="E544", message=message, hint="see docs/lm-eval.md for a task that reads local files")


def _check(spec: TaskSpec, task: Any) -> None:
    """What cannot be scored here, in words."""
    why = None
    if getattr(task, "UNSAFE_CODE", False):
        why = "it runs code that the model wrote, without a sandbox; a `python` grader runs code in one"
    elif getattr(task, "MULTIMODAL", False):
        why = "it needs pictures or sound"
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        why = "it is a perplexity over documents; use a task of our own with `metric: loss`"
    elif task.OUTPUT_TYPE == "generate_until":
        why = _generation_fault(dict(task.config.generation_kwargs or {}))
    if why is not None:
        message = f"task `{spec.name}`: `{task.task_name}` of lm-evaluation-harness cannot be scored: {why}"
        raise RecipeError(code="E545", message=message)


def _generation_fault(kwargs: dict[str, Any]) -> str | None:
    temperature = kwargs.get("temperature") or 0.0
    if kwargs.get("do_sample") or (temperature > 0 and kwargs.get("do_sample") is None):
        return "it samples (`do_sample: true`), and scores here are of greedy answers; set `do_sample: false`"
    known = {"until", "do_sample", "temperature", "max_gen_toks", "max_new_tokens", "max_tokens", "top_p", "top_k"}
    unknown = sorted(set(kwargs) - known)
    return f"unknown generation_kwargs: {', '.join(unknown)}" if unknown else None


def _set_up(spec: TaskSpec, task: Any) -> None:
    own = task.get_config("num_fewshot")
    if spec.num_fewshot is not None and own == 0 and spec.num_fewshot > 0:
        message = (
            f"task `{spec.name}`: `{task.task_name}` is zero-shot by its own file; num_fewshot: {spec.num_fewshot}"
        )
        raise RecipeError(code="E546", message=message, hint="remove `num_fewshot`, or change the task's file")
    task.set_config(key="num_fewshot", value=spec.num_fewshot if spec.num_fewshot is not None else own or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if spec.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": spec.max_new_tokens}, update=True)


def _docs(task: Any, limit: int | None) -> Any:
    return islice(iter(task.eval_docs), limit)


def _row(task: Any, doc: Any, ref: RowRef) -> TaskRow:
    question, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        if isinstance(question, int) and not isinstance(question, bool):
            question = choices[question]
        if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(choices):
            target = choices[target]
    conversation = Conversation(kind="prompt_completion", ref=ref, prompt=str(question), completion=str(target))
    return TaskRow(ref=ref, conversation=conversation, messages=(), reference=str(target))


def _plain(value: Any) -> Any:
    """JSON values; functions and pictures by their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__name__", None) or type(value).__name__ if callable(value) else str(value)
