"""Contract: the host waits for the device once a step, and the backward pass ends at the lowest trained layer."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from luthier.train import running
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, data, resolved, train, tuned

KNOWN = "transformers/masking_utils.py"
"""Looks at the position ids once a forward pass, before our mask function can say that there is none."""
READS = ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__")


@contextmanager
def counting_reads(monkeypatch):
    """Every way a value comes to the host, with how often it is used. An inner call of another way counts once."""
    seen: Counter[str] = Counter()
    inside = [False]

    def counted(name, real):
        def read(self, *args, **kwargs):
            if inside[0] or sys._getframe(1).f_code.co_filename.endswith(KNOWN):
                return real(self, *args, **kwargs)
            inside[0] = True
            try:
                seen[name] += 1
                return real(self, *args, **kwargs)
            finally:
                inside[0] = False

        return read

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        yield seen


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"method": FULL}, torch.float32),
        ({"method": FULL}, torch.bfloat16),
        ({"method": LORA}, torch.float32),
        ({"method": {**LORA, "lora_dropout": 0.2}}, torch.float32),
        ({"method": FULL, "max_grad_norm": 0.01}, torch.bfloat16),
        ({"method": FULL, "gradient_checkpointing": True}, torch.float32),
    ],
)
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)], ids=["one pass", "four passes"])
def test_a_step_reads_from_the_device_once(tmp_path, monkeypatch, settings, kind, shape):
    found: list[Counter[str]] = []
    real = running.update

    def update(*args, **kwargs):
        with counting_reads(monkeypatch) as seen:
            done = real(*args, **kwargs)
        found.append(seen)
        return done

    monkeypatch.setattr(running, "update", update)
    # SGD: the counters of torch's AdamW are in host memory here, and reading them waits for nobody.
    recipe = resolved(
        max_steps=3, optim="sgd", per_device_train_batch_size=shape[0], gradient_accumulation_steps=shape[1], **settings
    )
    train(tmp_path, recipe=recipe, model=tiny_model().to(kind))
    assert [dict(seen) for seen in found[1:]] == [{"tolist": 1}] * 2


# -- where the backward pass ends


def layers_of(model):
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


@pytest.mark.parametrize("recompute", [False, True, "selective"])
@pytest.mark.parametrize("trained", [1, 2, 4])
def test_the_backward_pass_ends_at_the_lowest_trained_layer(tmp_path, recompute, trained):
    """Four layers; the last n are trained. What flows backward is counted at the output of every layer."""
    model = tiny_model(num_hidden_layers=4)
    method = {"name": "freeze", "last_n_layers": trained}
    recipe = resolved(method=method, max_steps=2, gradient_checkpointing=recompute)
    subject = tuned(recipe, model=model)
    backward, forward = Counter(), Counter()

    def watch(index):
        def hook(module, arguments, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if torch.is_grad_enabled():
                forward[index] += 1
                if hidden.requires_grad:
                    hidden.register_hook(lambda _: backward.update([index]))

        return hook

    handles = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers_of(subject.model))]
    run = train(tmp_path, data(), recipe=recipe, model=subject.model)
    for handle in handles:
        handle.remove()
    assert run.moved > 1e-4
    expected = set(range(4 - trained, 4))
    assert set(backward) == expected, "a layer below the lowest trained one has nothing to do"
    assert all(backward[index] == 2 for index in expected), "once a step"
    if recompute is True:
        assert all(forward[index] == 2 for index in range(4 - trained)), "and is not run again"
