"""What training froze about prompts, and whether what is found later is still that.

A tuned model answers well to the prompts it was trained on. Another chat template, a stop token that is no longer
one, a second beginning-of-sequence token: the model still answers, only worse, and nothing says why. So training
writes down what its tokenizer makes of a few talks, and which tokens end an answer; whoever serves, scores, merges
or exports the result compares, and stops at the first token that differs.

    talks    text and ids of fixed conversations, through the template, with its variables
    plain    ids that the tokenizer puts in front of plain text (usually the BOS token, or nothing)
    stops    every token that ends an answer

It stands in the run's manifest and in `luthier.json` of the merged model. A template that writes the date makes
other text every day: where the template is the same to the last character, such a difference is a note, no error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.sandbox import TemplateFailure
from luthier.data.template import ChatTemplate, difference
from luthier.model.identity import read_record
from luthier.model.tokenizer import load_plain_tokenizer, load_tokenizer
from luthier.recipe.schema import ModelSection
from luthier.runs.manifest import read_manifest
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, Problem, RunFailed
from luthier.runtime.hashing import hash_json

__all__ = [
    "check_saved", "contract_of", "freeze_prompts", "other_template", "problems_of_saved", "prompt_problems",
    "require_same", "saved_stops",
]  # fmt: skip

Contract = Mapping[str, Any]
TALKS: dict[str, list[dict[str, str]]] = {
    "user": [{"role": "user", "content": "What is 2 + 2?"}],
    "system, user": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße! 2 + 2 = ?"}],
    "user, assistant, user": [
        {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C\n\nD"},
    ],
}  # fmt: skip
ANSWERED = "user, assistant"
"""A whole row, without a generation prompt: what follows an answer is part of what was trained."""
_HINT = (
    "give back the template, tokenizer and generation_config.json of the run; to use the model in another way on "
    "purpose, copy its folder out of the run and delete luthier.json there"
)


# -- frozen at training


def freeze_prompts(template: ChatTemplate, stops: Sequence[int]) -> dict[str, Any]:
    """What is to stay: `{template, kwargs, control_tokens, talks, plain, stops}`, plain values.

    Args:
        template: As training rendered and encoded its rows.
        stops: Ids that end an answer.
    """
    tokenizer = template.tokenizer
    return {
        "template": _source_hash(template),
        "kwargs": dict(template.kwargs),
        "control_tokens": template.control_tokens,
        "talks": _talks(template),
        "plain": list(template.encoder.default_prefix),
        "stops": [{"id": token, "token": str(tokenizer.convert_ids_to_tokens(token))} for token in stops],
    }


def contract_of(folder: Path) -> dict[str, Any] | None:
    """What training froze of the model in `folder` (`final`, `merged`, a checkpoint of a run, or a copy of a merged
    folder); None for a model of somebody else or of an older Luthier.

    Raises:
        RunFailed: manifest or record are damaged.
    """
    real = folder.resolve()
    run = real.parent.parent if real.parent.name == "checkpoints" else real.parent
    if (run / "recipe.yaml").is_file():
        found = read_manifest(run).get("prompts")
        if isinstance(found, dict):
            return found
    found = (read_record(folder) or {}).get("prompts") if folder.is_dir() else None
    return found if isinstance(found, dict) else None


# -- compared later


def require_same(contract: Contract | None, template: ChatTemplate, *, stops: Iterable[int] | None, where: str) -> None:
    """Stop if prompts or stop tokens are not those of training. Without a contract only a doubled BOS is looked for.

    Args:
        contract: From `contract_of`.
        template: What would be used.
        stops: Ids that would end an answer; None: not known here.
        where: What messages call it.

    Raises:
        RunFailed: every difference.
    """
    problems = prompt_problems(contract, template, where=where)
    if contract is not None and stops is not None:
        problems += _stop_problems(contract, stops, where=where)
    if problems:
        raise RunFailed(problems=problems)


def check_saved(folder: Path, contract: Contract | None) -> None:
    """The same for the files in a model's folder, as any other program would read them.

    Raises:
        RunFailed: every difference.
    """
    problems = problems_of_saved(folder, contract)
    if problems:
        raise RunFailed(problems=problems)


def problems_of_saved(folder: Path, contract: Contract | None) -> list[Problem]:
    """Tokenizer, template and generation_config.json of a folder against what training froze."""
    problems = []
    kwargs = dict(contract["kwargs"]) if contract is not None else {}
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(ModelSection(name_or_path=str(folder), tokenizer=str(folder)))
        control: Any = contract["control_tokens"] if contract is not None else "text"
        template = ChatTemplate(tokenizer, kwargs=kwargs, control_tokens=control)
        problems += prompt_problems(contract, template, where=str(folder))
    if contract is not None:
        problems += _stop_problems(contract, saved_stops(folder), where=f"{folder / 'generation_config.json'}")
    return problems


def saved_stops(folder: Path) -> list[int]:
    """Ids that generation_config.json calls the end of an answer; those of config.json where it says nothing."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        try:
            value = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise RunFailed(code="E581", message=f"{file} is damaged: {error}", hint=_HINT) from error
        found = value.get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else [int(one) for one in found]
    return []


