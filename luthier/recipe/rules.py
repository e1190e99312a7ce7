"""Rules between the keys of a recipe, one generator for each subject.

The rules look at sections one by one (`Parts`), so that a wrong value in one section does not hide
what is wrong in the others. A rule is silent when a section it needs is None.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel

from luthier.recipe.builtin import FORGETTING
from luthier.recipe.judge_rules import grader_rules, judge_rules
from luthier.recipe.judge_schema import EvaluationJudge
from luthier.recipe.memory_rules import base_rules, recompute_rules
from luthier.recipe.nearest import near
from luthier.recipe.objective import objective_rules
from luthier.recipe.online_rules import (
    grpo_rules,
    split_python,
    surroundings,
    unused_in_data,
    unused_in_grpo,
    unused_in_reward,
)
from luthier.recipe.online_schema import GrpoSection
from luthier.recipe.paths import expand, is_folder, is_url, looks_local, missing_path
from luthier.recipe.positions import Locate
from luthier.recipe.schema import (
    DataSection,
    DecontaminateSection,
    DedupSection,
    ExportSection,
    MethodSection,
    ModelSection,
    ObjectiveSection,
    Recipe,
    Source,
    TaskSpec,
    TrainSection,
    ValidationSection,
)
from luthier.recipe.train_rules import feedback_rules, rate_rules, setting_rules, start_rules
from luthier.recipe.unused import (
    contradictions_in_dedup,
    unused_in_decontaminate,
    unused_in_dedup,
    unused_in_method,
    unused_in_objective,
    unused_in_source,
    unused_in_task,
    unused_in_train,
    unused_in_validation,
)
from luthier.runtime.errors import Problem

__all__ = ["Parts", "apply_rules", "builtin_tasks"]

_SHARD_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s?(KB|MB|GB|KiB|MiB|GiB)\Z")
_TEMPLATE_NAMES = ("messages", "tools", "add_generation_prompt", "documents")
_TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The sections of a recipe that are valid by themselves; None for the others."""

    model: ModelSection | None = None
    data: DataSection | None = None
    sources: Mapping[int, Source] = field(default_factory=dict)
    validation: ValidationSection | None = None
    dedup: DedupSection | None = None
    decontaminate: DecontaminateSection | None = None
    method: MethodSection | None = None
    objective: ObjectiveSection | None = None
    train: TrainSection | None = None
    tasks: Mapping[int, TaskSpec] = field(default_factory=dict)
    judge: EvaluationJudge | None = None
    export: ExportSection | None = None
    output_dir: str | None = None

    @staticmethod
    def of(recipe: Recipe) -> Parts:
        """All of a valid recipe."""
        return Parts(
            model=recipe.model, data=recipe.data, sources=dict(enumerate(recipe.data.train)),
            validation=recipe.data.validation, dedup=recipe.data.dedup,
            decontaminate=recipe.data.decontaminate, method=recipe.method,
            objective=recipe.objective, train=recipe.train,
            tasks=dict(enumerate(recipe.evaluate.tasks)), judge=recipe.evaluate.judge,
            export=recipe.export, output_dir=recipe.output_dir,
        )  # fmt: skip


def apply_rules(parts: Parts, locate: Locate) -> list[Problem]:
    """Every problem that the rules find."""
    rules: tuple[Callable[[Parts, Locate], Iterator[Problem]], ...] = (
        _model, _sources, _validation, _dedup, _decontaminate, _method, _objective, _memory, _train,
        _needs_validation, _tasks, _judge, _export,
    )  # fmt: skip
    return [problem for rule in rules for problem in rule(parts, locate)]


def _unused(section: BaseModel, prefix: str, unused: Mapping[str, str], locate: Locate) -> Iterator[Problem]:
    """A key that was written, is not null, and would have no effect."""
    for key, reason in unused.items():
        if key in section.model_fields_set and getattr(section, key) is not None:
            message = f"`{prefix}.{key}` would have no effect: {reason}"
            yield locate(f"{prefix}.{key}", on="key").problem("C111", message, hint="remove it")


def _file(text: str, key: str, locate: Locate) -> Iterator[Problem]:
    """A path that must exist."""
    missing = missing_path(text) if text else ("empty path", None)
    if missing is not None:
        yield locate(key).problem("C130", missing[0], hint=missing[1])


def _rows_file(text: str, key: str, locate: Locate) -> Iterator[Problem]:
    """Rows: a local path that must exist, or a hub id."""
    if is_url(text):
        yield locate(key).problem(
            "C130", f"`{key}` is a URL; nothing is fetched by URL", hint="download it, and name the file"
        )
    elif not text or looks_local(text):
        yield from _file(text, key, locate)


