"""What is known of each optimizer in `train.optim`: its state, its settings, its package. No torch.

Names are transformers' (`training_args.OptimizerNames`) and `muon`. The others that transformers has are in `REFUSED`
with the reason; `tests/train/test_named.py` holds the two lists together against transformers' own.

State is in bytes a trained element, of the fp32 weight or master that the optimizer updates:

    adamw               8                exp_avg, exp_avg_sq in fp32                         arXiv:1711.05101
    8 bits              1 + 4/256        for each fp32 moment: a byte, a scale per 256        arXiv:2110.02861
    ademamix            12               two means and the mean square                        arXiv:2409.03137
    lion                4                one momentum                                         arXiv:2302.06675
    rmsprop, adagrad    4                mean or sum of squares; momentum, centered: +4 each
    sgd                 0                4 with momentum
    muon                4, else 8        one momentum of hidden matrices, AdamW for the rest  arXiv:2502.16982
    adafactor           rows + columns   (`adafactor_bytes`)                                  arXiv:1804.04235
    stable_adamw        8                and 4 for weights in 16 bits, which masters are not  arXiv:2304.13013
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import EnvironmentProblem

__all__ = ["OPTIMIZERS", "REFUSED", "SMALL", "OptimizerFacts", "facts_of", "require_optimizer", "state_per_element"]

SMALL = 4096
"""8-bit optimizers keep fp32 moments for tensors of fewer elements (`train/adamw8.py:SMALLEST`; bitsandbytes too)."""
EIGHT_BIT = 1 + 4 / 256
"""A moment in 8 bits, with an fp32 scale per block of 256."""
_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_BETAS = ("adam_beta1", "adam_beta2")
Kind = Literal["number", "whole", "flag"] | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """Of one name."""

    state: float
    """Bytes an element; of fp32 moments where `eight_bit`."""
    eight_bit: bool = False
    """Large tensors have their moments in 8 bits."""
    keys: tuple[str, ...] = ()
    """Keys of `train` that it reads besides the learning rate and weight decay."""
    args: Mapping[str, Kind] = field(default_factory=dict)
    """Keys of `train.optim_args`, and what each takes."""
    package: str | None = None
    """Module that must be there beyond torch and transformers."""
    install: str = ""
    """What to install for it."""
    cuda_only: bool = False
    native: bool = False
    """Made here; the others come from transformers' factory."""
    whole: bool = False
    """Counts steps for a group of tensors and not for each: all its gradients must come in one call."""


def _bnb(state: float, *, eight_bit: bool = False, paged: bool = False, **more: Any) -> OptimizerFacts:
    return OptimizerFacts(
        state=state, eight_bit=eight_bit, package="bitsandbytes", install="'luthier[qlora]'", cuda_only=paged, **more
    )


_ADEMAMIX: dict[str, Kind] = {
    "beta1": "number", "beta2": "number", "beta3": "number", "alpha": "number", "eps": "number",
    "t_alpha": "whole", "t_beta3": "whole",
}  # fmt: skip
_MUON: dict[str, Kind] = {
    "momentum": "number", "nesterov": "flag", "ns_steps": "whole", "adjust_lr_fn": ("match_rms_adamw", "original"),
}  # fmt: skip
_RMSPROP_BNB: dict[str, Kind] = {"alpha": "number", "momentum": "number", "eps": "number"}

OPTIMIZERS: Mapping[str, OptimizerFacts] = {
    "adamw_torch_fused": OptimizerFacts(state=8, keys=_ADAM, native=True),
    "adamw_torch": OptimizerFacts(state=8, keys=_ADAM, native=True),
    "adamw_8bit": OptimizerFacts(state=8, eight_bit=True, keys=_ADAM, native=True),
    "adafactor": OptimizerFacts(state=4, native=True),
    "sgd": OptimizerFacts(
        state=0, native=True, args={"momentum": "number", "dampening": "number", "nesterov": "flag"}
    ),
    "muon": OptimizerFacts(state=8, keys=_ADAM, native=True, args=_MUON),
    "adagrad": OptimizerFacts(state=4, args={"lr_decay": "number", "eps": "number"}),
    "rmsprop": OptimizerFacts(
        state=4, args={"momentum": "number", "alpha": "number", "eps": "number", "centered": "flag"}
    ),
    "adamw_bnb_8bit": _bnb(8, eight_bit=True, keys=_ADAM),
    "ademamix": _bnb(12, keys=_ADAM, args=_ADEMAMIX),
    "ademamix_8bit": _bnb(12, eight_bit=True, keys=_ADAM, args=_ADEMAMIX),
    "lion_32bit": _bnb(4, keys=_BETAS),
    "lion_8bit": _bnb(4, eight_bit=True, keys=_BETAS),
    "rmsprop_bnb": _bnb(4, args=_RMSPROP_BNB),
    "rmsprop_bnb_32bit": _bnb(4, args=_RMSPROP_BNB),
    "rmsprop_bnb_8bit": _bnb(4, eight_bit=True, args=_RMSPROP_BNB),
    "paged_adamw_32bit": _bnb(8, paged=True, keys=_ADAM),
    "paged_adamw_8bit": _bnb(8, paged=True, eight_bit=True, keys=_ADAM),
    "paged_ademamix_32bit": _bnb(12, paged=True, keys=_ADAM, args=_ADEMAMIX),
    "paged_ademamix_8bit": _bnb(12, paged=True, eight_bit=True, keys=_ADAM, args=_ADEMAMIX),
    "paged_lion_32bit": _bnb(4, paged=True, keys=_BETAS),
    "paged_lion_8bit": _bnb(4, paged=True, eight_bit=True, keys=_BETAS),
    "stable_adamw": OptimizerFacts(
        state=8, keys=_ADAM, package="optimi", install="torch-optimi", whole=True,
        args={"decouple_lr": "flag", "max_lr": "number", "kahan_sum": "flag"},
    ),
}  # fmt: skip

