"""Processes that share a sequence as threads of one process: everything but the transport is the product's."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from luthier.data.sequence_parts import take_part
from luthier.fast.engine import attach
from luthier.fast.exchange import SequenceGroup
from luthier.fast.settings import EngineSettings
from tests.fast.helpers import gradients


class Threads(SequenceGroup):
    """One of `size` threads; parts are handed over in memory."""

    def __init__(self, table, barrier, *, index, size):
        super().__init__(None, index=index, size=size)
        self.table, self.barrier, self.exchanges = table, barrier, []

    def _exchange(self, leaving):
        self.exchanges.append(leaving.numel() * leaving.element_size())
        self.table[self.index] = leaving.clone()
        self.barrier.wait(timeout=60)
        arrived = torch.stack([self.table[other][self.index] for other in range(self.size)])
        self.barrier.wait(timeout=60)
        return arrived


class DoubleRotary(torch.nn.Module):
    """Rotary tables in fp64, for a model of one kind of layers."""

    def __init__(self, old):
        super().__init__()
        self.frequencies, self.scaling = old.inv_freq.double(), old.attention_scaling

    def forward(self, x, position_ids):
        angles = position_ids[0].double()[:, None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)[None]
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


def groups(size):
    table, barrier = [None] * size, Barrier(size)
    return [Threads(table, barrier, index=index, size=size) for index in range(size)]


def shared(model, batch, size, *, recompute="none", layers=None, keep=False, members=None, split=take_part):
    """(loss, correct, gradients), each summed over `size` processes that share `batch`; the groups."""
    members = members or groups(size)
    settings = EngineSettings(recompute=recompute, recompute_layers=layers, keep_attention=keep, cuda_graphs=False)
    models = [copy.deepcopy(model) for _ in range(size)]
    engines = [attach(each, settings) for each in models]
    for engine, member in zip(engines, members, strict=True):
        engine.share_sequences(member)

    def one(index):
        sums = engines[index].loss(split(batch, index=index, size=size))
        sums.loss.backward()
        return sums.loss.detach(), sums.correct, gradients(models[index])

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(one, range(size)))
    total = {name: sum(part[2][name] for part in found) for name in found[0][2]}
    return sum(part[0] for part in found), sum(int(part[1]) for part in found), total, members
