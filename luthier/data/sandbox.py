"""Render a chat template that somebody else wrote, within bounds of time and size.

A chat template is a program that comes with a model. transformers runs it in jinja2's immutable
sandbox, which keeps it from touching Python, but lets it loop for hours and build gigabytes. The
environment here adds a budget: every loop iteration and macro call looks at the clock, every
operation that makes text is charged for its size, and those whose result can be far larger than
their operands (`*`, `~`, `+`, `%`, `replace`, `join`, padding) are charged *before* they run.

Bounded per rendering: `CPU_SECONDS` of this thread, `MAX_CHARACTERS` of text made on the way
(output included), `MAX_SOURCE` of template. Not bounded: one operation on data that is itself huge
(rows have their own limits), and the number of renderings. The first rendering over a bound raises
`TemplateLimit`, which callers let through: it is the template's fault, not the row's.

Apart from the budget the environment is that of `transformers.utils.chat_template_utils` (5.17 to
5.23); `ChatTemplate` compares the two on every new shape of conversation.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.data.template_globals import Namespace, make_dict, raise_exception, strftime_now, to_json

__all__ = ["CPU_SECONDS", "MAX_CHARACTERS", "BoundedTemplate", "TemplateFailure", "TemplateLimit"]

CPU_SECONDS = 1.0
MAX_CHARACTERS = 20_000_000
MAX_SOURCE = 1_000_000

# What foreign template code can raise besides jinja2's own errors.
_CODE_ERRORS = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError, AssertionError,
)  # fmt: skip
_WIDE_FORMAT = re.compile(r"[%{][^%{}]*?\d{6,}")


class TemplateFailure(Exception):
    """The template does not compile, or refuses these messages; the text says why."""


class TemplateLimit(TemplateFailure):
    """The template used more time or space than a chat template may."""


_TICKS_A_LOOK = 8
"""Looking at the clock takes as long as a small call; each call is bounded by what it may charge."""


class Budget:
    """Time and characters left for the rendering in progress."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.left = 0
        self.ticks = 0

    def start(self) -> None:
        """Full budget; called at the beginning of each rendering."""
        self.deadline = time.thread_time() + CPU_SECONDS
        self.left = MAX_CHARACTERS

    def tick(self) -> str:
        """One loop iteration or call.

        Raises:
            TemplateLimit: the time is used up.
        """
        self.ticks += 1
        if self.ticks % _TICKS_A_LOOK == 0 and time.thread_time() > self.deadline:
            raise TemplateLimit(f"it ran for more than {CPU_SECONDS:g} s on one conversation")
        return ""

    def charge(self, characters: int) -> None:
        """Pay for text before or after it is made.

        Raises:
            TemplateLimit: the space is used up.
        """
        self.left -= max(characters, 0)
        if self.left < 0:
            raise TemplateLimit(f"it built more than {MAX_CHARACTERS:,} characters for one conversation")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


