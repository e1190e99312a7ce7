"""Contract: every Triton kernel gives what the plain definition gives, on CPU tensors under Triton's interpreter.

    TRITON_INTERPRET=1 python -m pytest tests/fast/kernels/test_triton.py

Skipped without triton or without the variable; on a GPU `tests/gpu/test_kernels_gpu.py` runs the same checks compiled.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from luthier.fast.kernels import adamw, cross_entropy, fp8, glu, norm, rope, scale
from tests.fast.kernels.cases import Bench, all_checks

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs triton and TRITON_INTERPRET=1", allow_module_level=True)

BENCHES = {
    name: Bench("cpu", dtype, truncates=True, exact_fp8=False)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
}
CHECKS = [
    (f"{name} {label}", check) for name, bench in BENCHES.items() for label, check in all_checks(bench, small=True)
]


@pytest.mark.parametrize("check", [pytest.param(check, id=label) for label, check in CHECKS])
def test_triton_is_the_definition(check, monkeypatch):
    for module in (adamw, cross_entropy, fp8, glu, norm, rope, scale):
        monkeypatch.setattr(module, "uses_triton", lambda x: x.dtype is not torch.float64)
    check()
