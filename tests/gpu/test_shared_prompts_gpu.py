"""Contract on CUDA: answers that share a prompt, on each attention path and in replayed passes, give the loss and the
gradients of answers with their own copy of it.

python -m pytest -m gpu tests/gpu/test_shared_prompts_gpu.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.data.branches import collate_branched
from luthier.fast.engine import attach
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import gradients, make_pairs, relative, unshared
from tests.gpu.test_graph_gpu import model_of, whole

pytestmark = pytest.mark.gpu
SIZES = ((130, 33, 65), (1, 40, 4), (66, 1, 120), (257, 70, 200), (64, 64, 64))
NARROW = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def both(model, settings, *, limit):
    other = copy.deepcopy(model)
    engine, plain = attach(model, settings), attach(other, EngineSettings(cuda_graphs=False))
    for seed in range(4):
        rows = make_pairs(SIZES[seed:], vocab=601, seed=seed)
        got, want = engine.loss(collate_branched(rows).to("cuda")), plain.loss(unshared(rows).to("cuda"))
        got.loss.backward()
        want.loss.backward()
        mine, theirs = gradients(model), gradients(other)
        assert relative(got.loss, want.loss) < limit / 5
        assert relative(whole(mine), whole(theirs)) < limit
    return engine


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window"])
def test_own_kernels(name, method, graphs):
    model = model_of(name, method)
    if method == "lora":
        model.to(torch.bfloat16)
    both(model, EngineSettings(cuda_graphs=graphs), limit=2e-2)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "granite", "gpt2"])
def test_variable_length_kernel(name):
    longer = {"n_positions": 512} if name == "gpt2" else {**NARROW, "max_position_embeddings": 512}
    model = build(name, **longer).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25 if parameter.ndim > 1 else 1.0)
    both(model.cuda(), EngineSettings(cuda_graphs=False), limit=3e-2)


def test_single_precision_goes_document_by_document():
    both(build("llama").cuda(), EngineSettings(cuda_graphs=False), limit=1e-4)
