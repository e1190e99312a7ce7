"""`luthier chat`: talk to a run's tuned model, its base, any model folder, or any OpenAI-compatible server."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.pipeline.talk import Speaker


def chat(
    target: Annotated[
        str | None, typer.Argument(help="Run folder, model folder or hub id.", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and stop.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the untouched base of a run.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Talk to the merged model of a run.")] = False,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Answers of base and tuned model.")] = False,
    beside: Annotated[list[str] | None, typer.Option(help="A further run or model; repeat.")] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="URL of a server, such as http://localhost:8000/v1; repeat.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model of each --endpoint, in order.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key of the servers; none: no key is sent.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model, or to several at once; an empty line or Ctrl-D ends the talk."""
    from luthier.pipeline.talk import open_remote, open_talkers

    servers = _pairs(target, endpoint or [], model or [], api_key_env)
    if target is None and (base or merged or side_by_side):
        message = "--base, --merged and --side-by-side choose a model of a run, and no run is named"
        raise RecipeError(code="X643", message=message, hint="name the run's folder, or remove them")
    how = {"system": system, "max_new_tokens": max_new_tokens, "temperature": temperature}
    # Servers first: a key that is missing is told before a model is loaded.
    remote = [open_remote(url, name, api_key_env=api_key_env, **how) for url, name in servers]  # type: ignore[arg-type]
    chosen = ["base"] * (base or side_by_side) + ["tuned"] * side_by_side + ["merged"] * merged
    talkers: list[Speaker] = []
    for place in [target, *(beside or [])] if target else beside or []:
        found = open_talkers(place, chosen or ["tuned"] if place == target else ["tuned"], **how)  # type: ignore[arg-type]
        for local in found:
            local.name = local.name if place == target else str(place)
        talkers += found
    talkers += remote
    _name_apart(talkers)
    if prompt is not None:
        answers = {
            talker.name: _answer(talker, prompt, stream=not as_json, named=len(talkers) > 1) for talker in talkers
        }
        if as_json:
            emit_json({"prompt": prompt, "answers": answers})
        return
    if as_json:
        raise RecipeError(code="X643", message="--json gives the answers to one prompt", hint="add --prompt TEXT")
    while (text := _ask()) is not None:
        for talker in talkers:
            _answer(talker, text, stream=True, named=len(talkers) > 1)


def _pairs(target: str | None, urls: list[str], models: list[str], key: str | None) -> list[tuple[str, str]]:
    """Each server with its model.

    Raises:
        RecipeError: nobody to talk to, or servers and models that do not pair.
    """
    if target is None and not urls:
        raise RecipeError(
            code="X643", message="nobody to talk to: no target (a run or model folder), no --endpoint",
            hint="luthier chat runs/NAME, or --endpoint URL --model NAME",
        )  # fmt: skip
    if len(urls) != len(models):
        raise RecipeError(
            code="X643", message=f"{len(urls)} --endpoint and {len(models)} --model: each server needs its model",
            hint="--endpoint http://localhost:8000/v1 --model NAME",
        )  # fmt: skip
    if key is not None and not urls:
        raise RecipeError(code="X643", message="--api-key-env without --endpoint", hint="remove it, or add --endpoint")
    return list(zip(urls, models, strict=True))


def _name_apart(talkers: list[Speaker]) -> None:
    """Two of one name get numbers."""
    counts = Counter(talker.name for talker in talkers)
    seen: Counter[str] = Counter()
    for talker in talkers:
        if counts[talker.name] > 1:
            name = talker.name
            seen[name] += 1
            talker.name = f"{name} ({seen[name]})"


def _answer(talker: Speaker, text: str, *, stream: bool, named: bool) -> str:
    if stream and named:
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


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None
