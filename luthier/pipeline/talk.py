"""Models to talk to: base, tuned and merged model of a run, any model, or any OpenAI-compatible server.

The prompt of a local model goes through its own template; a server has its own. Each remembers its own turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.pipeline.rerun import recipe_of_run
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.data.template import ChatTemplate
    from luthier.endpoint.client import Endpoint

__all__ = ["RemoteTalker", "Speaker", "Talker", "open_remote", "open_talkers"]


class Speaker(Protocol):
    """Somebody in conversation, who remembers the turns."""

    name: str

    def say(self, text: str) -> Iterator[str]:
        """Add a user turn and yield the pieces of the answer as they come."""


@dataclass(kw_only=True)
class Talker:
    """One model in conversation; remembers the turns."""

    name: str
    model: Any
    tokenizer: Any
    template: ChatTemplate
    max_new_tokens: int
    temperature: float
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> Iterator[str]:
        """Add a user turn and yield the pieces of the answer as they come."""
        from luthier.generation.stream import stream
        from luthier.model.stops import stop_ids

        self.messages.append({"role": "user", "content": text})
        pieces = []
        for piece in stream(
            self.model,
            self.tokenizer,
            self.template.prompt_ids(self.messages),
            max_new_tokens=self.max_new_tokens,
            stop_ids=stop_ids(self.tokenizer, self.model),
            temperature=self.temperature,
        ):
            pieces.append(piece)
            yield piece
        self.messages.append({"role": "assistant", "content": "".join(pieces)})


@dataclass(kw_only=True)
class RemoteTalker:
    """One model behind a server."""

    name: str
    endpoint: Endpoint
    max_new_tokens: int
    temperature: float
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> Iterator[str]:
        """Add a user turn and yield the pieces of the answer as they come.

        Raises:
            AccessError, RecipeError, RunFailed: as `Endpoint.stream`.
        """
        from luthier.endpoint.reply import ChatRequest

        asked = [*self.messages, {"role": "user", "content": text}]
        request = ChatRequest(messages=asked, max_tokens=self.max_new_tokens, temperature=self.temperature)
        pieces = []
        for piece in self.endpoint.stream(request):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def open_remote(
    url: str, model: str, *, api_key_env: str | None, system: str | None, max_new_tokens: int, temperature: float
) -> RemoteTalker:
    """A model behind an OpenAI-compatible server.

    Args:
        url: up to and with the version, for instance `http://localhost:8000/v1`.
        model: name the server knows it by.
        api_key_env: variable that holds the key; None: no key is sent.
        system: First message of the conversation.
        max_new_tokens: Longest answer.
        temperature: 0 for greedy.

    Raises:
        RecipeError: no such kind of URL.
        AccessError: the variable is not set.
    """
    from luthier.endpoint.client import Endpoint
    from luthier.endpoint.settings import EndpointSettings

    settings = EndpointSettings(base_url=url, model=model, api_key_env=api_key_env, max_retries=2, concurrency=1)
    start = [{"role": "system", "content": system}] if system else []
    return RemoteTalker(
        name=model, endpoint=Endpoint(settings), max_new_tokens=max_new_tokens, temperature=temperature, messages=start
    )


def open_talkers(
    target: str, which: Sequence[str], *, system: str | None, max_new_tokens: int, temperature: float
) -> list[Talker]:
    """Load the models to talk to.

    Args:
        target: Run folder (then `which` of its `base`, `tuned` and `merged` model), model folder or hub id.
        which: Subset of `("base", "tuned", "merged")`; a plain model has only `tuned`, itself.
        system: First message of the conversation.
        max_new_tokens: Longest answer.
        temperature: 0 for greedy.

    Raises:
        RecipeError: the base or merged model of what is no run, or a run that was not merged.
    """
    from luthier.data.template import ChatTemplate
    from luthier.model.load import load_base, load_tuned
    from luthier.model.tokenizer import load_tokenizer
    from luthier.runtime.device import pick_device, set_threads

    folder = Path(target)
    is_run = (folder / "manifest.json").is_file()
    if not is_run and set(which) != {"tuned"}:
        raise RecipeError(
            code="X643", message=f"{target} is no run, and --base, --merged and --side-by-side choose a model of a run",
            hint="name a run's folder, or remove them",
        )  # fmt: skip
    device = pick_device()
    set_threads()
    dtype = "bfloat16" if device.native_bf16 else "float32"
    section = recipe_of_run(folder).model if is_run else ModelSection(name_or_path=target)
    tokenizer = load_tokenizer(section)
    quantization = "nf4" if is_run and recipe_of_run(folder).method.name == "qlora" else "none"
    talkers = []
    for name in which if is_run else ("model",):
        if is_run and name != "base":
            _same_prompts(folder / ("final" if name == "tuned" else "merged"), tokenizer, section)
        elif not is_run:
            section = _same_prompts(folder, tokenizer, section)
        if name == "tuned":
            model = load_tuned(section, folder / "final", device=device, dtype=dtype, quantization=quantization)
        elif name == "merged":
            merged = _merged_section(section, folder)
            model = load_base(merged, device=device, dtype=dtype, quantization="none")
        else:
            model = load_base(section, device=device, dtype=dtype, quantization=quantization)
        talkers.append(
            Talker(
                name=name,
                model=model,
                tokenizer=tokenizer,
                template=ChatTemplate(tokenizer, kwargs=section.chat_template_kwargs),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                messages=[{"role": "system", "content": system}] if system else [],
            )
        )
    return talkers


def _same_prompts(folder: Path, tokenizer: Any, section: ModelSection) -> ModelSection:
    """The talk is rendered as training rendered its rows, and the folder's own files say the same.

    Returns:
        The section, with the template's variables of the training that made the folder.

    Raises:
        RunFailed: they do not.
    """
    from luthier.data.template import ChatTemplate
    from luthier.model.contract import check_saved, contract_of, require_same

    contract = contract_of(folder) if folder.is_dir() else None
    if contract is None:
        return section
    section = section.model_copy(update={"chat_template_kwargs": dict(contract["kwargs"])})
    template = ChatTemplate(tokenizer, kwargs=section.chat_template_kwargs)
    require_same(contract, template, stops=None, where=str(folder))
    check_saved(folder, contract)
    return section


def _merged_section(section: ModelSection, run: Path) -> ModelSection:
    """The merged model of a run, with its own tokenizer."""
    folder = run / "merged"
    if not folder.is_dir():
        raise RecipeError(code="X643", message=f"{run} has no merged model", hint=f"`luthier merge {run}` makes it")
    return section.model_copy(update={"name_or_path": str(folder), "revision": None, "new_tokens": []})
