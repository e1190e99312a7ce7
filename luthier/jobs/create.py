"""An OpenAI create body -> a job, and a job -> the recipe that `luthier run` gets.

Layers of the recipe, each over the one before: what the service sets, `recipe` and `recipe_of_base` of `api.yaml`,
what the body says in OpenAI's words, the body's `luthier` object. The whole is checked by the loader of recipes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.jobs.body import AUTO, Wanted, parse_body
from luthier.jobs.core import new_id
from luthier.jobs.errors import Invalid, JobProblem, NotFound, problem
from luthier.jobs.guarded import refused_keys
from luthier.jobs.merge import given, merged
from luthier.jobs.records import FileRecord, JobRecord
from luthier.jobs.settings import EMBEDDED, ApiSettings
from luthier.jobs.store import Store
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.paths import looks_local
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["environment_of", "job_from_body", "recipe_of"]

_KEYS = {
    "n_epochs": ("train.num_train_epochs", ("train.num_train_epochs", "train.max_steps")),
    "batch_size": (
        "train.rows_per_step",
        (
            "train.rows_per_step", "train.tokens_per_step", "train.per_device_train_batch_size",
            "train.gradient_accumulation_steps", "data.packing",
        ),
    ),
    "learning_rate_multiplier": (
        "train.learning_rate_multiplier", ("train.learning_rate_multiplier", "train.learning_rate"),
    ),
    "beta": ("objective.beta", ("objective.beta",)),
}  # fmt: skip
"""Hyperparameter -> its key, and the keys of a recipe that say the same: beside one of them, `auto` says nothing."""
_OF_RECIPE = ("learning_rate_multiplier", "beta")
"""Of these `auto` is left to the recipe: what it comes to depends on the objective."""
_DOTTED = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)*)`")


def job_from_body(body: Any, store: Store, settings: ApiSettings, owner: str) -> JobRecord:
    """A job as `Store.create_job` takes it.

    Args:
        body: the parsed JSON.
        store: for files and tuned models of the owner.
        settings: of the service.
        owner: of the key.

    Raises:
        Invalid: with every problem and its `param`: J102 files, J130 to J136 fields, C1xx recipe keys.
    """
    wanted, problems = parse_body(body)
    base = _base(wanted, store, settings, owner, problems) if wanted.model else None
    for param in ("training_file", "validation_file"):
        file_id = getattr(wanted, param)
        if file_id and not any(found.param == param for found in problems):
            _check_file(store, file_id, owner, param, problems)
    problems += refused_keys(wanted.luthier, settings.allow)
    if wanted.integrations and "wandb" not in settings.integrations:
        message = "this service sends nothing to wandb"
        hint = "its operator can allow it with `integrations: [wandb]` in api.yaml"
        problems.append(problem("J136", message, param="integrations", hint=hint))
    id_ = new_id("ftjob-")
    record = JobRecord(
        id=id_, owner=owner, created_at=store.now(), model=wanted.model, base=base or EMBEDDED,
        method={"type": wanted.method, wanted.method: {"hyperparameters": dict(wanted.hyperparameters)}},
        hyperparameters=dict(wanted.hyperparameters), training_file=wanted.training_file,
        validation_file=wanted.validation_file, suffix=wanted.suffix,
        seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed, metadata=wanted.metadata,
        integrations=wanted.integrations, luthier=wanted.luthier, run_name=id_,
        priority=settings.priority.get(owner, 0),
    )  # fmt: skip
    if base is not None and not any(found.param == "training_file" for found in problems):
        problems += _recipe_problems(record, store, settings, {found.param for found in problems})
    if problems:
        raise Invalid(problems=problems)
    return replace(record, hyperparameters=_known_now(wanted.hyperparameters))


def recipe_of(job: JobRecord, store: Store, settings: ApiSettings, *, runs: Path | str = "runs") -> dict[str, Any]:
    """The recipe of a job as a mapping; `luthier.recipe.load.dump_yaml` writes it.

    Args:
        job: with `hyperparameters` as far as they are known.
        store: knows where the files are.
        settings: of the service.
        runs: folder of the run folders.

    Raises:
        NotFound: J102 a file is gone.
    """
    base = settings.base_recipe(job.base)
    own: dict[str, Any] = {
        "name": f"{job.model} {job.suffix}" if job.suffix else job.model,
        "model": {"name_or_path": job.base},
        "data": {"train": [_source(job.training_file, store, job.luthier)]},
        "objective": {"name": "dpo" if job.method["type"] == "dpo" else "sft"},
        "train": {"seed": job.seed},
        "output_dir": str(Path(runs) / job.run_name),
    }
    if job.validation_file is not None:
        own["data"]["validation"] = {"path": str(store.file_path(store.file(job.validation_file)))}
    if job.integrations:
        own["train"]["report_to"] = ["wandb"]
    own = merged(own, _started_from(job, store))
    said = merged(base, job.luthier)
    own = merged(own, _hyperparameters(job, said))
    luthier = dict(job.luthier)
    if isinstance(data := luthier.get("data"), Mapping):
        luthier["data"] = {key: value for key, value in data.items() if key != "train"}
    whole = merged(merged(base, own), luthier)
    known = [key for key in Recipe.model_fields if key in whole]
    return {key: whole[key] for key in [*known, *(key for key in whole if key not in known)]}


def environment_of(job: JobRecord) -> dict[str, str]:
    """Variables of the child process that say where wandb writes to."""
    names = {"project": "WANDB_PROJECT", "name": "WANDB_NAME", "entity": "WANDB_ENTITY"}
    result: dict[str, str] = {}
    for integration in job.integrations:
        wandb = integration["wandb"]
        result |= {variable: wandb[key] for key, variable in names.items() if wandb.get(key)}
        if wandb.get("tags"):
            result["WANDB_TAGS"] = ",".join(wandb["tags"])
    return result


def _base(wanted: Wanted, store: Store, settings: ApiSettings, owner: str, problems: list[JobProblem]) -> str | None:
    """What the recipe loads for `model`."""
    name = wanted.model
    if name in settings.models:
        return settings.models[name]
    if name == EMBEDDED or name in settings.models.values():
        return name
    try:
        model = store.model(name, owner)
    except NotFound:
        model = None
    if model is not None and (model.path is None or _weights(Path(model.path)) is not None):
        return model.base
    if model is not None:
        problems.append(problem("J134", f"the weights of `{name}` are gone from the disk", param="model"))
        return None
    if settings.allow.any_base and not looks_local(name, suffixes=()) and not name.startswith("ft:"):
        return name
    known = ", ".join(sorted({*settings.models, EMBEDDED}))
    message = f"no model `{name[:100]}` to tune; there are {known}, and your own tuned models"
    hint = "the operator adds names with `models` in api.yaml"
    problems.append(problem("J134", message, param="model", hint=hint))
    return None


def _started_from(job: JobRecord, store: Store) -> dict[str, Any]:
    """Keys that begin at a tuned model: its adapter is trained on, its whole weights are the base."""
    if not job.model.startswith("ft:"):
        return {}
    path = store.model(job.model, job.owner).path
    if path is None:
        return {}
    folder = _weights(Path(path))
    if folder is None:
        raise NotFound(code="J134", message=f"the weights of `{job.model}` are gone from the disk", param="model")
    if (folder / "adapter_config.json").is_file():
        return {"method": {"init_from": str(folder)}}
    return {"model": {"name_or_path": str(folder)}}


def _weights(folder: Path) -> Path | None:
    """Where the adapter or model of a tuned model lies: the folder itself, or `final/` of a run folder."""
    for place in (folder, folder / "final"):
        if (place / "adapter_config.json").is_file() or (place / "config.json").is_file():
            return place
    return None


def _check_file(store: Store, file_id: str, owner: str, param: str, problems: list[JobProblem]) -> None:
    try:
        file: FileRecord = store.file(file_id, owner)
    except NotFound:
        problems.append(problem("J102", f"no file `{file_id}`", param=param, hint="upload it with purpose fine-tune"))
        return
    if file.purpose != "fine-tune":
        message = f"file {file_id} has the purpose {file.purpose}; needed is fine-tune"
        problems.append(problem("J135", message, param=param, hint="upload it again with purpose fine-tune"))


def _source(file_id: str, store: Store, luthier: Mapping[str, Any]) -> dict[str, Any]:
    """The one training source; `luthier.data.train` may say its format, columns and the like."""
    entry: dict[str, Any] = {"path": str(store.file_path(store.file(file_id)))}
    data = luthier.get("data")
    given_ = data.get("train") if isinstance(data, Mapping) else None
    if given_ is None:
        return entry
    if not isinstance(given_, list) or len(given_) != 1 or not isinstance(given_[0], Mapping):
        message = "`luthier.data.train` is a list of one object: what is to be known of the training file"
        hint = 'for instance [{"map": {"user": "question", "assistant": "answer"}}]'
        raise Invalid(problems=[problem("J137", message, param="luthier.data.train", hint=hint)])
    return {**given_[0], **entry}


def _hyperparameters(job: JobRecord, said: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of the hyperparameters that have a value, less those of `auto` that other keys decide."""
    asked = job.method.get(job.method["type"], {}).get("hyperparameters", {})
    result: dict[str, Any] = {}
    for name, value in job.hyperparameters.items():
        key, same = _KEYS[name]
        auto = asked.get(name, AUTO) == AUTO
        if value == AUTO or (auto and (name in _OF_RECIPE or any(given(said, other) for other in same))):
            continue
        section, leaf = key.split(".")
        result = merged(result, {section: {leaf: value}})
        if name == "batch_size":
            # A step is exactly so many rows; packs would make it a number of packs.
            result = merged(result, {"data": {"packing": False}})
    return result


