"""Models to talk to: base and tuned model of a run, or any model. The prompt goes through the model's own template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.pipeline.rerun import recipe_of_run
from luthier.recipe.schema import ModelSection

if TYPE_CHECKING:
    from luthier.data.template import ChatTemplate

__all__ = ["Talker", "open_talkers"]


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


def open_talkers(
    target: str, which: Sequence[str], *, system: str | None, max_new_tokens: int, temperature: float
) -> list[Talker]:
    """Load the models to talk to.

    Args:
        target: Run folder (then `which` of its `base` and `tuned` model), model folder or hub id.
        which: Subset of `("base", "tuned")`; ignored for plain models.
        system: First message of the conversation.
        max_new_tokens: Longest answer.
        temperature: 0 for greedy.
    """
    from luthier.data.template import ChatTemplate
    from luthier.model.load import load_base, load_tuned
    from luthier.model.tokenizer import load_tokenizer
    from luthier.runtime.device import pick_device, set_threads

    device = pick_device()
    set_threads()
    dtype = "bfloat16" if device.native_bf16 else "float32"
    folder = Path(target)
    is_run = (folder / "manifest.json").is_file()
    section = recipe_of_run(folder).model if is_run else ModelSection(name_or_path=target)
    tokenizer = load_tokenizer(section)
    quantization = "nf4" if is_run and recipe_of_run(folder).method.name == "qlora" else "none"
    talkers = []
    for name in which if is_run else ("model",):
        if name == "tuned":
            model = load_tuned(section, folder / "final", device=device, dtype=dtype, quantization=quantization)
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
