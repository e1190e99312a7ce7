"""`luthier serve`: an OpenAI-compatible server for runs, adapters and models."""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from luthier.serve.host import Target
    from luthier.serve.settings import ServeSettings

LIMITS, BACKENDS = "Limits", "Backend"
NOT_VLLM = ("admin_key", "max_queue", "max_new_tokens", "max_body_mb", "max_seconds", "prefill_tokens", "prefix_tokens",
            "drain_seconds")  # fmt: skip
"""Options of our own server; vLLM has others, or none."""


VLLM_BATCH = 256
"""Rows of the vllm backend when nobody says."""


class Backend(StrEnum):
    """Who computes."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


class Dtype(StrEnum):
    """Type of the weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def serve(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(help="Run, adapter or model folders, or hub ids; NAME=PATH gives a name.", show_default=False),
    ],
    host: Annotated[str, typer.Option(help="Address; other than loopback only with an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LUTHIER_API_KEY", help="Every request must carry it.", show_default=False)
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="LUTHIER_ADMIN_KEY", help="Loading and dropping models needs it.", show_default=False),
    ] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Answers made at once; 32, on a GPU 256.", rich_help_panel=LIMITS),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more get a 429.", rich_help_panel=LIMITS)
    ] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one answer.", rich_help_panel=LIMITS)] = 4096,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Size of a request, MiB.", rich_help_panel=LIMITS)] = 4,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Time of one request, waiting included.", rich_help_panel=LIMITS)
    ] = 600.0,
    prefill_tokens: Annotated[
        int | None,
        typer.Option(min=16, help="Prompt tokens read between two steps; 256, on a GPU 4096.", rich_help_panel=LIMITS),
    ] = None,
    prefix_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens kept for prompts that begin alike.", rich_help_panel=LIMITS)
    ] = 16_384,
    drain_seconds: Annotated[
        float, typer.Option(min=1, help="Time for answers under way at shutdown.", rich_help_panel=LIMITS)
    ] = 30.0,
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.", rich_help_panel=BACKENDS)] = Dtype.AUTO,
    backend: Annotated[Backend, typer.Option(help="Who computes.", rich_help_panel=BACKENDS)] = Backend.TRANSFORMERS,
    print_only: Annotated[
        bool, typer.Option("--print", help="Show the command of the vllm backend; start nothing.",
                           rich_help_panel=BACKENDS)
    ] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Serve models over HTTP, as OpenAI's API: chat completions, completions, models."""
    from luthier.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, api_key=api_key or None, admin_key=admin_key or None, max_body_bytes=max_body_mb << 20,
        max_new_tokens=max_new_tokens, request_seconds=max_seconds, drain_seconds=drain_seconds,
    )  # fmt: skip
    settings.check()
    from luthier.pipeline.serving import open_host, resolve, resolve_all

    targets = resolve_all(models)
    if backend is Backend.VLLM or print_only:
        _only_what_vllm_takes(context, as_json=as_json and not print_only)
        _vllm(targets, settings, max_batch_size=max_batch_size or VLLM_BATCH, dtype=dtype, print_only=print_only,
              as_json=as_json)  # fmt: skip
        return
    from luthier.serve.server import needed_packages, run_server

    needed_packages()
    from luthier.serve.engine.scheduler import EngineLimits
    from luthier.serve.http.app import app

    limits = EngineLimits(max_batch_size=max_batch_size or 0, max_queue=max_queue, prefill_tokens=prefill_tokens or 0,
                          prefix_tokens=prefix_tokens)  # fmt: skip
    loaded = open_host(targets, limits=limits, dtype=None if dtype is Dtype.AUTO else dtype.value)

    def ready(url: str) -> None:
        if as_json:
            emit_json({"url": f"{url}/v1", "models": loaded.names()})
            sys.stdout.flush()
        note(f"{url}/v1 serves {', '.join(loaded.names())}; Ctrl-C stops")

    run_server(app(loaded, settings, resolve=resolve), settings, ready=ready)


def _only_what_vllm_takes(context: typer.Context, *, as_json: bool) -> None:
    sources = {name: context.get_parameter_source(name) for name in NOT_VLLM}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    given += ["json"] if as_json else []
    problems = [
        Problem(code="S618", message=f"--{name.replace('_', '-')} has no effect on vLLM", hint="remove it")
        for name in given
    ]
    if problems:
        raise RecipeError(problems=problems)


def _vllm(
    targets: list[Target], settings: ServeSettings, *, max_batch_size: int, dtype: Dtype, print_only: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from luthier.runtime.env import read_env
    from luthier.serve.vllm import check_installed, vllm_command

    program = None if print_only else check_installed()
    command = vllm_command(
        targets, settings, max_batch_size=max_batch_size, dtype=dtype.value,
        template_folder=Path(read_env().cache_dir) / "templates", write=not print_only,
    )  # fmt: skip
    if print_only and as_json:
        emit_json({"command": command})
    elif print_only:
        sys.stdout.write(shlex.join(command) + "\n")
    if program is not None:
        environment = {**os.environ, **({"VLLM_API_KEY": settings.api_key} if settings.api_key else {})}
        os.execve(program, command, environment)
