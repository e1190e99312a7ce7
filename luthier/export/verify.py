"""Does the merged model say what the adapter model says? Logits on fixed prompts, in fp32.

    B  the base without the adapter
    R  adapter on the base, everything in fp32: what was trained, computed exactly
    E  the same weights merged, everything in fp32
    C  E with each weight rounded to the type it is stored in
    M  the merged folder, read back from the disk by plain transformers

Two things must hold, neither of them loosened by what rounding costs:

    max|E - R| <= bound      the merge is right: every module, every scale
    max|M - C| <= bound      the folder holds just these weights, rounded once

    bound = min(1e-4 max|R|, max(1e-2 max|R - B|, 1e-5 max|R|))

fp32's own noise is about 1e-6 max|R|. An adapter of a few steps moves the logits by little, so the bound follows
what it does at all: a halved scale moves them by half of that. `rounding`, max|C - R|, is told, not judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.model.stops import end_of_turn_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MergeReport", "check_prompts", "compare_logits", "logits_of", "mean_kl"]

_MOST, _LEAST = 1e-4, 1e-5
_OF_THE_EFFECT = 1e-2
_PROMPT_TOKENS = 128
_SAMPLES = 4
_TEXTS = (
    "The capital of France is Paris. It lies on the river Seine, and about two million people live there.",
    "def add(first: int, second: int) -> int:\n    return first + second\n",
    "A farmer has 17 sheep; 8 + 9 = 17. He sells 5 of them for 40 each. How much money does he get?",
    '{"order": "A-1029", "priority": "high", "items": [1, 2, 3]}',
    "Guten Tag! Wie geht es Ihnen? 今日はいい天気ですね。 Спасибо, хорошо. 🙂",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """How far merged and adapter model are apart; the content of export/merge.json."""

    prompts: int
    tokens: int
    max_logit_difference: float
    """max |M - R| over all prompts, positions and vocabulary: merging and rounding together."""
    merging: float
    """max |E - R|: the merge before anything is rounded."""
    writing: float
    """max |M - C|: the folder against the same weights, rounded in memory."""
    effect: float | None
    """max |R - B|: what the adapter does at all; None for a whole model."""
    bound: float
    """What `merging` and `writing` must not exceed."""
    rounding: float
    """max |C - R|: what storing the exactly merged weights in `dtype` costs by itself; 0 for fp32."""
    mean_kl: float
    """Mean over positions of KL(adapter || merged), in nats."""
    argmax_agreement: float
    """Share of positions with the same most likely token."""
    adapter_kl: float | None
    """Mean KL(adapter || base): how much the adapter changes at all; None for a whole model."""
    dtype: str
    """Type the merged weights are stored in: that of the base."""
    base: str
    kind: str
    """`adapter` (merged) or `model` (trained in full: a checked copy)."""
    quantized_base: bool
    """Trained on a 4-bit base; merged into the original one."""
    quantization_kl: float | None = None
    """Mean KL(adapter on the 4-bit base || merged): what leaving the 4-bit base changes."""
    quantization_adapter_kl: float | None = None
    """Mean KL(adapter on the 4-bit base || 4-bit base): the same scale for comparison."""
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """As written to export/merge.json."""
        return asdict(self)


def check_prompts(tokenizer: PreTrainedTokenizerBase, *, run_folder: Path, extra_ids: Sequence[int]) -> list[list[int]]:
    """Token ids to compare on: built-in texts, one chat turn, rows of the run's own data, new tokens.

    Args:
        tokenizer: of the result.
        run_folder: if it has data/manifest.json, its sample rows are used as well.
        extra_ids: ids that must occur (trained token rows).
    """
    prompts = [list(tokenizer(text, add_special_tokens=True)["input_ids"]) for text in _TEXTS]
    if end_of_turn_id(tokenizer) is not None:
        turn = [{"role": "user", "content": _TEXTS[2]}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompts.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    if extra_ids:
        prompts.append([*extra_ids, *prompts[0][:8], *reversed(extra_ids)])
    prompts += _sample_rows(run_folder / "data" / "manifest.json")
    return [prompt[:_PROMPT_TOKENS] for prompt in prompts if prompt]


def _sample_rows(manifest: Path) -> list[list[int]]:
    if not manifest.is_file():
        return []
    samples = json.loads(manifest.read_text("utf-8")).get("samples", [])
    return [[int(token["id"]) for token in sample["tokens"]] for sample in samples[:_SAMPLES]]


def logits_of(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of each prompt, (T, V) in fp32 on the CPU; one prompt at a time, no padding, no cache.

    Of a reward model (1, 1): what it says of the prompt.
    """
    model.eval()
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        return [
            torch.atleast_2d(
                model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False).logits[0].float().cpu()
            )
            for prompt in prompts
        ]


def mean_kl(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Mean over positions of KL(softmax(first) || softmax(second)) in nats, summed in fp64."""
    total, count = 0.0, 0
    for p_logits, q_logits in zip(first, second, strict=True):
        p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        count += p.shape[0]
    return max(total / count, 0.0)


def compare_logits(
    reference: Sequence[torch.Tensor], exact: Sequence[torch.Tensor], rounded: Sequence[torch.Tensor],
    merged: Sequence[torch.Tensor], base: Sequence[torch.Tensor] | None,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of a `MergeReport` that come from R, E, C, M and B (None: a whole model)."""
    merging, writing = _furthest(exact, reference), _furthest(merged, rounded)
    effect = None if base is None else _furthest(reference, base)
    largest = max(float(logits.abs().max()) for logits in reference)
    bound = _MOST * largest
    if effect is not None:
        bound = min(bound, max(_OF_THE_EFFECT * effect, _LEAST * largest))
    same = [one.argmax(-1) == other.argmax(-1) for one, other in zip(reference, merged, strict=True)]
    return {
        "prompts": len(reference),
        "tokens": sum(logits.shape[0] for logits in reference),
        "max_logit_difference": _furthest(merged, reference),
        "merging": merging,
        "writing": writing,
        "effect": effect,
        "bound": bound,
        "rounding": _furthest(rounded, reference),
        "mean_kl": mean_kl(reference, merged),
        "argmax_agreement": float(torch.cat(same).double().mean()),
        "passed": merging <= bound and writing <= bound,  # False for NaN, too
    }


def _furthest(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Largest absolute difference; NaN anywhere makes it NaN."""
    return float(torch.stack([(one - other).abs().max() for one, other in zip(first, second, strict=True)]).max())