def _regex(pattern: str, key: str, locate: Locate, *, groups: int = 0) -> Iterator[Problem]:
    """A pattern that must compile and, when its first group is the answer, have one."""
    # Answers are searched with `regex`, which knows more than `re`; the core installs without it.
    engine = import_module("regex") if groups and find_spec("regex") is not None else re
    try:
        found = engine.compile(pattern).groups
    except engine.error as error:
        yield locate(key).problem("C103", f"`{key}` is not a regular expression: {error}")
        return
    if found < groups:
        yield locate(key).problem("C103", f"`{key}` has no group", hint="put the answer in parentheses")


def _model(parts: Parts, locate: Locate) -> Iterator[Problem]:
    model = parts.model
    if model is None:
        return
    local = looks_local(model.name_or_path, suffixes=())
    if not model.name_or_path or local:
        yield from _file(model.name_or_path, "model.name_or_path", locate)
    if local and model.revision is not None:
        message = "`model.revision` would have no effect: model.name_or_path is a local folder"
        yield locate("model.revision", on="key").problem("C111", message, hint="remove it")
    if model.tokenizer is not None and looks_local(model.tokenizer, suffixes=()):
        yield from _file(model.tokenizer, "model.tokenizer", locate)
    if model.chat_template is not None and model.chat_template.lower().endswith(_TEMPLATE_SUFFIXES):
        yield from _file(model.chat_template, "model.chat_template", locate)
    for name in _TEMPLATE_NAMES:
        if name in model.chat_template_kwargs:
            key = f"model.chat_template_kwargs.{name}"
            yield locate(key, on="key").problem(
                "C110", f'"{name}" is filled in by Luthier for each row', hint="remove it"
            )
    for token, count in Counter(model.new_tokens).items():
        if count > 1 or not token:
            wrong = "is listed twice" if token else "is empty"
            yield locate("model.new_tokens").problem(
                "C110", f'"{token}" in `model.new_tokens` {wrong}', hint="remove it"
            )


def _sources(parts: Parts, locate: Locate) -> Iterator[Problem]:
    for index, source in parts.sources.items():
        prefix = f"data.train.{index}"
        yield from _rows_file(source.path, f"{prefix}.path", locate)
        yield from _unused(source, prefix, _unused_hub_keys(source), locate)


def _unused_hub_keys(source: Source) -> dict[str, str]:
    return unused_in_source(source, local=looks_local(source.path), folder=is_folder(source.path))


def _validation(parts: Parts, locate: Locate) -> Iterator[Problem]:
    validation = parts.validation
    if validation is None:
        return
    prefix = "data.validation"
    if validation.path is not None:
        yield from _rows_file(validation.path, f"{prefix}.path", locate)
        if validation.fraction:
            message = "`data.validation.path` and `data.validation.fraction` exclude each other"
            yield locate(f"{prefix}.fraction", on="key").problem("C110", message, hint="keep one of them")
    yield from _unused(validation, prefix, unused_in_validation(validation), locate)


def _dedup(parts: Parts, locate: Locate) -> Iterator[Problem]:
    dedup = parts.dedup
    if dedup is None:
        return
    for key, message, hint in contradictions_in_dedup(dedup):
        yield locate(f"data.dedup.{key}", on="key").problem("C110", message, hint=hint)
    yield from _unused(dedup, "data.dedup", unused_in_dedup(dedup), locate)
    if dedup.semantic is not None and dedup.embedding_model != DedupSection().embedding_model:
        yield from _file(dedup.embedding_model, "data.dedup.embedding_model", locate)


def _decontaminate(parts: Parts, locate: Locate) -> Iterator[Problem]:
    section = parts.decontaminate
    if section is None:
        return
    prefix = "data.decontaminate"
    yield from _unused(section, prefix, unused_in_decontaminate(section), locate)
    given = section.against or parts.tasks or (parts.validation is not None and parts.validation.path)
    if section.action != "off" and not given:
        message = (
            f"`{prefix}` has nothing to compare with: no `evaluate.tasks`, no `data.validation.path`, no `against`"
        )
        hint = "for instance against: [{path: test.jsonl}]"
        yield locate(prefix, on="key").problem("C110", message, hint=hint)
    for index, source in enumerate(section.against):
        place = f"{prefix}.against.{index}"
        yield from _rows_file(source.path, f"{place}.path", locate)
        local, folder = looks_local(source.path), is_folder(source.path)
        yield from _unused(source, place, unused_in_source(source, local=local, folder=folder), locate)
    if section.embedding is not None and section.embedding_model != DecontaminateSection().embedding_model:
        yield from _file(section.embedding_model, f"{prefix}.embedding_model", locate)


