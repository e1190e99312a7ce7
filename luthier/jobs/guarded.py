"""Recipe keys that a client of the service may not set unless `allow` in `api.yaml` says so.

A recipe is written by whoever owns the machine; here strangers write parts of it. What reads or writes files of the
machine, runs code, opens connections or publishes is refused; so is what belongs to the service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.jobs.errors import JobProblem, problem
from luthier.jobs.settings import AllowSection

__all__ = ["GUARDED", "NEVER", "refused_keys"]

NEVER: Mapping[str, str] = {
    "output_dir": "the service decides where a job is written",
    "model.name_or_path": "it is what `model` says",
    "data.train.*.path": "it is what `training_file` says",
    "train.seed": "it is what `seed` says",
}
GUARDED: Mapping[str, str] = {
    "model.revision": "paths",
    "model.tokenizer": "paths",
    "model.chat_template": "paths",
    "model.trust_remote_code": "code",
    "data.validation.path": "paths",
    "data.dedup.embedding_model": "paths",
    "data.decontaminate.embedding_model": "paths",
    "data.decontaminate.against": "paths",
    "data.filters.python": "code",
    "data.filters.judge": "endpoints",
    "data.filters.listed": "paths",
    "distributed.accelerate_config": "paths",
    "distributed.deepspeed_config": "paths",
    "method.init_from": "paths",
    "method.spectrum_file": "paths",
    "objective.grpo.rewards.*.python": "code",
    "objective.grpo.judge": "endpoints",
    "objective.grpo.use_vllm": "endpoints",
    "objective.grpo.vllm_server_base_url": "endpoints",
    "evaluate.judge": "endpoints",
    "evaluate.tasks.*.path": "paths",
    "evaluate.tasks.*.fewshot_path": "paths",
    "evaluate.tasks.*.include_path": "paths",
    "evaluate.tasks.*.lm_eval": "code",
    "evaluate.tasks.*.grader": "code",
    "export.push_to_hub": "publish",
    "train.report_to": "publish",
}
"""Key -> the switch of `allow` that lets clients set it."""
_WHAT = {
    "paths": "names a file, folder or model of the service's machine",
    "code": "runs code on the service's machine",
    "endpoints": "makes the service's machine ask another server",
    "publish": "sends data away with the service's credentials",
}


def refused_keys(keys: Mapping[str, Any], allow: AllowSection) -> list[JobProblem]:
    """Every key of a client's `luthier` object that this service does not take from clients."""
    problems = []
    for pattern, why in NEVER.items():
        problems += [
            problem("J136", f"`luthier.{path}` is not for clients: {why}", param=f"luthier.{path}", hint="remove it")
            for path, _ in _matches(keys, pattern)
        ]
    for pattern, switch in GUARDED.items():
        if getattr(allow, switch):
            continue
        for path, value in _matches(keys, pattern):
            if _harmless(pattern, value):
                continue
            message = f"`luthier.{path}` {_WHAT[switch]}, which clients of this service may not"
            hint = f"its operator can allow it with `allow: {{{switch}: true}}` in api.yaml"
            problems.append(problem("J136", message, param=f"luthier.{path}", hint=hint))
    return problems


def _harmless(pattern: str, value: Any) -> bool:
    """Values that ask for nothing; of templates, those whose text is given and not a file."""
    if pattern == "model.chat_template":
        return value is None or (isinstance(value, str) and ("{" in value or "\n" in value))
    return value is None or value is False or value in ([], {})


def _matches(value: Any, pattern: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every place that a pattern names; `*` is each entry of a list."""
    part, _, rest = pattern.partition(".")
    if part == "*":
        # A mapping instead of a list is refused later, by the schema; until then it must hide nothing.
        entries = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ()
        found = [(str(key), item) for key, item in entries]
    else:
        found = [(part, value[part])] if isinstance(value, Mapping) and part in value else []
    for key, item in found:
        below = f"{path}.{key}".lstrip(".")
        if rest:
            yield from _matches(item, rest, below)
        else:
            yield below, item
