"""Rules across the keys of a spec: what excludes or needs each other, and what would have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pydantic import BaseModel

from luthier.recipe.filter_rules import filter_rules
from luthier.recipe.positions import Locate
from luthier.recipe.unused import contradictions_in_dedup, unused_in_dedup
from luthier.runtime.errors import Problem
from luthier.scoring.extract import compile_pattern
from luthier.synthesis.spec import EndpointSection, JudgeSpec, SynthSpec

__all__ = ["check_spec"]

_OWN_KEYS = {"messages", "model", "max_tokens", "temperature", "top_p", "seed", "response_format", "n", "stream"}
_MODES = ("documents", "seeds", "evolve", "rejection")
_OF_ANSWERS = ("echo", "endings", "refusals", "boilerplate", "repetition")


def check_spec(spec: SynthSpec, locate: Locate) -> list[Problem]:
    """Every problem that the rules find."""
    rules: tuple[Callable[[SynthSpec, Locate], Iterator[Problem]], ...] = (
        _models, _sections, _documents, _rejection, _judge, _filters, _dedup, _out,
    )  # fmt: skip
    return [problem for rule in rules for problem in rule(spec, locate)]


def _no_effect(section: BaseModel, prefix: str, unused: Mapping[str, str], locate: Locate) -> Iterator[Problem]:
    """Keys that were written, are not null, and would have no effect."""
    for key, reason in unused.items():
        if key in section.model_fields_set and getattr(section, key) is not None:
            name = f"{prefix}.{key}".lstrip(".")
            message = f"`{name}` would have no effect: {reason}"
            yield locate(name, on="key").problem("C111", message, hint="remove it")


def _models(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    if (spec.endpoint is None) == (spec.local is None):
        what = "has both `endpoint` and `local`" if spec.endpoint else "names no model"
        hint = "endpoint: {base_url: ..., model: ...}, or local: {name_or_path: ...}"
        yield locate("endpoint").problem("C110", f"the spec {what}: exactly one of them is asked", hint=hint)
    for name, section in (("endpoint", spec.endpoint), ("judge.endpoint", spec.judge.endpoint if spec.judge else None)):
        if section is not None:
            yield from _endpoint(name, section, locate)
    if spec.local is not None:
        unused = {"structured": "a model without a server takes no response_format; JSON is asked for in words"}
        yield from _no_effect(spec, "", unused, locate)
        yield from _no_effect(spec.sampling, "sampling", {"send_seed": "there is no server to send it to"}, locate)
        if spec.judge is not None and spec.judge.endpoint is not None:
            message = "`judge.endpoint` beside `local`: the judge is the local model, or writer and judge are servers"
            yield locate("judge.endpoint", on="key").problem("C110", message)


def _endpoint(name: str, section: EndpointSection, locate: Locate) -> Iterator[Problem]:
    if section.budget_usd is not None and (section.input_price is None or section.output_price is None):
        message = f"`{name}.budget_usd` needs the prices it is counted with"
        hint = "add input_price and output_price, US dollars a million tokens; or use budget_tokens"
        yield locate(f"{name}.budget_usd", on="key").problem("C110", message, hint=hint)
    given = {key for key, value in section.extra_body.items() if value is not None}
    for key in sorted(given & _OWN_KEYS):
        message = f"`{name}.extra_body.{key}` is set by the spec's own keys, or not read"
        yield locate(f"{name}.extra_body").problem("C110", message, hint="see `sampling` and `structured`")


def _sections(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    if getattr(spec, spec.mode) is None:
        message = f"`mode: {spec.mode}` needs the section `{spec.mode}`"
        yield locate("mode").problem("C110", message, hint=f"add {spec.mode}: with its keys")
    unused = {name: f"the mode is {spec.mode}" for name in _MODES if name != spec.mode}
    yield from _no_effect(spec, "", unused, locate)
    if spec.mode == "rejection":
        judged = spec.judge is not None
        yield from _no_effect(spec, "", {} if judged else {
            "structured": "answers of rejection sampling are text", "repairs": "answers of rejection sampling are text",
            "prompts": "prompts of rejection sampling are those of its rows",
        }, locate)  # fmt: skip
    for name, section in (("seeds.examples", spec.seeds and spec.seeds.examples),
                          ("evolve.source", spec.evolve and spec.evolve.source),
                          ("rejection.source", spec.rejection and spec.rejection.source)):  # fmt: skip
        if section is not None:
            yield from _no_effect(section, name, {"weight": "each prompt is asked once"}, locate)
        if section is not None and name != "rejection.source":
            yield from _no_effect(section, name, {"system": "the spec's own `system` is used"}, locate)


def _documents(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    section = spec.documents
    if section is not None and section.overlap_tokens > section.chunk_tokens // 2:
        message = f"`documents.overlap_tokens` is {section.overlap_tokens}: more than half of {section.chunk_tokens}"
        yield locate("documents.overlap_tokens").problem("C110", message, hint="a tenth of chunk_tokens is usual")


def _rejection(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    section = spec.rejection
    if section is None:
        return
    scorer, key = section.scorer, "rejection.scorer"
    if (scorer.name is None) == (scorer.python is None):
        message = "a scorer has either `name` or `python`"
        yield locate(key).problem("C110", message, hint="scorer: {name: number}, or scorer: {python: FILE.py:FUNCTION}")
    if scorer.python is not None and ":" not in scorer.python:
        yield locate(f"{key}.python").problem("C103", "`rejection.scorer.python` must be FILE:FUNCTION")
    if scorer.name == "regex" and scorer.pattern is None:
        yield locate(key).problem("C110", "scorer `regex` needs a `pattern`", hint=r"pattern: 'answer: (\w+)'")
    if scorer.pattern is not None:
        try:
            compile_pattern(scorer.pattern)
        except ValueError as error:
            yield locate(f"{key}.pattern").problem("C103", f"`{key}.pattern` {error}")
    if scorer.python is not None or scorer.name == "judge":
        yield from _no_effect(scorer, key, {"pattern": "it is for comparisons with the reference"}, locate)
    if scorer.python is None:
        yield from _no_effect(scorer, key, {"accept": "it is for `python`; a judge has its own"}, locate)
    if scorer.name == "judge" and spec.judge is None:
        message = "scorer `judge` needs the section `judge`"
        yield locate(key).problem("C110", message, hint="judge: {rubric: ...}")
    if section.keep not in ("all", "pairs"):
        unused = {"max_per_prompt": f"`keep: {section.keep}` keeps one row of a prompt"}
        yield from _no_effect(section, "rejection", unused, locate)
    if section.n > 1 and spec.sampling.temperature == 0:
        message = f"{section.n} answers at temperature 0 would all be the same"
        yield locate("sampling.temperature").problem("C110", message, hint="temperature: 0.7, or n: 1")
    if section.keep == "pairs" and section.n < 2:
        yield locate("rejection.n").problem("C110", "a pair needs two answers", hint="n: 4 or more")


def _judge(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    judge: JudgeSpec | None = spec.judge
    if judge is None:
        return
    if not judge.min_score < judge.max_score or not judge.min_score <= judge.accept <= judge.max_score:
        message = (f"`judge`: accept {judge.accept:g} must be within min_score {judge.min_score:g} and max_score "
                   f"{judge.max_score:g}, which must differ")  # fmt: skip
        yield locate("judge").problem("C110", message)
    scores = spec.rejection is not None and spec.rejection.scorer.name == "judge"
    if spec.mode == "rejection" and spec.rejection and spec.rejection.keep == "pairs" and not scores:
        message = "`judge` scores rows with one answer, and `keep: pairs` makes pairs"
        yield locate("judge", on="key").problem("C110", message, hint="scorer: {name: judge} scores the answers")
    if spec.seeds is not None and spec.mode == "seeds" and not spec.seeds.answer:
        yield locate("judge", on="key").problem("C110", "`judge` scores answers, and `seeds.answer: false` makes none")


def _filters(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    filters = spec.filters
    if filters is None:
        return
    pairs = spec.mode == "rejection" and spec.rejection is not None and spec.rejection.keep == "pairs"
    yield from filter_rules(filters, locate, kind="pairs" if pairs else "tokens", prefix="filters")
    if filters.judge is not None:
        message = "`filters.judge` would ask past the spec's journal and budgets"
        hint = "judge: {rubric: ..., accept: 4}, a section of the spec"
        yield locate("filters.judge", on="key").problem("C110", message, hint=hint)
    if filters.length is not None and filters.length.unit == "tokens":
        message = "`filters.length` counts tokens, and a spec has no tokenizer of the model to be trained"
        yield locate("filters.length", on="key").problem("C110", message, hint="unit: words, or unit: characters")
    if spec.mode == "seeds" and spec.seeds is not None and not spec.seeds.answer:
        reason = "it looks at answers, and `seeds.answer: false` makes none"
        yield from _no_effect(filters, "filters", dict.fromkeys(_OF_ANSWERS, reason), locate)
        if filters.length is not None:
            unused = dict.fromkeys(("min_answer", "max_answer"), "`seeds.answer: false` makes no answers")
            yield from _no_effect(filters.length, "filters.length", unused, locate)


def _dedup(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    if spec.dedup is not None:
        yield from _no_effect(spec.dedup, "dedup", unused_in_dedup(spec.dedup), locate)
        for key, message, hint in contradictions_in_dedup(spec.dedup):
            yield locate(f"dedup.{key}" if key else "dedup").problem("C110", message, hint=hint)
        if spec.dedup.score == "@judge":
            message = "`dedup.score: @judge` is a score of `data.filters.judge`, which a spec does not have"
            yield locate("dedup.score").problem("C110", message, hint="keep: longest or first")


def _out(spec: SynthSpec, locate: Locate) -> Iterator[Problem]:
    if spec.out is not None and not spec.out.endswith(".jsonl"):
        yield locate("out").problem("C103", f"`out` must end in .jsonl; got {spec.out}")
