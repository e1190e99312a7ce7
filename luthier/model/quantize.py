"""4-bit storage of a frozen base: bitsandbytes NF4 with double quantisation (arXiv:2305.14314)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["is_quantized", "nf4_config", "parameter_numel"]


def nf4_config(compute_dtype: torch.dtype, *, keep: Sequence[str] = ()) -> Any:
    """Settings for transformers: NF4 blocks of 64, their scales quantised again, products in `compute_dtype`.

    `keep` names linear layers that stay as they are, besides the output head.

    Raises:
        EnvironmentProblem: bitsandbytes is not installed or does not work here.
    """
    # On a CPU it looks for an optional hub kernel and logs that there is none, at every import.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            code="M327", message=f"`quantization: nf4` needs bitsandbytes: {str(error).splitlines()[0][:200]}",
            hint="pip install 'luthier[qlora]', or `method.name: lora` without quantisation",
        ) from error  # fmt: skip
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        **({"llm_int8_skip_modules": list(keep)} if keep else {}),
    )


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether this is a 4-bit parameter (two weights in a byte)."""
    return getattr(parameter, "quant_state", None) is not None


def parameter_numel(parameter: torch.Tensor) -> int:
    """Weights in a parameter; a 4-bit one counts what it stands for, not its bytes."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
