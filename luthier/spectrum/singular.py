"""Singular values without vectors: eigenvalues of the Gram matrix in float64, with a bound on what that costs.

G = W W^T over the longer side; S = sqrt(eigenvalues of G). Products of bf16, fp16 or fp32 numbers are exact in float64
(2 x 24 <= 53 bits), so only sums round. With u = 2^-53 and K the longer side:

    |G' - G| <= 10 sqrt(K) u |W|_F^2          rounding of sums of K terms; fails with probability below
                                              2 exp(-50) a sum (Higham and Mary 2019, SIAM J. Sci. Comput. 41 (5))
    |eigenvalue' - eigenvalue| <= n u |G|_2   backward stability of the symmetric eigensolver (LAPACK Users' Guide, 4.7)
    delta = u (10 sqrt(K) |W|_F^2 + n S_1^2)  both together, by Weyl's inequality
    |S_i' - S_i| <= e_i = min(delta / S_i', sqrt(delta))

Values far below S_1 lose digits: S_i = 1e-3 S_1 has a relative error of at most 1e6 delta / S_1^2, about 1e-7 for
K = 4096 and |W|_F^2 = 100 S_1^2. The scores hang on quartiles, on the median and on sums, not on the smallest values;
`gram_is_enough` looks whether all of these are known to 1 part in a million, and else `svdvals` in float64 is taken,
whose error is a small multiple of u S_1 for every value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from luthier.spectrum.scores import Values, compat_threshold

__all__ = ["TOLERANCE", "gram_is_enough", "gram_values", "singular_values"]

TOLERANCE = 1e-6
"""Relative error that scores may have from rounding."""
_UNIT = 2.0**-53
_BLOCK_ELEMENTS = 1 << 22
"""Of a float64 copy at a time (32 MiB): a large tensor is never there twice."""


def singular_values(stack: torch.Tensor) -> tuple[list[Values], list[str]]:
    """Singular values of each matrix of a stack (B, n, m), descending, on the host; and how: `gram` or `svd`."""
    if stack.dim() != 3:
        raise ValueError(f"expected (B, n, m), got {tuple(stack.shape)}")
    n, m = sorted((int(stack.shape[1]), int(stack.shape[2])))
    values, errors = gram_values(stack)
    found, how = [], []
    for index, (row, error) in enumerate(zip(values, errors, strict=True)):
        if gram_is_enough(row, error, n, m):
            found.append(row)
            how.append("gram")
        else:
            exact = torch.linalg.svdvals(stack[index].to(torch.float64))
            found.append(_host(exact))
            how.append("svd")
    return found, how


def gram_values(stack: torch.Tensor) -> tuple[list[Values], list[Values]]:
    """Singular values of (B, n, m) through the Gram matrix, and the bound e_i on the error of each."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    n, longer = int(wide.shape[1]), int(wide.shape[2])
    gram = torch.zeros(wide.shape[0], n, n, dtype=torch.float64, device=wide.device)
    columns = max(1, _BLOCK_ELEMENTS // max(1, wide.shape[0] * n))
    for start in range(0, longer, columns):
        block = wide[:, :, start : start + columns].to(torch.float64)
        gram.baddbmm_(block, block.mT)
    energy = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    squares = torch.linalg.eigvalsh(gram).flip(1)
    largest = squares[:, :1].clamp_min(0.0)
    delta = _UNIT * (10.0 * math.sqrt(longer) * energy[:, None] + n * largest)
    values = squares.clamp_min(0.0).sqrt()
    errors = torch.minimum(delta / values.clamp_min(torch.finfo(torch.float64).tiny), delta.sqrt())
    return [_host(row) for row in values], [_host(row) for row in errors]


def gram_is_enough(values: Values, errors: Values, n: int, m: int) -> bool:
    """Whether quartiles, median, and the sum below the original's threshold are known to `TOLERANCE`."""
    if values[0] == 0.0:
        return True
    upper = max(1, math.ceil(0.75 * len(values)) + 1)
    if not bool((errors[:upper] <= TOLERANCE * values[:upper]).all()):
        return False
    below = values <= compat_threshold(values, n, m)
    return not below.any() or float(errors[below].sum()) <= TOLERANCE * float(values[below].sum())


def _host(tensor: Any) -> Values:
    found: Values = np.asarray(tensor.cpu().numpy(), dtype=np.float64)
    return found
