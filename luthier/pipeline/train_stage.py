"""The stage that trains: what a trained model depends on, when a run may not go on, and the training itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.pipeline.data_stage import data_depends
from luthier.pipeline.loading import loads_hollow
from luthier.pipeline.offload import check_offload
from luthier.pipeline.online import train_online
from luthier.pipeline.session import Session
from luthier.pipeline.spectrum import keep_selection, spectrum_depends
from luthier.pipeline.stage import CODE_VERSION, Stage
from luthier.recipe.deepspeed_keys import ZERO
from luthier.recipe.objective import objective_values
from luthier.recipe.optimizers import require_optimizer
from luthier.runs.stages import differences
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.model.adapters import Tuned
    from luthier.runtime.device import Device

__all__ = ["refuse_changed_resume", "train_depends", "train_model", "training_fingerprint", "tuned_model"]

INTENT_FILE = "training.json"


def training_fingerprint(session: Session) -> dict[str, Any]:
    """Everything the trained weights depend on; a checkpoint is resumed only when all of it is equal.

    What is computed again in the backward pass is left out: the same operations give the same bits. How a step is
    split and whether a 4-bit base is kept unpacked stay in: the sums are the same, their rounding is not.
    """
    recipe = session.resolved.recipe
    left_out = {"report_to", "logging_steps", "save_steps", "save_total_limit"}
    left_out |= {"gradient_checkpointing", "gradient_checkpointing_layers", "gradient_checkpointing_attention"}
    return {
        "code": CODE_VERSION["train"],
        "data": session.stage_result("data")["hash"],
        "base": session.identity,
        "model": recipe.model.model_dump(mode="json", exclude={"trust_remote_code"}),
        "packing": {"packing": recipe.data.packing, "max_length": recipe.data.max_length},
        "method": recipe.method.model_dump(mode="json"),
        "objective": objective_values(recipe.objective, of_weights=True),
        "train": recipe.train.model_dump(mode="json", exclude=left_out),
        "device": session.device.type,
        **_unfrozen(session),
    }


def _unfrozen(session: Session) -> dict[str, Any]:
    """The names that Spectrum chose: scores that are nearly equal could be ranked otherwise on another machine."""
    if session.resolved.recipe.method.name != "spectrum" or session.selection is None:
        return {}
    return {"unfrozen": list(session.selection[0].patterns)}


def train_depends(session: Session) -> dict[str, Any]:
    """As the fingerprint, from the recipe as written: no torch needed, so a finished run is reused in a second."""
    return {**_train_depends_but_data(session), "data": session.stage_result("data")["hash"]}


def _train_depends_but_data(session: Session) -> dict[str, Any]:
    recipe = session.recipe
    return {
        "code": CODE_VERSION["train"],
        "base": session.identity,
        "model": recipe.model.model_dump(mode="json"),
        "method": recipe.method.model_dump(mode="json"),
        "objective": objective_values(recipe.objective, of_weights=True),
        "train": recipe.train.model_dump(mode="json", exclude={"report_to", "logging_steps", "save_total_limit"}),
        **spectrum_depends(recipe),
    }


def _intent(session: Session) -> dict[str, Any]:
    """What an unfinished training is of; known from the recipe and the files alone."""
    depends_on = _train_depends_but_data(session)
    return {**depends_on, "data": data_depends(session)}


def refuse_changed_resume(session: Session, *, wanted: Sequence[Stage]) -> None:
    """An interrupted training may only be continued as it was; told before anything in the folder changes.

    Raises:
        RecipeError: data, base or recipe changed since; lists what.
    """
    run = session.run
    interrupted = run.stage("train") is None and any(
        item for pattern in ("step-*", "checkpoint-*") for item in (run.path / "checkpoints").glob(pattern)
    )
    intent = run.path / INTENT_FILE
    if session.restart or not interrupted or not intent.is_file() or all(stage.name != "train" for stage in wanted):
        return
    changed = differences(
        _dealt_anyhow(json.loads(intent.read_text("utf-8"))), _dealt_anyhow(json.loads(json.dumps(_intent(session))))
    )
    if changed:
        raise RecipeError(
            code="T432",
            message=f"{run.path} holds an interrupted training of another kind: " + "; ".join(changed[:10]),
            hint="undo the change to resume, or start over with --restart, or choose another `output_dir`",
        )


def _is_sharded(session: Session) -> bool:
    return session.group.size > 1 and session.resolved.recipe.distributed.strategy in ("fsdp2", "zero3")


def _loading_device(session: Session) -> Device:
    """Where weights are loaded: in host memory if they are to be sharded, from where each layer goes to the device."""
    if not _is_sharded(session) or session.device.type == "cpu":
        return session.device
    return replace(session.device, type="cpu", index=0, reason="weights are sharded layer by layer")


def _dealt_anyhow(intent: dict[str, Any]) -> dict[str, Any]:
    """Without how a step is dealt to processes, which may be other ones; `train/resume.py` compares whole steps."""
    dealing = ("per_device_train_batch_size", "gradient_accumulation_steps")
    train = {key: value for key, value in dict(intent.get("train") or {}).items() if key not in dealing}
    return {**intent, "train": train}


def tuned_model(session: Session) -> Tuned:
    """The base as the recipe's method trains it, fresh, with its account on the console."""
    from luthier.model.adapters import apply_method
    from luthier.model.load import load_base
    from luthier.train.distributed.zero import require_deepspeed
    from luthier.train.loop import START_FOLDER

    recipe = session.resolved.recipe
    require_optimizer(recipe.train, device_type=session.device.type)
    if session.group.size > 1 and recipe.distributed.strategy in ZERO:
        require_deepspeed()
    model = load_base(
        recipe.model, device=_loading_device(session), dtype=recipe.model.dtype, quantization=recipe.model.quantization,
        reward_seed=recipe.train.seed if recipe.objective.name == "reward" else None, later=_is_sharded(session),
        hollow=loads_hollow(session),
    )  # fmt: skip
    new_token_ids = session.tokenizer.convert_tokens_to_ids(recipe.model.new_tokens)
    selection = session.selection
    tuned = apply_method(
        model, recipe.method, seed=recipe.train.seed, new_token_ids=new_token_ids,
        start_folder=session.run.path / START_FOLDER, unfrozen=selection[0].patterns if selection else (),
    )  # fmt: skip
    if selection and session.group.is_main:
        keep_selection(session.run.path, *selection)
    for line in tuned.report.lines():
        note(f"  {line}")
    return tuned