def prompt_problems(contract: Contract | None, template: ChatTemplate, *, where: str) -> list[Problem]:
    """What is not as in training: the first talk that differs with its first token, BOS, plain text."""
    found = _talks(template)
    problems = _double_bos(found, template, where)
    if contract is None or problems:
        return problems
    frozen = contract["talks"]
    if not frozen and found:
        message = f"{where}: it has a chat template, and training had none: no talk was ever trained"
        return [Problem(code="E580", message=message, hint=_HINT)]
    same_template = contract["template"] == _source_hash(template) and contract["kwargs"] == template.kwargs
    for name, was in frozen.items():
        words = _talk_difference(was, found.get(name), template)
        if words is None:
            continue
        if same_template and was.get("text") != found.get(name, {}).get("text"):
            note(f"note: {where}: the same chat template writes another text than in training: {words}", style="yellow")
            break
        message = f"{where}: another prompt than in training for a talk of {name}: {words}"
        return [Problem(code="E580", message=message, hint=_HINT)]
    prefix = list(template.encoder.default_prefix)
    if contract["plain"] != prefix:
        names = [_names(template, ids) for ids in (prefix, contract["plain"])]
        message = f"{where}: plain text begins with {names[0]}, in training with {names[1]}"
        return [Problem(code="E580", message=message, hint=_HINT)]
    return []


def _talk_difference(
    was: Mapping[str, Any], now: Mapping[str, Any] | None, template: ChatTemplate, *,
    before: tuple[str, str] = ("in training it was", "training had"),
) -> str | None:  # fmt: skip
    """The first token that differs, in words; None if none does. `before` says whose `was` is."""
    if now is None:
        return "there is no chat template"
    if "refused" in was or "refused" in now:
        if ("refused" in was) == ("refused" in now):
            return None
        return f"the template refuses it ({now['refused']})" if "refused" in now else "it was refused before"
    if was["ids"] == now["ids"]:
        return None
    place = next(
        (index for index, (a, b) in enumerate(zip(was["ids"], now["ids"], strict=False)) if a != b),
        min(len(was["ids"]), len(now["ids"])),
    )
    here, there = (_names(template, ids[place : place + 1]) for ids in (now["ids"], was["ids"]))
    same_text = was["text"] == now["text"]
    text = "" if same_text else f"; {difference(now['text'], was['text'], names=('it has', before[1]))}"
    return f"token {place} is {here}, {before[0]} {there}{text}"


def _stop_problems(contract: Contract, stops: Iterable[int], *, where: str) -> list[Problem]:
    known = set(stops)
    return [
        Problem(
            code="E581",
            message=f"{where}: {stop['token']!r} (id {stop['id']}) ended answers in training and is no stop token here "
            f"({', '.join(map(str, sorted(known))) or 'none'}): answers would run on",
            hint=_HINT,
        )
        for stop in contract["stops"]
        if stop["id"] not in known
    ]


def _double_bos(talks: Mapping[str, Any], template: ChatTemplate, where: str) -> list[Problem]:
    begin, bos = template.encoder.bos
    for name, talk in talks.items():
        if bos is not None and talk.get("ids", [])[:2] == [bos, bos]:
            message = f"{where}: a prompt of {name} begins with two {begin!r} tokens (id {bos})"
            hint = "take one of them out of the chat template, or `add_bos_token` out of the tokenizer"
            return [Problem(code="E582", message=message, hint=hint)]
    return []


# -- another template than the base's own


def other_template(template: ChatTemplate, section: ModelSection) -> str | None:
    """Where the recipe's template or variables part from what the base itself was asked with; None if they do not.

    The base's own prompts are those of its tokenizer, or of the training that made it.
    """
    own = load_plain_tokenizer(section)
    contract = contract_of(Path(section.name_or_path))
    kwargs = contract["kwargs"] if contract is not None else {}
    theirs = _talks(ChatTemplate(own, kwargs=kwargs))
    found = _talks(template)
    if not theirs or not found:
        return None
    for name, was in theirs.items():
        words = _talk_difference(was, found[name], template, before=("the base's own is", "the base's own has"))
        if words is not None:
            return f"a talk of {name}: {words}"
    return None


# -- talks


def _talks(template: ChatTemplate) -> dict[str, Any]:
    """Text and ids of every talk, or why the template refuses it; empty without a template."""
    if not getattr(template.tokenizer, "chat_template", None):
        return {}
    asked = {name: _talk(template, messages, answered=False) for name, messages in TALKS.items()}
    return {**asked, ANSWERED: _talk(template, TALKS["user, assistant, user"][:2], answered=True)}


def _talk(template: ChatTemplate, messages: list[dict[str, str]], *, answered: bool) -> dict[str, Any]:
    try:
        text = template.render(messages, add_generation_prompt=not answered)
        ids = template.encoder.encode(text).ids if answered else template.prompt_ids(messages)
    except TemplateFailure as failure:
        return {"refused": str(failure)[:200]}
    except DataError as error:
        return {"refused": error.problems[0].message[:200]}
    return {"text": text, "ids": list(ids)}


def _source_hash(template: ChatTemplate) -> str | None:
    source = getattr(template.tokenizer, "chat_template", None)
    names = {key: str(getattr(template.tokenizer, key, None)) for key in ("bos_token", "eos_token", "unk_token")}
    return hash_json([source, names]) if source else None


def _names(template: ChatTemplate, ids: Sequence[int]) -> str:
    """Tokens with their ids, as a person reads them."""
    if not ids:
        return "nothing"
    size = len(template.tokenizer)
    return ", ".join(
        f"{template.tokenizer.decode([token]) if token < size else 'a token beyond the vocabulary'!r} (id {token})"
        for token in ids
    )
