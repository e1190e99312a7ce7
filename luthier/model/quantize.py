"""4-bit storage of a frozen base: bitsandbytes NF4 with double quantisation (arXiv:2305.14314)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["is_quantized", "nf4_config", "nf4_later", "parameter_numel"]


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


def nf4_later(model: Any, config: Any) -> None:
    """Mark what `from_pretrained` would store in 4 bits: it is quantised when it is brought to a device.

    The linear layers become `Linear4bit` around the weights as they are, in host memory. So a model of which each
    process keeps a shard is quantised layer by layer, on the device, as a whole one is there.
    """
    from bitsandbytes.nn import Params4bit
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import AutoHfQuantizer

    before = dict(model.named_modules())
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            plain, settings = before[name], {**module.weight.__dict__, "module": module}
            matrix = plain.weight.data.t() if isinstance(plain, Conv1D) else plain.weight.data
            module.weight = Params4bit(matrix, requires_grad=False, **settings)
            module.bias = plain.bias
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether this is a 4-bit parameter (two weights in a byte), or becomes one when it reaches its device."""
    return type(parameter).__name__ == "Params4bit"


def parameter_numel(parameter: torch.Tensor) -> int:
    """Weights in a parameter; a 4-bit one counts what it stands for, not its bytes."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
