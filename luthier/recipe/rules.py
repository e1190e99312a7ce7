"""Rules between the keys of a recipe, one generator for each subject.

The rules look at sections one by one (`Parts`), so that a wrong value in one section does not hide
what is wrong in the others. A rule is silent when a section it needs is None.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from luthier.recipe.builtin import FORGETTING
from luthier.recipe.distributed_rules import distributed_rules
from luthier.recipe.judge_rules import grader_rules, judge_rules
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
from luthier.recipe.parts import Parts
from luthier.recipe.paths import expand, looks_local
from luthier.recipe.positions import Locate
from luthier.recipe.push_rules import push_rules
from luthier.recipe.row_rules import (
    decontaminate_rules,
    dedup_rules,
    filtering_rules,
    source_rules,
    validation_rules,
)
from luthier.recipe.rule_checks import compiling, existing_file, rows_file, unused_keys
from luthier.recipe.train_rules import feedback_rules, rate_rules, setting_rules, start_rules, step_rules
from luthier.recipe.unused import (
    unused_in_method,
    unused_in_objective,
    unused_in_task,
    unused_in_train,
)
from luthier.runtime.errors import Problem

__all__ = ["apply_rules", "builtin_tasks"]

_SHARD_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s?(KB|MB|GB|KiB|MiB|GiB)\Z")
_TEMPLATE_NAMES = ("messages", "tools", "add_generation_prompt", "documents")
_TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")


def apply_rules(parts: Parts, locate: Locate) -> list[Problem]:
    """Every problem that the rules find."""
    rules: tuple[Callable[[Parts, Locate], Iterator[Problem]], ...] = (
        _model, source_rules, validation_rules, filtering_rules, dedup_rules, decontaminate_rules, _method,
        _objective, _memory, _distributed, _train, _needs_validation, _tasks, _judge, _export,
    )  # fmt: skip
    return [problem for rule in rules for problem in rule(parts, locate)]


def _model(parts: Parts, locate: Locate) -> Iterator[Problem]:
    model = parts.model
    if model is None:
        return
    local = looks_local(model.name_or_path, suffixes=())
    if not model.name_or_path or local:
        yield from existing_file(model.name_or_path, "model.name_or_path", locate)
    if local and model.revision is not None:
        message = "`model.revision` would have no effect: model.name_or_path is a local folder"
        yield locate("model.revision", on="key").problem("C111", message, hint="remove it")
    if model.tokenizer is not None and looks_local(model.tokenizer, suffixes=()):
        yield from existing_file(model.tokenizer, "model.tokenizer", locate)
    if model.chat_template is not None and model.chat_template.lower().endswith(_TEMPLATE_SUFFIXES):
        yield from existing_file(model.chat_template, "model.chat_template", locate)
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


def _method(parts: Parts, locate: Locate) -> Iterator[Problem]:
    method = parts.method
    if method is None:
        return
    yield from unused_keys(method, "method", unused_in_method(method), locate)
    if method.name == "freeze":
        if not method.trainable and method.last_n_layers is None:
            message = "method freeze needs `trainable` or `last_n_layers`: which weights are trained"
            yield locate("method.name").problem("C110", message, hint="for instance last_n_layers: 2")
        for index, pattern in enumerate(method.trainable):
            yield from compiling(pattern, f"method.trainable.{index}", locate)
    elif method.name == "spectrum":
        if method.spectrum_file is not None:
            yield from existing_file(method.spectrum_file, "method.spectrum_file", locate)
    elif method.name in {"lora", "qlora"}:
        if not method.target_modules:
            yield locate("method.target_modules").problem(
                "C103", "`method.target_modules` is empty", hint="write all-linear"
            )
        elif isinstance(method.target_modules, str) and method.target_modules != "all-linear":
            yield from compiling(method.target_modules, "method.target_modules", locate)
        if method.init_from is not None:
            yield from existing_file(method.init_from, "method.init_from", locate)
        yield from start_rules(method, parts.model, locate)


def _objective(parts: Parts, locate: Locate) -> Iterator[Problem]:
    objective = parts.objective
    if objective is None:
        return
    yield from unused_keys(objective, "objective", unused_in_objective(objective), locate)
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
    yield from unused_keys(grpo, prefix, unused_in_grpo(grpo), locate)
    if parts.data is not None:
        yield from unused_keys(parts.data, "data", unused_in_data(), locate)
    for index, reward in enumerate(grpo.rewards):
        place = f"{prefix}.rewards.{index}"
        yield from unused_keys(reward, place, unused_in_reward(reward), locate)
        if reward.pattern is not None:
            yield from compiling(reward.pattern, f"{place}.pattern", locate, groups=0 if reward.name == "regex" else 1)
        if reward.python is not None and all(split_python(reward.python)):
            yield from existing_file(split_python(reward.python)[0], f"{place}.python", locate)


def _memory(parts: Parts, locate: Locate) -> Iterator[Problem]:
    if parts.model is not None and parts.method is not None:
        yield from base_rules(parts.model, parts.method, locate)
    if parts.train is not None:
        yield from recompute_rules(parts.train, locate)


def _distributed(parts: Parts, locate: Locate) -> Iterator[Problem]:
    sections = (parts.distributed, parts.model, parts.method, parts.objective, parts.train)
    distributed, model, method, objective, train = sections
    if distributed is None or model is None or method is None or objective is None or train is None:
        return
    yield from distributed_rules(distributed, model, method, objective, train, locate)


def _train(parts: Parts, locate: Locate) -> Iterator[Problem]:
    train = parts.train
    if train is None:
        return
    yield from step_rules(train, locate)
    unused = unused_in_train(train, validates=True)
    for key in ("tokens_per_step", "rows_per_step"):
        unused.pop(key, None)
    yield from unused_keys(train, "train", unused, locate)
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
            yield from unused_keys(train, "train", unused, locate)
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
            yield from unused_keys(task, prefix, unused_in_task(task), locate)
            continue
        if task.name == FORGETTING:
            yield from unused_keys(task, prefix, unused_in_task(task), locate)
            continue
        if task.name.startswith("builtin:"):
            message = f'there is no suite "{task.name}"'
            yield locate(f"{prefix}.name").problem("C110", message, hint=f"there is {FORGETTING}")
            continue
        if task.path is not None:
            yield from rows_file(task.path, f"{prefix}.path", locate)
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
            yield from compiling(task.pattern, f"{prefix}.pattern", locate, groups=1)
        if task.fewshot_path is not None:
            yield from rows_file(task.fewshot_path, f"{prefix}.fewshot_path", locate)
        elif task.num_fewshot and task.name not in builtin_tasks():
            message = f"num_fewshot: {task.num_fewshot} needs `fewshot_path`, the rows to take worked examples from"
            yield locate(f"{prefix}.num_fewshot", on="key").problem("C110", message)
        yield from unused_keys(task, prefix, unused_in_task(task), locate)


def _judge(parts: Parts, locate: Locate) -> Iterator[Problem]:
    yield from judge_rules(parts.judge, list(parts.tasks.values()), locate)
    if parts.judge is not None and parts.judge.compare and not parts.compare_with_base:
        message = "`evaluate.judge.compare` sets base against tuned, and `evaluate.compare_with_base` is false"
        yield locate("evaluate.judge.compare", on="key").problem("C110", message, hint="remove one of them")


def _export(parts: Parts, locate: Locate) -> Iterator[Problem]:
    if parts.export is not None and not _SHARD_SIZE.match(parts.export.max_shard_size):
        message = f'`export.max_shard_size` must be a size such as 5GB or 500MB; got "{parts.export.max_shard_size}"'
        yield locate("export.max_shard_size").problem("C103", message)
    if parts.export is not None and parts.export.gguf and not parts.export.merge:
        message = "`export.gguf` writes the merged model, and `export.merge` is false"
        yield locate("export.gguf").problem("C110", message, hint="remove one of them")
    if parts.export is not None and parts.export.gguf and parts.objective and parts.objective.name == "reward":
        message = "`export.gguf` writes models that answer; a reward model has no head for words"
        yield locate("export.gguf").problem("C110", message, hint="remove it")
    if parts.export is not None and parts.export.checkpoints and parts.objective and parts.objective.name == "grpo":
        message = "`export.checkpoints` has no effect with objective grpo: TRL's checkpoints are adapters already"
        yield locate("export.checkpoints").problem("C110", message, hint="remove it")
    if parts.export is not None and parts.export.push_to_hub is not None:
        yield from push_rules(parts.export, parts.method, locate)
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