def _known_now(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """What `auto` comes to whatever the rows are."""
    known = {"learning_rate_multiplier": 1.0, "beta": 0.1}
    return {key: known.get(key, value) if value == AUTO else value for key, value in hyperparameters.items()}


def _recipe_problems(job: JobRecord, store: Store, settings: ApiSettings, told: set[str | None]) -> list[JobProblem]:
    """What the loader of recipes says to the whole, each under the field of the body that it came from."""
    checked = replace(job, validation_file=None) if "validation_file" in told else job
    if "integrations" in told:
        checked = replace(checked, integrations=())
    try:
        recipe_from_dict(recipe_of(checked, store, settings), origin="luthier")
    except RecipeError as error:
        found = [_as_job_problem(item, job) for item in error.problems]
        return [item for item in found if item.param not in told]
    except Invalid as error:
        return [item for item in error.problems if isinstance(item, JobProblem)]
    return []


def _as_job_problem(found: Problem, job: JobRecord) -> JobProblem:
    """A problem of the recipe in the client's words."""
    words = found.message
    match = _DOTTED.search(words)
    key = match.group(1) if match else ""
    unknown = re.match(r'(?:unknown|missing) key "([^"]*)"(?: in ([\w.]+))?', words)
    if unknown:
        key = ".".join(part for part in (unknown.group(2), unknown.group(1)) if part)
    for name, (own, _) in _KEYS.items():
        value = job.hyperparameters.get(name, AUTO)
        if key == own and value != AUTO and not given(job.luthier, own):
            param = f"method.{job.method['type']}.hyperparameters.{name}"
            return problem(found.code, f"{words} (`{own}` is what {name} sets)", param=param, hint=found.hint)
    if key == "model.name_or_path":
        return problem("J134", f"the base of `{job.model}` is not there; tell the operator", param="model")
    return problem(found.code, words, param=f"luthier.{key}" if key else "luthier", hint=found.hint)