_LAYERWISE = "updates weights in the middle of the backward pass, before the gradient of a step is whole or clipped"
_PROJECTED = (
    "projects the gradients of named modules by matrices outside its state, so a checkpoint could not hold them and "
    "masters have no module"
)
_AVERAGED = (
    "trains other weights than it evaluates and saves, and switches between them; validation, checkpoints and "
    "resuming would need that switch"
)
_BLOCKS = "keeps moments in tensors of a class of their own that a checkpoint without pickle cannot hold"
REFUSED: Mapping[str, str] = {
    "lomo": f"{_LAYERWISE}; adafactor needs about as little memory",
    "adalomo": f"{_LAYERWISE}; adafactor needs about as little memory",
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
         "apollo_adamw_layerwise"),
        f"{_LAYERWISE}; take adafactor or adamw_8bit",
    ),
    **dict.fromkeys(
        ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw"),
        f"{_PROJECTED}; take adafactor, adamw_8bit or method lora",
    ),
    **dict.fromkeys(
        ("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"),
        f"{_AVERAGED}; take adamw_torch_fused with lr_scheduler_type warmup_stable_decay",
    ),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), f"{_BLOCKS}; take adamw_8bit"),
    "grokadamw": "keeps its moments where no checkpoint finds them, so a resumed run would go another way",
    "adamw_anyprecision": "is for training without fp32 masters, and its package is archived; take adamw_torch_fused",
    "adamw_torch_xla": "is for TPUs, on which Luthier does not run; take adamw_torch_fused",
    "adamw_torch_npu_fused": "is for NPUs, on which Luthier does not run; take adamw_torch_fused",
}  # fmt: skip
"""Names of transformers that this loop cannot run rightly: what they do, and what to take instead."""


def facts_of(name: str) -> OptimizerFacts:
    """Of a name in `OPTIMIZERS`."""
    return OPTIMIZERS[name]


def state_per_element(name: str, args: Mapping[str, Any] | None = None) -> tuple[float, float]:
    """(bytes in a tensor of `SMALL` elements or more, bytes in a smaller one); for adafactor of a vector, for muon of
    what is no hidden matrix. `args`: `train.optim_args`."""
    facts, args = OPTIMIZERS[name], args or {}
    state = facts.state
    if name in ("sgd", "rmsprop"):
        state += 4 * bool(args.get("momentum", 0.0)) + 4 * bool(args.get("centered", False))
    return (state / 4 * EIGHT_BIT if facts.eight_bit else state), state


def require_optimizer(train: TrainSection, *, device_type: str | None = None) -> None:
    """The package of `train.optim` must be installed, and the device one it runs on; asked before anything is loaded.

    Raises:
        EnvironmentProblem: it is not; with what to install.
    """
    facts = OPTIMIZERS[train.optim]
    if facts.package is not None and find_spec(facts.package) is None:
        raise EnvironmentProblem(
            code="T463", message=f"`train.optim: {train.optim}` needs {facts.package}, which is not installed",
            hint=f"pip install {facts.install}, or take optim adamw_torch_fused or adamw_8bit",
        )  # fmt: skip
    if facts.cuda_only and device_type not in (None, "cuda"):
        name = train.optim.removeprefix("paged_")
        without = {"adamw_32bit": "adamw_torch_fused", "ademamix_32bit": "ademamix"}.get(name, name)
        raise EnvironmentProblem(
            code="T463",
            message=f"`train.optim: {train.optim}` pages its state out of CUDA memory; this device is {device_type}",
            hint=f"take optim {without}",
        )
