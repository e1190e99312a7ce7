"""How grading models are reached: the server of `evaluate.judge`, one client for each model that is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest
from luthier.endpoint.settings import EndpointSettings
from luthier.recipe.judge_schema import EvaluationJudge
from luthier.scoring.graders.models import Asked

__all__ = ["JudgeServer", "judge_settings"]

_RENAMED = {"max_completions_tokens": "max_tokens"}


def judge_settings(judge: EvaluationJudge, model: str) -> EndpointSettings:
    """The section as settings of a client."""
    assert judge.base_url is not None, "checked by the recipe's rules"
    return EndpointSettings(
        base_url=judge.base_url, model=model, api_key_env=judge.api_key_env,
        timeout_seconds=judge.timeout_seconds, max_retries=judge.max_retries, concurrency=judge.concurrency,
        input_price=judge.input_price, output_price=judge.output_price, budget_usd=judge.budget_usd,
    )  # fmt: skip


class JudgeServer:
    """Clients by model name; use as a context manager."""

    def __init__(self, judge: EvaluationJudge, *, cache_dir: Path | None) -> None:
        self.judge, self.cache_dir = judge, cache_dir
        self._clients: dict[str, Endpoint] = {}

    def __enter__(self) -> JudgeServer:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def client(self, model: str) -> Endpoint:
        """The client of a model."""
        if model not in self._clients:
            self._clients[model] = Endpoint(judge_settings(self.judge, model), cache_dir=self.cache_dir)
        return self._clients[model]

    def ask(self, model: str, messages: list[dict[str, Any]], sampling: Mapping[str, Any]) -> Asked:
        """An `Ask` of the graders."""
        keys = {_RENAMED.get(name, name): value for name, value in sampling.items()}
        request = ChatRequest(
            messages=messages,
            max_tokens=keys.pop("max_tokens", self.judge.max_tokens),
            temperature=keys.pop("temperature", self.judge.temperature),
            extra={**keys, **self.judge.extra_body},
        )
        reply = self.client(model).chat(request)
        usage = reply.raw.get("usage")
        count = usage.get("total_tokens") if isinstance(usage, dict) else None
        return Asked(text=reply.text, tokens=count if isinstance(count, int) else 0)

    def usage(self) -> dict[str, Any]:
        """Counts and cost by model."""
        return {model: client.usage().to_json() for model, client in self._clients.items()}
