"""Contract: products take any view, and oneDNN never gets a second operand whose rows lie apart.

For one it has no kernel: (1024, 576) x (1536, 576 of 640) took 11.7 s instead of 9 ms on a Zen 5, the gradient of an
adapter's B 326 ms instead of 3.

Planted and seen to fail: the operand passed on as it is.
"""

from __future__ import annotations

import pytest
import torch

from luthier.fast import products
from tests.fast.helpers import relative


@pytest.fixture
def second_operands(monkeypatch):
    """The second operand of every product, computed by torch."""
    seen = []

    def linear(a, b, bias, *_):
        seen.append(b)
        return torch.nn.functional.linear(a, b, bias)

    monkeypatch.setattr(products, "product_library", lambda: ("onednn", "test"))
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", linear, raising=False)
    return seen


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("kind", ["product", "grad_input", "grad_weight"])
def test_views_give_the_same_numbers_and_onednn_a_dense_second_operand(second_operands, kind, sliced):
    def matrix(rows, columns):
        whole = torch.randn(rows, columns + 5)
        return whole[:, :columns] if sliced else whole[:, :columns].clone()

    x, weight, grad = matrix(20, 12), matrix(17, 12), matrix(20, 17)
    made, want = {
        "product": (lambda: products.product(x, weight), x.double() @ weight.double().t()),
        "grad_input": (lambda: products.grad_input(grad, weight), grad.double() @ weight.double()),
        "grad_weight": (lambda: products.grad_weight(grad, x), grad.double().t() @ x.double()),
    }[kind]
    assert relative(made(), want) < 1e-6
    (second,) = second_operands
    assert second.is_contiguous() or second.t().is_contiguous()


@pytest.mark.parametrize("library", ["torch", "onednn"])
@pytest.mark.parametrize("bias", [False, True])
def test_products_beside_each_other_are_those_of_each_matrix(monkeypatch, library, bias):
    monkeypatch.setattr(products, "product_library", lambda: (library, "test"))
    torch.manual_seed(0)
    x = torch.randn(32, 24)
    weights = [torch.randn(rows, 24) for rows in (16, 8, 40)]
    biases = [torch.randn(len(weight)) if bias else None for weight in weights]
    out = products.products_beside(x, weights, biases)
    assert out.is_contiguous()
    for part, weight, added in zip(out.split([16, 8, 40], dim=1), weights, biases, strict=True):
        torch.testing.assert_close(part, torch.nn.functional.linear(x, weight, added), rtol=1e-5, atol=1e-5)