def train_model(session: Session) -> dict[str, Any]:
    """Train, write `final/`, and write down what its prompts and stop tokens are from now on."""
    from luthier.report.card.write import keep_cards

    if session.group.is_main:
        keep_cards(session.run)
    if session.is_online:
        result = train_online(
            session,
            fingerprint=training_fingerprint(session),
            keep_intent=lambda: write_json(session.run.path / INTENT_FILE, _intent(session)),
        )
    else:
        result = _train_on_rows(session)
    return {**result, "prompts": session.group.from_main("prompts", lambda: _frozen_prompts(session))}


def _frozen_prompts(session: Session) -> dict[str, Any] | None:
    """None for a reward model, which writes no text."""
    from luthier.data.template import ChatTemplate
    from luthier.model.contract import freeze_prompts, saved_stops
    from luthier.model.reward import is_reward_folder

    final = session.run.path / "final"
    if is_reward_folder(final):
        return None
    recipe = session.recipe
    template = ChatTemplate(
        session.tokenizer, kwargs=recipe.model.chat_template_kwargs, control_tokens=recipe.data.control_tokens
    )
    return freeze_prompts(template, saved_stops(final))


def _train_on_rows(session: Session) -> dict[str, Any]:
    from luthier.pipeline.preferences import measure_preferences
    from luthier.runtime.hashing import hash_folder
    from luthier.train.loop import fit
    from luthier.train.predicted import tell_next_plan

    group = session.group
    resolved = session.resolved
    check_offload(session)
    _say_processes(session)
    tuned = tuned_model(session)
    if group.is_main:
        write_json(session.run.path / INTENT_FILE, _intent(session))
    result = fit(
        tuned,
        session.prepared,
        resolved,
        run=session.run,
        tokenizer=session.tokenizer,
        fingerprint=training_fingerprint(session),
        restart=session.restart or session.again,
        device=session.device.torch_device,
        reference_cache=read_env().cache_dir / "reference",
    )

    def conclude() -> dict[str, Any]:
        if result.micro_batch is None:  # it was the run that was planned
            tell_next_plan(session.run, result.measured, cache_dir=read_env().cache_dir)
        weights = hash_folder(session.run.path / "final", ("*.safetensors",))
        preferences = measure_preferences(session.run, confidence=resolved.recipe.evaluate.confidence)
        spread = {"strategy": _strategy(session)} if group.size > 1 else {}
        return {"weights": weights, "method": tuned.report.to_json(), **spread, **result.to_json(), **preferences}

    return group.from_main("result of training", conclude)


def _strategy(session: Session) -> str:
    """How several processes shared the work, for readers of the run: `fsdp2, optimizer offloaded`."""
    from luthier.plan.ways import way_of

    recipe = session.resolved.recipe
    return way_of(recipe, recipe.distributed.strategy).words().replace(" devices ", " processes ")


def _places(group: int) -> str:
    """Where the processes of one copy are: gathers between machines are what copies are to avoid."""
    here = read_env().local_world_size
    if group % here == 0 and group > here:
        return f", each on {group // here} machines"
    return f", each on {group} processes" + (" of one machine" if here % group == 0 else ", not all of one machine")


def _say_processes(session: Session) -> None:
    """How many processes there really are: an exit code of 0 does not say so."""
    if session.group.size > 1:
        distributed = session.resolved.recipe.distributed
        strategy, parts = distributed.strategy, distributed.sequence_parallel_size
        how = {
            "ddp": "a copy of the model each (DDP)", "fsdp2": "a shard of the model each (FSDP2)",
            "zero1": "a copy of weights and gradients and a part of masters and moments each (DeepSpeed ZeRO-1)",
            "zero2": "a copy of the weights and a part of gradients, masters and moments each (DeepSpeed ZeRO-2)",
            "zero3": "a part of weights, gradients, masters and moments each (DeepSpeed ZeRO-3)",
        }[strategy]  # fmt: skip
        note(f"  {session.group.size} processes on {session.device.type}: {how}, its own part of every step")
        copies = distributed.dp_replicate_size
        if copies > 1:
            note(f"  {copies} copies of the model in shards (HSDP){_places(session.group.size // copies)}")
        if parts > 1:
            note(f"  each sequence is shared by {parts} processes: its tokens are divided, for attention its heads")
    elif session.configured.launched:
        note(
            "  one process, started by `accelerate launch` (for `--cpu` and MULTI_CPU it starts no more without MPI, "
            "whatever num_processes says; `luthier launch --num-processes N` does)", style="yellow",
        )  # fmt: skip
