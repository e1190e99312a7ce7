"""A tokenizer's chat template as the one source of text and prompt ids, for training and serving alike.

`render` gives the text, `prompt_ids` the exact ids a model is asked with, in evaluation, chat and
training: the ids of every trained row begin with `prompt_ids` of the messages before the answer.

The template runs in `sandbox.BoundedTemplate`; on every new shape of conversation the result is
compared with `tokenizer.apply_chat_template`, which servers use. A difference is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from luthier.data.encode import Encoder, Interval
from luthier.data.literals import control_runs, placeholder_for, strings_of, substitute
from luthier.data.sandbox import BoundedTemplate, TemplateFailure, TemplateLimit
from luthier.data.served import as_served
from luthier.runtime.errors import DataError, Problem

__all__ = ["ChatTemplate", "Message", "Rendering"]

Message = Mapping[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Renders messages and encodes prompts.

    Args:
        tokenizer: a transformers fast tokenizer; its template is looked up when first needed, so
            that rows without messages need none.
        kwargs: extra variables for the template (`model.chat_template_kwargs`).
        control_tokens: as `data.control_tokens`; what happens to control tokens in messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        kwargs: Mapping[str, Any] | None = None,
        control_tokens: Literal["text", "allow", "error"] = "text",
    ) -> None:
        self.tokenizer = tokenizer
        self.kwargs = dict(kwargs or {})
        self.control_tokens = control_tokens
        self.encoder = Encoder(tokenizer)
        self._compiled: dict[str, BoundedTemplate] = {}
        self._compared: set[Any] = set()
        self._sources: dict[bool, str] = {}
        self._aliases: bool | None = None

    @cached_property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(self.tokenizer.special_tokens_map)

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """The template's text; some tokenizers have a second one for conversations with tools.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        known = self._sources.get(bool(tools))
        if known is not None:
            return known
        try:
            text: str = self.tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            name = getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__
            message = f"the tokenizer of {name} has no chat template, so conversations cannot be rendered"
            hint = "give one: `model.chat_template: path/to/template.jinja`; or use an instruct model"
            raise DataError(problems=[Problem(code="D241", message=message, hint=hint)]) from error
        self._sources[bool(tools)] = text
        return text

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Raises:
            TemplateFailure: the template refuses these messages.
            DataError: no template, one that does not compile, one that breaks its bounds, or one
                that transformers renders differently.
        """
        template = self._template(self.source(tools))
        plain = [as_served({key: value for key, value in message.items() if value is not None}) for message in messages]
        seen = self._with_aliases(plain)
        variables = {**self._special_tokens, **self.kwargs}
        variables |= {"messages": seen, "tools": list(tools) if tools else None, "documents": None}
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            text = template.render(variables)
        except TemplateLimit as error:
            message, hint = f"the chat template was stopped: {error}", "use another template (`model.chat_template`)"
            raise DataError(problems=[Problem(code="D242", message=message, hint=hint)]) from error
        self._compare(text, plain, tools, add_generation_prompt)
        return text

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """Ids of a prompt that asks for the next assistant message, exactly as training saw them.

        Raises:
            DataError: as `render`; the template refuses these messages; or a control token in a
                message with `control_tokens: error`.
        """
        rendering = Rendering(self, messages, tools)
        try:
            text = rendering.prompt(len(messages))
            literals = rendering.literals(text, prompt_of=len(messages))
        except TemplateFailure as failure:
            message = f"the chat template refuses these messages: {failure}"
            raise DataError(problems=[Problem(code="D222", message=message)]) from failure
        if literals and self.control_tokens == "error":
            a, b = literals[0]
            message = f"a message contains the control token {text[a:b]!r}"
            raise DataError(problems=[Problem(code="D223", message=message, hint="`data.control_tokens: text`")])
        starts = rendering.starts(text, below=len(messages))
        encoded, _ = self.encoder.encode_cut(text, starts, literals if self.control_tokens == "text" else ())
        return encoded.ids

    def _template(self, source: str) -> BoundedTemplate:
        if source not in self._compiled:
            try:
                self._compiled[source] = BoundedTemplate(source)
            except TemplateFailure as error:
                hint = "mend the template, or give another one: `model.chat_template`"
                problem = Problem(code="D243", message=f"the chat template cannot be used: {error}", hint=hint)
                raise DataError(problems=[problem]) from error
        return self._compiled[source]

    def _with_aliases(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Newer transformers pass a message's reasoning under two names; do what the installed one does."""
        if not any(key in message for message in messages for key in _REASONING):
            return messages
        if self._aliases is None:
            probe = [{"role": "user", "content": "", "reasoning": "x"}]
            shown = self.tokenizer.apply_chat_template(
                probe, chat_template="{{ messages[0].reasoning_content }}", tokenize=False
            )
            self._aliases = shown == "x"
        if not self._aliases:
            return messages
        aliased = []
        for message in messages:
            reasoning = next((message[key] for key in _REASONING if key in message), None)
            extra = {} if reasoning is None else {"reasoning_content": reasoning}
            aliased.append({**({"thinking": reasoning} if extra else {}), **message, **extra})
        return aliased

    def _compare(self, text: str, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool) -> None:
        """Render with transformers, too, once per shape of conversation: it is what a server runs."""
        roles = tuple((message.get("role"), *sorted(message)) for message in messages)
        shape = (add_generation_prompt, bool(tools), roles)
        if shape in self._compared or not messages or len(self._compared) > 1000:
            return
        self._compared.add(shape)
        served = self.tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=add_generation_prompt, tokenize=False, **self.kwargs
        )
        if served != text:
            message = f"transformers renders the chat template differently: {difference(text, served)}"
            hint = "please report this template; meanwhile give another one (`model.chat_template`)"
            raise DataError(problems=[Problem(code="D244", message=message, hint=hint)])