def _method(parts: Parts, locate: Locate) -> Iterator[Problem]:
    method = parts.method
    if method is None:
        return
    yield from _unused(method, "method", unused_in_method(method), locate)
    if method.name == "freeze":
        if not method.trainable and method.last_n_layers is None:
            message = "method freeze needs `trainable` or `last_n_layers`: which weights are trained"
            yield locate("method.name").problem("C110", message, hint="for instance last_n_layers: 2")
        for index, pattern in enumerate(method.trainable):
            yield from _regex(pattern, f"method.trainable.{index}", locate)
    elif method.name == "spectrum":
        if method.spectrum_file is not None:
            yield from _file(method.spectrum_file, "method.spectrum_file", locate)
    elif method.name in {"lora", "qlora"}:
        if not method.target_modules:
            yield locate("method.target_modules").problem(
                "C103", "`method.target_modules` is empty", hint="write all-linear"
            )
        elif isinstance(method.target_modules, str) and method.target_modules != "all-linear":
            yield from _regex(method.target_modules, "method.target_modules", locate)
        if method.init_from is not None:
            yield from _file(method.init_from, "method.init_from", locate)
        yield from start_rules(method, parts.model, locate)


def _objective(parts: Parts, locate: Locate) -> Iterator[Problem]:
    objective = parts.objective
    if objective is None:
        return
    yield from _unused(objective, "objective", unused_in_objective(objective), locate)
    if objective.name == "grpo":
        yield from _online(objective.grpo, parts, locate)
        return
    yield from objective_rules(objective, locate)
    if objective.name == "reward" and parts.tasks:
        message = "objective reward trains a model that rates answers and writes none: no task can be scored"
        hint = "remove the tasks; held-out pairs are scored anyway (data.validation)"
        yield locate("evaluate.tasks", on="key").problem("C110", message, hint=hint)


def _online(grpo: GrpoSection, parts: Parts, locate: Locate) -> Iterator[Problem]:
    prefix = "objective.grpo"
    yield from grpo_rules(grpo, locate)
    yield from surroundings(
        grpo, model=parts.model, data=parts.data, method=parts.method, train=parts.train, locate=locate
    )
    yield from _unused(grpo, prefix, unused_in_grpo(grpo), locate)
    if parts.data is not None:
        yield from _unused(parts.data, "data", unused_in_data(), locate)
    for index, reward in enumerate(grpo.rewards):
        place = f"{prefix}.rewards.{index}"
        yield from _unused(reward, place, unused_in_reward(reward), locate)
        if reward.pattern is not None:
            yield from _regex(reward.pattern, f"{place}.pattern", locate, groups=0 if reward.name == "regex" else 1)
        if reward.python is not None and all(split_python(reward.python)):
            yield from _file(split_python(reward.python)[0], f"{place}.python", locate)


def _memory(parts: Parts, locate: Locate) -> Iterator[Problem]:
    if parts.model is not None and parts.method is not None:
        yield from base_rules(parts.model, parts.method, locate)
    if parts.train is not None:
        yield from recompute_rules(parts.train, locate)


def _train(parts: Parts, locate: Locate) -> Iterator[Problem]:
    train = parts.train
    if train is None:
        return
    if train.tokens_per_step != "auto":
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(train, key) != "auto":
                message = f"`train.tokens_per_step` and `train.{key}` exclude each other"
                hint = "keep tokens_per_step, or the two batch keys"
                yield locate(f"train.{key}", on="key").problem("C110", message, hint=hint)
    unused = unused_in_train(train, validates=True)
    unused.pop("tokens_per_step", None)
    yield from _unused(train, "train", unused, locate)
    yield from setting_rules(train, locate)
    yield from rate_rules(train, parts.method, parts.model, locate)


def _needs_validation(parts: Parts, locate: Locate) -> Iterator[Problem]:
    train, validation = parts.train, parts.validation
    if train is None or validation is None:
        return
    validates = validation.path is not None or validation.fraction > 0
    yield from feedback_rules(train, locate, validates=validates)
    if not validates:
        for key in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(train, key):
                message = f"`train.{key}` needs validation data"
                hint = "add data: {validation: {fraction: 0.05}}"
                yield locate(f"train.{key}", on="key").problem("C110", message, hint=hint)
        if train.eval_steps != "auto":
            unused = {"eval_steps": unused_in_train(train, validates=False)["eval_steps"]}
            yield from _unused(train, "train", unused, locate)
    elif train.eval_steps is None:
        for key in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(train, key):
                message = f"`train.{key}` needs validation losses during training, but `train.eval_steps` is null"
                yield locate(f"train.{key}", on="key").problem("C110", message, hint="remove eval_steps: null")


