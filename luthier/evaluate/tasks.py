"""From a task of the recipe to rows with a prompt and a reference.

The last assistant message of a row is the reference; what stands before it is the prompt. Raw
rows (`prompt_completion`) keep their raw prompt. Worked examples become earlier turns, after the
system message. Everything that makes a row unusable is found here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.sources import SourceResult, read_conversations
from luthier.data.types import Conversation
from luthier.evaluate.columns import with_columns
from luthier.evaluate.forgetting.suite import forgetting_tasks
from luthier.evaluate.library import LibraryTask, SecondaryMetric, library_names, library_task
from luthier.evaluate.task import Task, TaskRow
from luthier.recipe.builtin import FORGETTING
from luthier.recipe.schema import Source, TaskSpec
from luthier.runtime.errors import DataError, LuthierError, Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.scoring.extract import compile_pattern
from luthier.scoring.metrics import check_reference

if TYPE_CHECKING:
    from luthier.evaluate.harness.load import HarnessTask

__all__ = ["DEFAULT_NEW_TOKENS", "Task", "TaskRow", "load_task", "load_tasks"]

DEFAULT_NEW_TOKENS = 256
"""Longest answer when neither recipe nor task file says."""


def load_tasks(specs: Sequence[TaskSpec]) -> list[Task | HarnessTask]:
    """Load several tasks, those of lm-evaluation-harness among them; what is wrong with any of them is raised at once.

    Raises:
        LuthierError: of the class of the first failure, with the problems of all.
    """
    tasks: list[Task | HarnessTask] = []
    failures: list[LuthierError] = []
    for spec in specs:
        try:
            if spec.lm_eval is not None:
                from luthier.evaluate.harness.load import load_harness

                tasks.append(load_harness(spec))
            elif spec.name == FORGETTING:
                tasks += forgetting_tasks(spec)
            else:
                tasks.append(load_task(spec))
        except LuthierError as failure:
            failures.append(failure)
    if failures:
        raise type(failures[0])(problems=[problem for failure in failures for problem in failure.problems])
    return tasks


def load_task(spec: TaskSpec) -> Task:
    """Read a task's rows and worked examples, and check them.

    A name in the library takes prompt, metric and extraction from there; `path` then only replaces
    the rows, and whatever else the recipe sets wins over the library.

    Raises:
        RecipeError: an unknown name without `path`, no metric, a bad pattern, too few worked examples.
        DataError: rows that cannot be asked or scored, each with file and line.
    """
    shipped = library_task(spec.name) if spec.name in library_names() else None
    metric, pattern = _metric(spec, shipped)
    result = _read(spec, shipped, spec.path, limit=spec.limit)
    shots, fewshot_hash = _worked_examples(spec, shipped, result)
    # A metric of the recipe's own replaces the extraction of the library, its secondary scores included.
    secondary = tuple(shipped.secondary) if shipped and not (spec.metric or spec.pattern or spec.grader) else ()
    rows = _rows(result.conversations, metric, pattern, secondary, shots)
    if spec.grader is not None:
        rows = with_columns(rows, _source(spec, shipped, spec.path, limit=spec.limit))
    return Task(
        name=spec.name,
        version=shipped.version if shipped else 0,
        metric=metric,
        pattern=pattern,
        secondary=secondary,
        rows=rows,
        max_new_tokens=spec.max_new_tokens or (shipped.max_new_tokens if shipped else DEFAULT_NEW_TOKENS),
        num_fewshot=len(shots) // 2,
        fewshot_hash=fewshot_hash,
        data_hash=result.hash,
        grader=spec.grader,
        limit=spec.limit,
    )


def _metric(spec: TaskSpec, shipped: LibraryTask | None) -> tuple[str, str | None]:
    """Metric and pattern, or everything that is wrong with them."""
    problems = []
    if spec.path is None and shipped is None:
        names = ", ".join(library_names())
        problems.append(_of_task(spec, "E510", f"has no `path` and is none of the tasks that ship ({names})"))
    metric = "grader" if spec.grader else spec.metric or (shipped.metric if shipped else None)
    pattern = spec.pattern or (shipped.pattern if shipped and not spec.metric and not spec.grader else None)
    if metric is None:
        hint = "metric: exact | contains | regex | number | json_exact | loss"
        problems.append(_of_task(spec, "E511", "has no `metric`", hint=hint))
    if metric == "regex" and pattern is None:
        problems.append(_of_task(spec, "E512", "metric `regex` needs a `pattern`", hint=r"pattern: 'answer: (\w+)'"))
    if metric == "loss" and pattern is not None:
        problems.append(_of_task(spec, "E512", "metric `loss` extracts nothing, so it takes no `pattern`"))
    if pattern is not None:
        try:
            compile_pattern(pattern)
        except ValueError as error:
            problems.append(_of_task(spec, "E513", f"`pattern` {pattern!r} {error}"))
    if problems:
        raise RecipeError(problems=problems)
    assert metric is not None
    return metric, pattern


def _source(spec: TaskSpec, shipped: LibraryTask | None, path: str | None, *, limit: int | None) -> Source:
    columns, system = dict(spec.map), spec.system
    if shipped is not None:
        columns = columns or (dict(shipped.map) if spec.format == "auto" else {})
        system = system if system is not None else shipped.system
    where: dict[str, Any] = {"path": path}
    if path is None:
        assert shipped is not None
        where = {"path": shipped.rows.path, "name": shipped.rows.name, "split": shipped.rows.split}
    return Source(**where, format=spec.format, map=columns, system=system, limit=limit)


def _read(spec: TaskSpec, shipped: LibraryTask | None, path: str | None, *, limit: int | None) -> SourceResult:
    source = _source(spec, shipped, path, limit=limit)
    return read_conversations(source, 0, on_empty="error", loss_on="last_assistant")


def _worked_examples(
    spec: TaskSpec, shipped: LibraryTask | None, result: SourceResult
) -> tuple[list[dict[str, Any]], str | None]:
    """Turns of the worked examples (user, assistant, user, ...) and their hash."""
    wanted = spec.num_fewshot
    if wanted is None:
        wanted = shipped.num_fewshot if shipped and not spec.fewshot_path else 0
    if spec.fewshot_path and not wanted:
        raise RecipeError(problems=[_of_task(spec, "E514", "`fewshot_path` needs `num_fewshot`, 1 or more")])
    if not wanted:
        return [], None
    if spec.fewshot_path:
        conversations = _read(spec, shipped, spec.fewshot_path, limit=wanted).conversations
        _refuse_scored_shots(spec, conversations, result.conversations)
        pairs = [_shot(conversation) for conversation in conversations]
    else:
        pairs = _shipped_shots(shipped)
    if len(pairs) < wanted:
        where = f"`{spec.fewshot_path}`" if spec.fewshot_path else "the task"
        hint = None if spec.fewshot_path else "give more in `fewshot_path`"
        problem = _of_task(
            spec, "E515", f"`num_fewshot` is {wanted}, but {where} has {len(pairs)} worked examples", hint=hint
        )
        raise RecipeError(problems=[problem])
    turns = [turn for pair in pairs[:wanted] for turn in pair]
    if len(turns) != 2 * wanted:
        raise RecipeError(
            problems=[_of_task(spec, "E516", "worked examples must have one question and one answer each")]
        )
    return turns, hash_json(turns)


def _shipped_shots(shipped: LibraryTask | None) -> list[list[dict[str, Any]]]:
    if shipped is None:
        return []
    return [
        [{"role": "user", "content": shot.question}, {"role": "assistant", "content": shot.answer}]
        for shot in shipped.fewshot
    ]


def _shot(conversation: Conversation) -> list[dict[str, Any]]:
    """Its turns without the system message: the scored row brings its own."""
    return [dict(message) for message in conversation.messages if message["role"] not in ("system", "developer")]


def _refuse_scored_shots(spec: TaskSpec, shots: Iterable[Conversation], rows: Iterable[Conversation]) -> None:
    """A worked example whose question is asked gives its answer away."""
    asked = {hash_json(_question(row)): row.ref for row in rows}
    problems = [
        Problem(
            code="E517",
            message=f"worked example of task `{spec.name}` is the scored row {asked[key]}",
            file=shot.ref.file,
            line=shot.ref.line,
            hint="take the examples from a file that is not scored, for instance the training rows",
        )
        for shot in shots
        if (key := hash_json(_question(shot))) in asked
    ]
    if problems:
        raise DataError(problems=problems)


def _question(conversation: Conversation) -> list[Any]:
    turns = [message for message in conversation.messages if message["role"] != "system"]
    return [[dict(turn) for turn in turns[:-1]], conversation.prompt]


def _rows(
    conversations: Sequence[Conversation],
    metric: str,
    pattern: str | None,
    secondary: Sequence[SecondaryMetric],
    shots: Sequence[Mapping[str, Any]],
) -> tuple[TaskRow, ...]:
    """Prompt and reference of every row; all unusable rows at once."""
    checks = [(metric, pattern, False)] if metric not in ("loss", "grader") else []
    checks += [(second.metric, second.pattern, True) for second in secondary]
    compiled = [(name, compile_pattern(text) if text else None, bare) for name, text, bare in checks]
    rows, problems = [], []
    for conversation in conversations:
        messages, reference, fault = _split(conversation, metric, shots)
        for name, regex, bare in compiled:
            fault = fault or check_reference(name, reference, pattern=regex, bare_reference=bare)
        if fault:
            ref = conversation.ref
            problems.append(Problem(code="E520", message=fault, file=ref.file, line=ref.line))
        rows.append(TaskRow(ref=conversation.ref, conversation=conversation, messages=messages, reference=reference))
    if problems:
        raise DataError(problems=problems)
    return tuple(rows)


def _split(
    conversation: Conversation, metric: str, shots: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], str, str | None]:
    """(prompt messages, reference, what is wrong with the row)."""
    if conversation.kind != "chat":
        if shots:
            return [], "", "worked examples are turns, and this row is raw text: write them into its prompt"
        if conversation.kind == "prompt_completion":
            return [], conversation.completion, None
        what = "`text`" if conversation.kind == "text" else "`segments`"
        fault = None if metric == "loss" else f"rows of {what} have no question: only metric `loss` can score them"
        return [], conversation.text or "".join(piece.text for piece in conversation.segments), fault
    *before, last = conversation.messages
    if last["role"] != "assistant":
        return [], "", f"the last message is of `{last['role']}`: the reference must be an assistant message at the end"
    content = last.get("content")
    if not isinstance(content, str):
        if metric != "loss":
            return [], "", "the last assistant message has no text to compare with (content must be a string)"
        content = ""
    leading = next(
        (index for index, turn in enumerate(before) if turn["role"] not in ("system", "developer")), len(before)
    )
    return [*before[:leading], *shots, *before[leading:]], content, None


def _of_task(spec: TaskSpec, code: str, message: str, *, hint: str | None = None) -> Problem:
    return Problem(code=code, message=f"task `{spec.name}`: {message}", hint=hint)