class Rendering:
    """Renderings of one conversation and of its beginnings, each made once.

    `full` is the text of all messages; `prompt(i)` what a server sends to get message i.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> None:
        self.template, self.messages, self.tools = template, messages, tools
        self._memo: dict[tuple[int, bool], str | TemplateFailure] = {}
        self._masked: list[dict[str, Any]] | None = None
        pattern = template.encoder.control_pattern
        strings = [*strings_of(messages), *strings_of(tools)]
        self._has_control = any(map(pattern.search, strings))
        self._placeholder: str | None = None
        if self._has_control:
            self._placeholder = placeholder_for(strings)

    def upto(self, count: int) -> str:
        """Text of the first `count` messages, without a generation prompt."""
        return self._get(count, False)

    @property
    def full(self) -> str:
        """Text of all messages."""
        return self._get(len(self.messages), False)

    def prompt(self, index: int) -> str:
        """Text of the messages before `index` and a generation prompt."""
        return self._get(index, True)

    def _get(self, count: int, prompt: bool) -> str:
        key = (count, prompt)
        if key not in self._memo:
            try:
                self._memo[key] = self.template.render(self.messages[:count], self.tools, add_generation_prompt=prompt)
            except TemplateFailure as failure:
                self._memo[key] = failure
        found = self._memo[key]
        if isinstance(found, TemplateFailure):
            raise found
        return found

    def starts(self, text: str, *, below: int) -> list[int]:
        """Where the assistant messages before `below` begin in `text`, as far as a served prompt proves it."""
        found = []
        for index, message in enumerate(self.messages[:below]):
            if message.get("role") == "assistant" and (start := self.prefix_start(text, index)) is not None:
                found.append(start)
        return sorted(set(found))

    def prefix_start(self, text: str, index: int) -> int | None:
        """Length of the served prompt for message `index` if `text` begins with it."""
        try:
            prompt = self.prompt(index)
        except TemplateFailure:
            return None
        return len(prompt) if text.startswith(prompt) else None

    def literals(self, text: str, *, upto: int | None = None, prompt_of: int | None = None) -> list[Interval]:
        """Stretches of a rendering that spell a control token because the data does, not the template.

        Found by rendering again with each such stretch of the data replaced by a placeholder of
        the same length: the two texts may differ in these stretches only.

        Args:
            text: the rendering of the first `upto` messages, or the prompt of message `prompt_of`.
            upto: see `text`; default: all messages.
            prompt_of: see `text`.

        Raises:
            TemplateFailure: the template treats the control token as more than text.
        """
        if not self._has_control:
            return []
        if self._placeholder is None:
            raise TemplateFailure("the data holds both control tokens and the private-use characters that mark them")
        pattern, mark = self.template.encoder.control_pattern, self._placeholder
        if self._masked is None:
            self._masked = substitute(list(self.messages), pattern, mark)
        count = prompt_of if prompt_of is not None else len(self.messages) if upto is None else upto
        masked = self.template.render(
            self._masked[:count], substitute(self.tools, pattern, mark), add_generation_prompt=prompt_of is not None
        )
        hidden = [place for place, character in enumerate(masked) if character == mark]
        rebuilt = list(masked)
        for place in hidden if len(masked) == len(text) else []:
            rebuilt[place] = text[place]
        if "".join(rebuilt) != text:
            raise TemplateFailure(f"the template changes control tokens in messages: {difference(masked, text)}")
        return control_runs(text, hidden, pattern)


def difference(ours: str, theirs: str, *, names: tuple[str, str] = ("one has", "the other"), width: int = 60) -> str:
    """The first place where two texts part, in words; `names` say whose text is whose."""
    place = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    before = ours[max(0, place - 30) : place]
    first, second = ours[place : place + width], theirs[place : place + width]
    return f"after {before!r} {names[0]} {first!r}, {names[1]} {second!r}"