def _tasks(parts: Parts, locate: Locate) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, task in parts.tasks.items():
        prefix = f"evaluate.tasks.{index}"
        if task.name in seen:
            message = f'two tasks are called "{task.name}": evaluate.tasks.{seen[task.name]} and {prefix}'
            yield locate(f"{prefix}.name").problem("C110", message, hint="names must differ")
        seen.setdefault(task.name, index)
        if task.lm_eval is not None:
            if task.lm_eval.endswith((".yaml", ".yml")) and not expand(task.lm_eval).is_file():
                yield locate(f"{prefix}.lm_eval").problem("C130", f"there is no file {task.lm_eval}")
            if task.include_path is not None and not expand(task.include_path).is_dir():
                yield locate(f"{prefix}.include_path").problem("C130", f"there is no folder {task.include_path}")
            yield from _unused(task, prefix, unused_in_task(task), locate)
            continue
        if task.name == FORGETTING:
            yield from _unused(task, prefix, unused_in_task(task), locate)
            continue
        if task.name.startswith("builtin:"):
            message = f'there is no suite "{task.name}"'
            yield locate(f"{prefix}.name").problem("C110", message, hint=f"there is {FORGETTING}")
            continue
        if task.path is not None:
            yield from _rows_file(task.path, f"{prefix}.path", locate)
        elif task.name not in (known := builtin_tasks()):
            ours = ", ".join(known) or "none"
            message = f'task "{task.name}" has no `path` and does not ship with Luthier (those that do: {ours})'
            close = near(task.name, known)
            hint = f'did you mean "{close[0]}"?' if close else "add path: the rows to score"
            yield locate(f"{prefix}.name").problem("C110", message, hint=hint)
        if task.grader is not None:
            yield from grader_rules(task, prefix, locate)
        elif task.metric is None and task.name not in builtin_tasks():
            message = f'task "{task.name}" has no `metric`: how an answer is scored'
            hint = "add metric: exact, contains, regex, number, json_exact or loss"
            yield locate(f"{prefix}.name").problem("C110", message, hint=hint)
        if task.metric == "regex" and task.pattern is None:
            message = "metric regex needs `pattern`, whose first group is the answer"
            yield locate(f"{prefix}.metric").problem("C110", message, hint="for instance pattern: '#### (.*)'")
        if task.pattern is not None:
            yield from _regex(task.pattern, f"{prefix}.pattern", locate, groups=1)
        if task.fewshot_path is not None:
            yield from _rows_file(task.fewshot_path, f"{prefix}.fewshot_path", locate)
        elif task.num_fewshot and task.name not in builtin_tasks():
            message = f"num_fewshot: {task.num_fewshot} needs `fewshot_path`, the rows to take worked examples from"
            yield locate(f"{prefix}.num_fewshot", on="key").problem("C110", message)
        yield from _unused(task, prefix, unused_in_task(task), locate)


def _judge(parts: Parts, locate: Locate) -> Iterator[Problem]:
    yield from judge_rules(parts.judge, list(parts.tasks.values()), locate)


def _export(parts: Parts, locate: Locate) -> Iterator[Problem]:
    if parts.export is not None and not _SHARD_SIZE.match(parts.export.max_shard_size):
        message = f'`export.max_shard_size` must be a size such as 5GB or 500MB; got "{parts.export.max_shard_size}"'
        yield locate("export.max_shard_size").problem("C103", message)
    if parts.output_dir is not None:
        if not parts.output_dir.strip() or "\0" in parts.output_dir:
            yield locate("output_dir").problem("C103", "`output_dir` is empty", hint="for instance runs/first")
        elif "${" in parts.output_dir:
            message = "`output_dir` holds `${`; recipes expand no variables"
            yield locate("output_dir").problem(
                "C103", message, hint="write the folder, or override it: output_dir=$HOME/x"
            )
        elif expand(parts.output_dir).is_file():
            message = f"`output_dir` is a file: {expand(parts.output_dir).absolute()}"
            yield locate("output_dir").problem("C103", message, hint="choose a folder")


def builtin_tasks() -> list[str]:
    """Names of the tasks that ship with Luthier (by file name; `evaluate` is a layer above this one)."""
    library = Path(__file__).parent.parent / "evaluate" / "library"
    return sorted(file.stem for file in library.glob("*.yaml"))
