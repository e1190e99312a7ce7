"""`luthier chat`: talk to a run's tuned model, its base, or any model folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Protocol

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json
from luthier.runtime.errors import RecipeError


class Speaker(Protocol):
    """Somebody to talk to."""

    name: str

    def say(self, text: str) -> Iterator[str]:
        """Pieces of the answer."""


def chat(
    target: Annotated[
        str | None, typer.Argument(help="Run folder, model folder or hub id.", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and stop.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the untouched base of a run.")] = False,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Answers of base and tuned model.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of its model.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds its API key.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model; an empty line or Ctrl-D ends the talk."""
    from luthier.pipeline.talk import open_talkers
    from luthier.pipeline.talk_endpoint import RemoteTalker

    if (target is None) == (endpoint is None) or (endpoint is None) != (model is None):
        raise RecipeError(
            code="S618", message="give a TARGET (run or model) to load, or --endpoint together with --model",
            hint="`luthier chat RUN`, or `luthier chat --endpoint http://localhost:8000/v1 --model NAME`",
        )  # fmt: skip
    talkers: list[Speaker]
    if endpoint is not None and model is not None:
        if base or side_by_side:
            raise RecipeError(
                code="S618", message="--base and --side-by-side are for runs", hint="name it with --model"
            )
        talkers = [RemoteTalker(endpoint, model, api_key_env=api_key_env, system=system, max_new_tokens=max_new_tokens,
                                temperature=temperature)]  # fmt: skip
    else:
        which = ("base", "tuned") if side_by_side else ("base",) if base else ("tuned",)
        talkers = list(
            open_talkers(target or "", which, system=system, max_new_tokens=max_new_tokens, temperature=temperature)
        )

    def answer(talker: Speaker, text: str, *, stream: bool) -> str:
        if stream and len(talkers) > 1:
            sys.stdout.write(f"[{talker.name}] ")
        pieces = []
        for piece in talker.say(text):
            pieces.append(piece)
            if stream:
                sys.stdout.write(piece)
                sys.stdout.flush()
        if stream:
            sys.stdout.write("\n")
        return "".join(pieces)

    if prompt is not None:
        answers = {talker.name: answer(talker, prompt, stream=not as_json) for talker in talkers}
        if as_json:
            emit_json({"prompt": prompt, "answers": answers})
        return
    while (text := _ask()) is not None:
        for talker in talkers:
            answer(talker, text, stream=True)


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None
