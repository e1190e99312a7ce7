"""Contract: on CUDA the packed kernel computes what the plain model computes, and no document sees another.

Run on a machine with one CUDA device: `make test-gpu`.
"""

import pytest

from luthier.data.types import Example, RowRef
from tests.support.tiny import tiny_model

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (5, 64, 17, 1, 130, 33)


def _examples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index, length in enumerate(LENGTHS):
        ids = torch.randint(3, 600, (length,), generator=generator).tolist()
        weights = [0.0] + [float(position % 3 != 0) for position in range(1, length)]
        examples.append(Example(ids=ids, weights=weights, ref=RowRef("rows", index + 1)))
    return examples


def _model(device, dtype):
    # Heads of 32, because the kernel wants widths that are multiples of 8 and at least 32 is usual.
    return tiny_model(hidden_size=128).to(device, dtype).train()


def _loss_and_gradients(device, dtype, examples):
    from luthier.data.batch import collate
    from luthier.fast.engine import attach

    model = _model(device, dtype)
    engine = attach(model)
    sums = engine.loss(collate(examples).to(torch.device(device)))
    sums.loss.backward()
    gradients = {name: parameter.grad.float().cpu() for name, parameter in model.named_parameters()}
    return float(sums.loss.detach()), gradients, engine


def test_float32_on_the_gpu_equals_the_cpu():
    loss, gradients, _ = _loss_and_gradients("cuda", torch.float32, _examples())
    expected, expected_gradients, _ = _loss_and_gradients("cpu", torch.float32, _examples())
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in expected_gradients.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, name


def test_bfloat16_through_the_varlen_kernel_is_near_float32():
    loss, gradients, engine = _loss_and_gradients("cuda", torch.bfloat16, _examples())
    assert engine.layout == "flat"
    assert any("varlen" in part.runs or "own kernels" in part.runs for part in engine.report)
    expected, expected_gradients, _ = _loss_and_gradients("cpu", torch.float32, _examples())
    assert loss == pytest.approx(expected, rel=5e-3)
    for name, gradient in expected_gradients.items():
        cosine = torch.nn.functional.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.995, (name, float(cosine))


def test_replacing_one_document_changes_no_later_one():
    from luthier.data.batch import collate
    from luthier.fast.engine import attach
    from luthier.fast.hidden import model_inputs

    model = _model("cuda", torch.bfloat16).eval()
    engine = attach(model)
    hidden = []
    for first in (_examples(0)[1], _examples(1)[1]):
        batch = collate([first, *_examples(0)[2:]]).to(torch.device("cuda"))
        with torch.no_grad():
            hidden.append(model.get_decoder()(**model_inputs(batch, engine.layout).kwargs)[0][0, LENGTHS[1] :])
    assert torch.equal(hidden[0], hidden[1])
