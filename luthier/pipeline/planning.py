"""The plan of a run: made from its prepared data and its device, kept in `plan.json` of the run folder.

What it decides goes into the resolved recipe. A run that goes on takes the decisions it began with, as long as recipe,
data, model and device are the same: measurements of other runs in between must not change a run half-way.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.plan.devices import Accelerator
from luthier.plan.machine import accelerator_named, cpu_accelerator, with_network
from luthier.plan.reasons import host_words
from luthier.plan.request import Request, make_request
from luthier.plan.result import Plan
from luthier.plan.search import make_plan
from luthier.plan.setting import HOST_DEVICES
from luthier.plan.work import Documents, documents_from_manifest
from luthier.recipe.facts import Decision
from luthier.recipe.resolve import Resolved
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note
from luthier.runtime.env import Env, read_env
from luthier.runtime.hashing import hash_json
from luthier.runtime.host_memory import free_memory_bytes

if TYPE_CHECKING:
    from luthier.pipeline.session import Session
    from luthier.runtime.device import Device

__all__ = ["decide", "keep_plan", "run_request"]

PLAN_FILE = "plan.json"
PLAN_VERSION = 6
"""Raised when a change of the plan's code may decide otherwise."""


def run_request(session: Session) -> Request | None:
    """What this run asks the plan; None where there is no arithmetic for the device (Apple GPUs)."""
    device = _accelerator(session.device)
    if device is None:
        return None
    env = read_env()
    device = with_network(device, env.network_gbits)
    return make_request(
        session.recipe, session.shape, _documents(session), device, num_gpus=env.world_size, cache_dir=env.cache_dir,
        unfrozen=session.selection[0].patterns if session.selection else None, host_devices=_host_devices(env),
        host_memory=free_memory_bytes(),
    )  # fmt: skip


def _host_devices(env: Env) -> int:
    """Of each of several hosts those that take part; a single host is said to have no fewer than hosts usually do:
    what is proposed may be more devices of it."""
    several = env.world_size > env.local_world_size
    return env.local_world_size if several else max(env.local_world_size, HOST_DEVICES)


def decide(session: Session, request: Request) -> tuple[Decision, str]:
    """The plan's decisions and the fingerprint of what they were made from; stored ones where nothing changed."""
    fingerprint = _fingerprint(request)
    stored = _stored(session.run.path / PLAN_FILE)
    if stored.get("fingerprint") == fingerprint:
        return Decision(**stored["decision"]), fingerprint
    plan = make_plan(request)
    _say(plan)
    return plan.decision(), fingerprint


def keep_plan(session: Session, request: Request, resolved: Resolved, decision: Decision, fingerprint: str) -> Plan:
    """Predict for the recipe as it runs, and write `plan.json`."""
    plan = make_plan(replace(request, recipe=resolved.recipe))
    value = {"fingerprint": fingerprint, "decision": asdict(decision), **plan.to_json()}
    write_json(session.run.path / PLAN_FILE, value)
    return plan


def _accelerator(device: Device) -> Accelerator | None:
    if device.type == "cuda":
        return accelerator_named(device.name, device.memory_bytes)
    if device.type == "cpu":
        return replace(cpu_accelerator(), memory_bytes=device.memory_bytes)
    return None


def _documents(session: Session) -> Documents:
    """From the data manifest; a folder without one (data of an older run) has the counts of the stage alone."""
    data = session.recipe.data
    file = session.run.path / "data" / "manifest.json"
    return documents_from_manifest(
        json.loads(file.read_text("utf-8")), max_length=data.max_length, packing=data.packing, how=f"exact: {file}"
    )


def _fingerprint(request: Request) -> str:
    recipe, documents = request.recipe, request.documents
    return hash_json(
        [
            PLAN_VERSION,
            recipe.model_dump(mode="json", include={"model", "method", "train", "objective", "distributed"}),
            [recipe.data.max_length, recipe.data.packing],
            [documents.rows, documents.tokens, documents.sequences],
            [request.sizes.parameters, request.num_gpus, request.device.name, request.device.memory_bytes],
            [request.host_devices, request.device.network],
        ]
    )


def _stored(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("decision"), dict) else {}


def _say(plan: Plan) -> None:
    """A line for people; a plan that does not fit is told with the smallest change that does."""
    layers = plan.request.sizes.shape.layers
    note(f"  plan: {plan.chosen.setting.describe(layers)}", style="dim")
    if plan.fits:
        return
    remedy = f"; smallest change that fits: {plan.remedies[0].change}" if plan.remedies else ""
    need, have = plan.chosen.needed_bytes / 2**30, plan.request.device.memory_bytes / 2**30
    host = host_words(plan.chosen)
    note(f"warning: the plan needs {need:.1f} GiB of {have:.1f} GiB{host}{remedy}", style="yellow")
