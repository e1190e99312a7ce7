"""`luthier chat`: talk to a run's tuned model, its base, or any model folder."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json


def chat(
    target: Annotated[str, typer.Argument(help="Run folder, model folder or hub id.", show_default=False)],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and stop.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the untouched base of a run.")] = False,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Answers of base and tuned model.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model; an empty line or Ctrl-D ends the talk."""
    from luthier.pipeline.talk import Talker, open_talkers

    which = ("base", "tuned") if side_by_side else ("base",) if base else ("tuned",)
    talkers = open_talkers(target, which, system=system, max_new_tokens=max_new_tokens, temperature=temperature)

    def answer(talker: Talker, text: str, *, stream: bool) -> str:
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
