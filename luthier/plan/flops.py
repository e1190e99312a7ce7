"""Operations of the model itself, from which MFU is computed."""

from __future__ import annotations

from luthier.plan.sizes import Sizes
from luthier.plan.work import Documents

__all__ = ["model_flops_per_token"]


def model_flops_per_token(sizes: Sizes, documents: Documents) -> float:
    """m (N_body + s N_head) + 6 p + 3 A with s the supervised share, p the adapters, A = 2 q L sum n^2 / sum n;
    m = 2 forward + 2 input gradient + 2 weight gradient where they are needed (6 full, 4 LoRA). Recompute never counts
    (`benchmarks/gpu/flops.py`)."""
    layers = sizes.shape.layers
    body = sizes.linear * (2.0 + 2.0 * sizes.backward_layers / layers) + 2.0 * sizes.trained_linear
    body += 6.0 * sizes.adapter_parameters
    head = documents.supervised * sizes.head * (6.0 if sizes.trained_head else 4.0 if sizes.backward_layers else 2.0)
    attention = 2.0 * documents.squares_per_token * sizes.shape.query * layers
    return body + head + attention * (1.0 + 2.0 * sizes.backward_layers / layers)
