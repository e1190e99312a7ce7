"""Does a file answer like the merged model? Read back by llama.cpp, or without its wheel by transformers' own loader.

Five things must hold before a file gets its name:

    tokens     the runner cuts texts into the ids that training saw, the beginning-of-sequence token once
    template   conversations through the template in the file become the ids that they became in training
    stops      every token that ends an answer ends it there
    logits     log-probabilities of the 20 likeliest first tokens are within 3 max|E - D| + 0.02 of D (`logits.py`)
    choices    where D's first choice leads by more than twice that, it is the runner's, too

What rounding the weights costs is no fault of the file and is told: KL of merged to D, equal choices, answers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.export.gguf.logits import greedy, last_logits, put_weights, rounded_inputs
from luthier.export.gguf.runner import Runner, is_available, running
from luthier.export.gguf.write import Written
from luthier.export.verify import check_prompts, logits_of, mean_kl
from luthier.model.stops import stop_ids
from luthier.runtime.console import progress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["TALKS", "GgufReport", "check_gguf", "render", "report_lines"]

TOP = 20
MARGIN, FLOOR = 3.0, 0.02
"""Times E's distance, plus what another order of sums and other approximations of exp and the like leave."""
UNLIKELY = -20.0
"""Log-probabilities below are not compared: the runner makes them from probabilities in float32."""
ANSWER_TOKENS, ANSWERS = 24, 6
_QUESTIONS = (
    "What is the capital of France?",
    "Who wrote Hamlet? Answer with a name.",
    "What is 12 + 30?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "Translate 'good morning' to French.",
)
_TEXTS = (
    "Order 0123456789 of 12345, 6.75 EUR: it's DONE!\n\n  Two spaces\tand a tab.",
    "Grüße, 東京 – naïve café… 🙂👍🏽 \u200b x² ½",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # comment\r\n",
)
TALKS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 2 + 2 = ?"}],
    [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C\n\nD"}],
)


@dataclass(slots=True, kw_only=True)
class GgufReport:
    """What a file is and how it compares; the content of export/gguf.json."""

    file: str
    type: str
    bytes: int
    bits_per_weight: float
    weight_error: float
    """Relative error of all weights as they stand in the file, root mean square."""
    kl: float
    """Mean KL(merged || file's weights) over all positions of the check texts, nats: what rounding weights costs."""
    same_choice: float
    """Share of these positions with the same first choice."""
    reader: str
    """Who read the file back."""
    gap: float
    """Largest difference of a first token's log-probability between reader and D."""
    allowed: float
    answers: int = 0
    answers_equal: int = 0
    """Greedy answers of the reader that are the merged model's, token for token."""
    faults: list[str] = field(default_factory=list)
    """Why the file must not be used; empty if it passed."""
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all five hold."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """As written."""
        return {**asdict(self), "passed": self.passed}


def report_lines(report: dict[str, Any]) -> list[str]:
    """A file in words."""
    answers = f"{report['answers_equal']} of {report['answers']} greedy answers equal, " if report["answers"] else ""
    return [
        f"{report['file']}: {report['bytes'] / 1e6:,.0f} MB, {report['bits_per_weight']:.1f} bits a weight",
        f"  rounding the weights: relative error {report['weight_error']:.2g}, KL {report['kl']:.2g} nats, "
        f"same first choice on {report['same_choice']:.1%}",
        f"  read back by {report['reader']}: {answers}log-probabilities within {report['gap']:.2g} of what "
        f"these weights give (at most {report['allowed']:.2g} is explained by its rounding)",
    ]


def check_gguf(written: Written, file: Path, kind: str, *, folder: Path) -> GgufReport:
    """Read the file back and compare.

    Needs the model in float32, then the runner's copy.

    Args:
        written: What `write_gguf` wrote.
        file: There.
        kind: Name of its type.
        folder: The merged model.

    Raises:
        RunFailed: the reader does not load the file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with progress("check", 4, "steps") as bar:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        texts = check_prompts(tokenizer, run_folder=folder.parent, extra_ids=())
        prompts = _prompts(tokenizer)
        stops = frozenset(stop_ids(tokenizer, model))
        merged = logits_of(model, texts)
        answers = [greedy(model, ids, max_new_tokens=ANSWER_TOKENS, stops=stops) for ids in prompts[:ANSWERS]]
        bar.advance(say="merged")
        error = put_weights(model, written.weights, file)
        rounded = logits_of(model, texts)
        expected = last_logits(model, prompts)
        names = {own: other for own, other, _ in written.weights.names()}
        with rounded_inputs(model, _types(file), names):
            shaken = last_logits(model, prompts)
        allowed = MARGIN * max(_gap(one, other) for one, other in zip(expected, shaken, strict=True)) + FLOOR
        report = GgufReport(
            file=file.name, type=kind, bytes=file.stat().st_size,
            bits_per_weight=8 * file.stat().st_size / _count(model), weight_error=error,
            kl=mean_kl(merged, rounded), same_choice=_agreement(merged, rounded), reader="", gap=0.0, allowed=allowed,
            notes=list(written.notes),
        )  # fmt: skip
        if not math.isfinite(allowed):
            report.faults.append("inputs rounded as llama.cpp rounds them for this type overflow: take bf16 or f32")
        bar.advance(say="expected")
        del model
        if is_available():
            _by_llama_cpp(report, file, tokenizer, prompts, expected, answers, stops)
        else:
            _by_transformers(report, file, prompts, expected)
        bar.advance(2, say="read back")
    return report


