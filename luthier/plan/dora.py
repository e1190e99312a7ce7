"""What DoRA adds to a layer: the norm of W + s B A in each forward pass, and magnitudes on both products.

`peft.tuners.lora.dora` multiplies A and B by an identity of K^2 for B A (N, K), scales it, adds W, and takes norms of
rows; then (m / norm - 1) times the base's product and m / norm times the adapter's are added to the base's product.
Counted from its source; no step with DoRA was measured on a GPU.

    for a moment     K^2 + 3 N K elements: the identity, B A, s B A, W + s B A
    read, written    2 K^2 + 7 N K a pass, and 12 N a token in each direction

Legend: N outputs, K inputs of an adapted matrix.
"""

from __future__ import annotations

from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes

__all__ = ["dora_bytes", "dora_traffic"]


def dora_bytes(sizes: Sizes, setting: Setting) -> int:
    """Bytes of the operands of one norm, of the adapted matrix that takes most; 0 without DoRA."""
    if not sizes.dora:
        return 0
    adapted = [(group.outputs // group.members, group.inputs) for group in sizes.groups if group.rank]
    return max((k * k + 3 * n * k for n, k in adapted), default=0) * setting.dtype_bytes


def dora_traffic(sizes: Sizes) -> tuple[float, float]:
    """Elements that one decoder layer reads and writes: (in a forward pass, a token in a pass of either direction)."""
    adapted = [group for group in sizes.groups if group.rank] if sizes.dora else []
    norms = sum(2 * group.members * group.inputs**2 + 7 * group.parameters for group in adapted)
    return float(norms), 12.0 * sum(group.outputs for group in adapted)
