"""What the stages of one run share: recipe, folder, device, and things that are loaded at most once.

Everything here is lazy: a run whose stages are all reused loads no torch and no model.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.sources import hash_source
from luthier.model.identity import base_identity
from luthier.model.locate import locate_model
from luthier.pipeline.configured import Configured
from luthier.pipeline.planning import decide, keep_plan, run_request
from luthier.pipeline.rates import recall
from luthier.pipeline.spectrum import selection_of
from luthier.plan.shape import ModelShape, read_shape
from luthier.recipe.builtin import FORGETTING
from luthier.recipe.objective_kind import row_kind
from luthier.recipe.resolve import Facts, Resolved, resolve, resolved_yaml
from luthier.recipe.schema import Recipe, TaskSpec
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_text
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError
from luthier.spectrum.results import Scan
from luthier.spectrum.select import Selection
from luthier.train.distributed.group import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.curate.contamination.step import EvaluationSet
    from luthier.data.prepare import Prepared
    from luthier.data.prompts import Prompts
    from luthier.evaluate.harness.load import HarnessTask
    from luthier.evaluate.task import Task
    from luthier.runtime.device import Device

__all__ = ["Session"]


class Session:
    """One recipe being run in one folder."""

    def __init__(self, recipe: Recipe, run: RunFolder, *, restart: bool = False) -> None:
        self.recipe = recipe
        self.run = run
        self.restart = restart
        """Start the training over instead of resuming from a checkpoint."""
        self.again = False
        """The stage that runs now had finished before: its old result is replaced, not continued."""
        self.group = Group()
        """The processes of this run."""
        self.configured = Configured()
        """What the recipe has from the user's configurations of accelerate."""

    # -- inputs, without torch

    @cached_property
    def base_folder(self) -> Path:
        """Folder of the base model's files."""
        return locate_model(self.recipe.model.name_or_path, self.recipe.model.revision)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Hashes of the base model's files."""
        return base_identity(self.base_folder)

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes of the base model."""
        return read_shape(self.base_folder)

    @cached_property
    def selection(self) -> tuple[Selection, Scan | None] | None:
        """What method `spectrum` trains and the scan behind it; None for other methods. Scans on first use."""
        if self.recipe.method.name != "spectrum":
            return None
        return self.group.from_main("selection of Spectrum", lambda: selection_of(self))

    @cached_property
    def source_hashes(self) -> list[str]:
        """Content hashes of training and validation sources."""
        section = self.recipe.data
        paths = [source.path for source in section.train]
        if section.validation.path:
            paths.append(section.validation.path)
        return [hash_source(path) for path in paths]

    def task_hashes(self, task: TaskSpec) -> list[str]:
        """Content hashes of the files a task reads."""
        if task.lm_eval is not None:
            # Its YAML may name files, folders and other tasks: what was read is what counts.
            from luthier.evaluate.harness.load import HarnessTask

            (found,) = [one for one in self.tasks if isinstance(one, HarnessTask) and one.name == task.name]
            return [found.data_hash, found.version]
        if task.name == FORGETTING:
            from luthier.evaluate.forgetting.suite import VERSION

            return [f"{FORGETTING}, version {VERSION}"]
        return [hash_source(path) for path in (task.path, task.fewshot_path) if path]

    # -- loaded once, on first use

    @cached_property
    def device(self) -> Device:
        """Where this process computes. Sets the number of threads, too."""
        from luthier.runtime.device import pick_device, set_threads

        device = pick_device()
        threads, why = set_threads()
        note(f"device: {device.name} ({device.reason}), {threads} threads ({why})", style="dim")
        return device

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer with the recipe's template and tokens."""
        from luthier.model.tokenizer import load_tokenizer

        return load_tokenizer(self.recipe.model)

    @cached_property
    def tasks(self) -> list[Task | HarnessTask]:
        """The tasks with their rows; everything wrong with any of them is raised at once."""
        from luthier.evaluate.tasks import load_tasks

        return load_tasks(self.recipe.evaluate.tasks)

    @property
    def is_online(self) -> bool:
        """The objective is reinforcement learning on sampled completions."""
        return self.recipe.objective.name == "grpo"

    @cached_property
    def prompts(self) -> Prompts:
        """Of online RL: rows as prompts with their references."""
        from luthier.data.prompts import prepare_prompts
        from luthier.online.rewards.build import needs_columns, reference_check

        grpo = self.recipe.objective.grpo
        room = self.shape.max_positions
        if room is not None and room <= grpo.max_completion_length:
            longest = grpo.max_completion_length
            message = f"max_completion_length {longest} leaves no room for a prompt: the model holds {room} tokens"
            raise RecipeError(code="T496", message=message, hint="lower max_completion_length")
        return prepare_prompts(
            self.recipe.data,
            self.tokenizer,
            seed=self.recipe.train.seed,
            template_kwargs=self.recipe.model.chat_template_kwargs,
            reference_column=grpo.reference_column,
            check=reference_check(grpo),
            columns=needs_columns(grpo),
            room=None if room is None else room - grpo.max_completion_length,
        )

    @cached_property
    def tried_rewards(self) -> bool:
        """Whether rewards were called once, with a row of the data; raises what is wrong with them."""
        from luthier.pipeline.online import try_online

        if self.is_online:
            try_online(self)
        return self.is_online

    @cached_property
    def prepared(self) -> Prepared:
        """Rows as tokens with their masks; from the cache when nothing changed."""
        return self.prepare()

    def prepare(self, *, keep_rows: bool = False) -> Prepared:
        """`prepared`, made anew; with `keep_rows` the rows themselves, too."""
        if self.is_online:
            return self.prompts.prepared
        from luthier.curate.apply import curator
        from luthier.data.prepare import prepare

        return prepare(
            self.recipe.data,
            self.tokenizer,
            seed=self.recipe.train.seed,
            template_kwargs=self.recipe.model.chat_template_kwargs,
            cache_dir=read_env().cache_dir / "data",
            kind=row_kind(self.recipe.objective.name),
            keep_rows=keep_rows,
            curate=curator(
                self.recipe.data,
                cache_dir=read_env().cache_dir / "dedup",
                tokenizer=self.tokenizer,
                evaluation=self._evaluation_sets if self.recipe.evaluate.tasks else None,
            ),
        )

    def _evaluation_sets(self) -> list[EvaluationSet]:
        """The rows of the tasks, to look for among the training rows."""
        from luthier.curate.contamination.step import EvaluationSet

        return [EvaluationSet(task.name, [row.conversation for row in task.rows], task.limit) for task in self.tasks]

    @cached_property
    def resolved(self) -> Resolved:
        """The recipe without `auto`, with the reason of every derived value; also written to the run folder, as is
        the plan behind it (`plan.json`)."""
        return self.group.from_main("resolved recipe", self._resolve)

    def _resolve(self) -> Resolved:
        counts = self.stage_result("data")
        request = None if self.is_online else run_request(self)
        decision, made_from = (None, "") if request is None else decide(self, request)
        resolved = resolve(
            self.recipe,
            Facts(
                device_type=self.device.type,
                native_bf16=self.device.native_bf16,
                device_memory_bytes=self.device.memory_bytes,
                world_size=read_env().world_size,
                rows=counts["rows_used"],
                sequences=counts["packs"],
                tokens=counts["tokens"],
                model_parameters=self.shape.parameters,
                found_rates=() if self.is_online or self.recipe.train.learning_rate != "auto" else recall(self),
                planned=decision,
                taken=self.configured.taken,
            ),
        )
        if request is not None and decision is not None:
            keep_plan(self, request, resolved, decision, made_from)
        write_text(self.run.path / "resolved.yaml", resolved_yaml(resolved))
        for derived in resolved.derived:
            note(f"  {derived.key}: {derived.value}  ({derived.reason})", style="dim")
        self.configured.tell()
        return resolved

    def stage_result(self, name: str) -> dict[str, Any]:
        """What a finished stage handed on.

        Raises:
            RecipeError: it has not finished (a later stage was asked for alone).
        """
        record = self.run.stage(name)
        if record is None:
            message = f"{self.run.path} has not finished its stage `{name}`"
            raise RecipeError(code="R732", message=message, hint="`luthier run` with its recipe.yaml goes on")
        return record.result