class _Ticks(jinja2.ext.Extension):
    """The `generation` block of transformers, and the calls that `_instrument` plants."""

    tags = {"generation"}  # noqa: RUF012 - declared as an instance variable by jinja2

    def parse(self, parser: Any) -> nodes.Node:
        """`{% generation %}...{% endgeneration %}` renders its body in a scope of its own, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        """Render the block."""
        return caller()

    def tick(self) -> str:
        """See `Budget.tick`."""
        return self.environment.budget.tick()  # type: ignore[attr-defined, no-any-return]

    def concat(self, parts: list[Any]) -> str:
        """`a ~ b`: the texts of its operands, joined."""
        texts = [str(part) for part in parts]
        self.environment.budget.charge(sum(map(len, texts)))  # type: ignore[attr-defined]
        return "".join(texts)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' chat-template environment with a budget."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        # optimized=False: jinja2 would otherwise run constant expressions while compiling, outside the budget.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Ticks, jinja2.ext.loopcontrols]
        )
        self.budget = Budget()
        self.filters = {name: self._charged(function) for name, function in self.filters.items()}
        self.filters["tojson"] = self._charged(to_json)
        self.globals.pop("lipsum", None)  # random text: no template needs it
        self.globals.update(
            raise_exception=raise_exception, strftime_now=strftime_now, dict=make_dict, namespace=Namespace
        )

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**`, `+` and `%`, refused before they make something huge."""
        if operator == "+" and type(left) is str and type(right) is str:  # nearly all there is in a chat template
            self.budget.charge(len(left) + len(right))
            return left + right
        if operator == "*":
            times = right if isinstance(right, int) else left if isinstance(left, int) else 1
            self.budget.charge(max(_size(left), _size(right)) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.budget.charge(left.bit_length() * max(right, 0) // 3)
        elif operator == "+":
            self.budget.charge(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            self._format_arguments(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Any call in the template: its arguments are looked at before, its result is charged after."""
        self.budget.tick()
        self._before(getattr(obj, "__name__", ""), getattr(obj, "__self__", None), args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        self.budget.charge(_size(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` as the sandbox offers it, with a look at its widths first."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._format_arguments(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return bounded

    def _charged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            if function.__name__ in ("do_join", "sync_do_join"):  # count the pieces of a lazy sequence, too
                args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
            data = [argument for argument in args if not isinstance(argument, jinja2.Environment | nodes.EvalContext)]
            name = function.__name__.removeprefix("sync_").removeprefix("do_")
            self._before(name, data[0] if data else None, tuple(data[1:]), kwargs)
            result = function(*args, **kwargs)
            self.budget.charge(_size(result))
            return result

        return charged

    def _before(self, name: str, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Charge for calls whose result may be much larger than what goes in."""
        values = [*args, *kwargs.values()]
        for value in values:
            if isinstance(value, int) and not isinstance(value, bool) and name != "range":
                self.budget.charge(value)  # a width, an indent, a count: each may become that many characters
        if name == "replace" and isinstance(subject, str) and len(args) >= 2:
            old, new = str(args[0]), str(args[1])
            self.budget.charge(subject.count(old) * len(new) + len(subject))
        elif name == "join":
            items = next((value for value in (subject, *values) if isinstance(value, list | tuple)), ())
            glue = next((value for value in (subject, *values) if isinstance(value, str)), "")
            self.budget.charge(sum(_size(item) + len(glue) for item in items))
        elif name in ("format", "format_map") and isinstance(subject, str):
            self._format_arguments(subject, values)

    def _format_arguments(self, pattern: str, values: Any) -> None:
        if _WIDE_FORMAT.search(pattern):
            raise TemplateLimit("it formats a value with a width of more than 100,000 characters")
        for value in values if isinstance(values, tuple | list) else [values]:
            self.budget.charge(_size(value) + (value if isinstance(value, int) and "*" in pattern else 0))


def _instrument(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Plant a tick in every loop and macro body, and replace `~` by a charged join."""
    ticks = next(item for item in environment.extensions.values() if isinstance(item, _Ticks))

    def replace_concats(node: nodes.Node) -> None:
        for name, value in list(node.iter_fields()):
            if isinstance(value, nodes.Concat):
                setattr(node, name, _charged_concat(value, ticks))
            elif isinstance(value, list):
                setattr(node, name, [_charged_concat(v, ticks) if isinstance(v, nodes.Concat) else v for v in value])
        for child in node.iter_child_nodes():
            replace_concats(child)

    replace_concats(tree)
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        line = node.lineno
        node.body.insert(0, nodes.ExprStmt(ticks.call_method("tick", lineno=line)).set_lineno(line))  # type: ignore[attr-defined]


def _charged_concat(node: nodes.Concat, ticks: _Ticks) -> nodes.Node:
    return ticks.call_method("concat", [nodes.List(node.nodes)], lineno=node.lineno).set_lineno(node.lineno)


class BoundedTemplate:
    """A compiled chat template.

    Raises:
        TemplateFailure: it does not compile.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateLimit(f"its source has {len(source):,} characters; {MAX_SOURCE:,} are allowed")
        self._environment = _BoundedEnvironment()
        try:
            tree = self._environment.parse(source)
            _instrument(tree, self._environment)
            code = self._environment.compile(tree)
        except (jinja2.TemplateError, *_CODE_ERRORS) as error:
            raise TemplateFailure(f"it does not compile: {error}") from error
        self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables.

        Raises:
            TemplateLimit: more time or space than allowed.
            TemplateFailure: the template raised, or asked for something that is not there.
        """
        budget = self._environment.budget
        budget.start()
        chunks: list[str] = []
        try:
            for chunk in self._template.generate(**variables):
                budget.tick()
                budget.charge(len(chunk))
                chunks.append(chunk)
        except (jinja2.TemplateError, *_CODE_ERRORS) as error:
            raise TemplateFailure(str(error) or type(error).__name__) from error
        return "".join(chunks)