def _types(file: Path) -> dict[str, str]:
    from gguf import GGUFReader

    return {tensor.name: tensor.tensor_type.name.lower() for tensor in GGUFReader(file).tensors}


def _prompts(tokenizer: Any) -> list[list[int]]:
    """Questions as the model is asked in training's own words, or as plain text without a template."""
    if not tokenizer.chat_template:
        return [list(tokenizer(text)["input_ids"]) for text in _QUESTIONS]
    texts = [render(tokenizer, [{"role": "user", "content": text}]) for text in _QUESTIONS]
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _by_llama_cpp(
    report: GgufReport, file: Path, tokenizer: Any, prompts: Sequence[list[int]], expected: Sequence[Tensor],
    answers: Sequence[list[int]], stops: frozenset[int],
) -> None:  # fmt: skip
    report.reader = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    room = max(map(len, prompts)) + ANSWER_TOKENS + 8
    told = int(tokenizer("a", add_special_tokens=False)["input_ids"][-1])
    with running(file, context=max(512, room)) as runner:
        report.faults += _token_faults(runner, tokenizer)
        _compare_template(report, runner, tokenizer)
        for place, (ids, logs) in enumerate(zip(prompts, expected, strict=True)):
            found, tokens = runner.first(ids, top=TOP, told=told)
            if tokens != len(ids):
                report.faults.append(f"a prompt of {len(ids)} tokens became {tokens} in the runner")
            _compare(report, place, logs, found)
        ends = stops | set(tokenizer.all_special_ids)  # llama.cpp also ends at some control tokens it knows by name
        for ids, answer in zip(prompts, answers, strict=False):
            theirs = runner.answer(ids, max_new_tokens=ANSWER_TOKENS)
            report.answers += 1
            report.answers_equal += _until_stop(theirs, ends) == _until_stop(answer, ends)
        for token in sorted(stops):
            if not runner.stops_at(prompts[0], token):
                report.faults.append(
                    f"{tokenizer.convert_ids_to_tokens(token)!r} ends an answer, but not in the runner"
                )


def _by_transformers(report: GgufReport, file: Path, prompts: Sequence[list[int]], expected: Sequence[Tensor]) -> None:
    """Weights only: that loader makes a tokenizer of its own, which is not compared."""
    from transformers import AutoModelForCausalLM

    report.reader = (
        f"transformers {version('transformers')} (weights only; for tokens, template and stops: pip install xllamacpp)"
    )
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    report.allowed = FLOOR
    for place, (logs, found) in enumerate(zip(expected, last_logits(model, prompts), strict=True)):
        top = found.topk(TOP)
        _compare(report, place, logs, dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _token_faults(runner: Runner, tokenizer: Any) -> list[str]:
    faults = []
    for text in (*_TEXTS, *_QUESTIONS[:2]):
        for special in (False, True):
            ours = list(tokenizer(text, add_special_tokens=special)["input_ids"])
            theirs = runner.tokenize(text, add_special=special)
            if ours != theirs:
                place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
                faults.append(
                    f"{text[:30]!r} is cut differently from token {place} on: {ours[place:][:4]}, {theirs[place:][:4]}"
                )
    return faults


def render(tokenizer: Any, talk: Sequence[Mapping[str, str]]) -> str:
    """A conversation through the tokenizer's template, with the generation prompt.

    Raises:
        jinja2.TemplateError: the template refuses it.
    """
    return str(tokenizer.apply_chat_template(list(talk), tokenize=False, add_generation_prompt=True))


def _compare_template(report: GgufReport, runner: Runner, tokenizer: Any) -> None:
    from jinja2 import TemplateError

    for talk in TALKS if tokenizer.chat_template else ():
        try:
            ours = render(tokenizer, talk)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in talk)
            report.notes.append(f"the template refuses talks of {roles}, so none was compared: {error}")
            continue
        theirs = runner.render(talk)
        # The runner may leave out a beginning-of-sequence token that its tokenizer adds: what counts are the ids.
        ids = list(tokenizer(ours, add_special_tokens=False)["input_ids"])
        if ids != runner.tokenize(theirs, add_special=True):
            report.faults.append(f"the template renders differently: {ours[:80]!r}, {theirs[:80]!r}")


def _compare(report: GgufReport, place: int, expected: Tensor, found: Mapping[int, float]) -> None:
    likely = {token: value for token, value in found.items() if float(expected[token]) > UNLIKELY}
    gap = max((abs(float(expected[token]) - value) for token, value in likely.items()), default=math.inf)
    report.gap = max(report.gap, gap)
    if not gap <= report.allowed:  # so is what is not a number
        report.faults.append(
            f"prompt {place}: a log-probability is off by {gap:.3g}, at most {report.allowed:.3g} is explained"
        )
        return
    best = expected.topk(2)
    lead = float(best.values[0] - best.values[1])
    first = max(found, key=lambda token: found[token])
    if lead > 2 * report.allowed and first != int(best.indices[0]):
        report.faults.append(f"prompt {place}: another first token, against a lead of {lead:.3g}")


def _gap(one: Tensor, other: Tensor) -> float:
    top = one.topk(TOP).indices
    top = top[one[top] > UNLIKELY]
    return float((one[top] - other[top]).abs().nan_to_num(nan=math.inf).max())


def _agreement(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    pairs = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(one, other, strict=True)]
    return float(torch.cat(pairs).float().mean())


def _until_stop(ids: Sequence[int], stops: Collection[int]) -> list[int]:
    place = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:place])


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
