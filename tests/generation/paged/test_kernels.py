"""Contract: the Triton kernels compute what the definitions say (run with TRITON_INTERPRET=1, or on a GPU)."""

import os

import pytest
import torch

from luthier.generation.paged.kernels import Look, attend_reference, write_reference

pytest.importorskip("triton")
CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)
DEVICE = "cuda" if CUDA else "cpu"


def case(new, lengths, *, heads, groups, d, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    rows, width = len(new), max(-(-length // 64) for length in lengths) + 1
    pages = torch.randperm(rows * width) + 1
    tables = torch.zeros(rows + 3, width, dtype=torch.int32)
    slots = torch.randperm(rows + 3)[:rows]
    tables[slots] = pages.view(rows, width).int()
    size = (rows * width + 1) * 64
    keys, values = (torch.full((size, heads, d), float("nan"), dtype=dtype) for _ in "kv")
    for row, length in enumerate(lengths):
        column = torch.arange(length)
        at = tables[slots[row], column // 64].long() * 64 + column % 64
        write_reference(keys, values, at, *(torch.randn(length, heads, d).to(dtype) for _ in "kv"))
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
    look = Look(slots, tables, torch.tensor(lengths, dtype=torch.int32), starts, max(new))
    q = torch.randn(sum(new), heads * groups, d).to(dtype)
    return q, keys, values, look


def on(device, look):
    return Look(*(getattr(look, n).to(device) for n in ("slots", "tables", "lengths", "starts")), look.longest)


@pytest.mark.parametrize("window", [None, 1, 30, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("new", "lengths"),
    [([1, 1, 1], [1, 64, 200]), ([1] * 40, list(range(1, 80, 2))), ([5, 1, 70], [5, 90, 130]), ([130], [130])],
)
@pytest.mark.parametrize(("heads", "groups", "d"), [(2, 3, 16), (1, 1, 24)])
def test_attention(new, lengths, heads, groups, d, window, softcap):
    from luthier.generation.paged import kernels_triton

    q, keys, values, look = case(new, lengths, heads=heads, groups=groups, d=d)
    settings = {"scale": 0.4, "window": window, "softcap": softcap}
    expected = attend_reference(q, keys, values, look, **settings)
    found = kernels_triton.attend(*(t.to(DEVICE) for t in (q, keys, values)), on(DEVICE, look), **settings).cpu()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert expected.isfinite().all()


def test_strided_queries_and_writing():
    from luthier.generation.paged import kernels_triton

    q, keys, values, look = case([3, 1], [3, 9], heads=2, groups=2, d=16)
    wide = torch.randn(4, 4, 4, 16)
    wide[:, 1] = q
    tensors = (wide.to(DEVICE)[:, 1], keys.to(DEVICE), values.to(DEVICE), on(DEVICE, look))
    found = kernels_triton.attend(*tensors, scale=1.0, window=None, softcap=None)
    torch.testing.assert_close(found.cpu(), attend_reference(q, keys, values, look, scale=1.0), atol=2e-5, rtol=2e-5)
    new = torch.randn(2, 5, 16).transpose(0, 1)
    at = torch.tensor([70, 3, 64, 100, 9])
    ours = [t.clone().to(DEVICE) for t in (keys, values)]
    kernels_triton.write(*ours, at.to(DEVICE), new.to(DEVICE), (new + 1).to(DEVICE))
    write_reference(keys, values, at, new, new + 1)
    assert torch.equal(ours[0].cpu().nan_to_num(), keys.nan_to_num())
    assert torch.equal(ours[1].cpu().nan_to_num(), values.nan_to_num())
