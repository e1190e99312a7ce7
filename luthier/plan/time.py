"""Seconds of one optimizer step, by part.

Operations a token (shared/research/perf.md §2.1), P linear weights, passes forward 1, input gradient 1 where the
backward pass goes, weight gradient 1 where trained, forward again 1 where recomputed:

    products    2 P a pass                at the rate of products, shapes included (`Efficiency.tile`)
    thin        reads of inputs and output gradients for A x, B^T dy and the gradients of A and B
    head        2 d V a pass, on supervised tokens only: 2 passes frozen, 3 trained; logits 3 times through memory;
                over preferences one pass more (`objective.py`)
    reference   passes without gradients in a step (KTO's reference point)
    attention   2 q n (n + tile) a document forward, 2.5 times that backward (q k^T is made again); not again where its
                output is kept
    elementwise 8 d + 2 (q + kv) + 3 f elements forward, 8 d + 2 (q + 2 kv) + 6 f backward (fused; §2.2)
    unpack      packed and unpacked bytes of a 4-bit base a pass
    gradients   fp32 sums of weight gradients of several micro-batches: 6 bytes a weight, 10 from the second on
    optimizer   30 bytes a trained weight with AdamW (gradient twice, master, two moments, weight), 18 in 8 bits;
                bytes of other states likewise; Muon's products of matrices are left out
    waiting     what the host takes longer to launch the kernels of a step than the device to run them
    exchange    communication that is not hidden (`sharding.py`)
    offload     the update in host memory, with the way there and back (`host.py`)
    skew        several devices wait for the slowest: a stated share of the work
    other       what no kernel runs beside (`Efficiency.step_seconds`)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from luthier.plan.devices import Accelerator
from luthier.plan.dora import dora_traffic
from luthier.plan.efficiency import EFFICIENCY, Efficiency
from luthier.plan.host import update_seconds
from luthier.plan.launches import launches, own_attention
from luthier.plan.objective import ObjectiveWork
from luthier.plan.setting import Setting
from luthier.plan.sharding import exchange_seconds
from luthier.plan.sizes import Group, Sizes
from luthier.plan.states import NF4_BYTES
from luthier.plan.work import Documents
from luthier.recipe.optimizers import state_per_element

__all__ = ["StepTime", "estimate_step", "forward_seconds"]

SFT = ObjectiveWork()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds by part of one optimizer step; the parts add up to `total`."""

    products: float
    thin: float
    head: float
    attention: float
    elementwise: float
    unpack: float
    gradients: float
    optimizer: float
    waiting: float
    exchange: float
    other: float
    reference: float = 0.0
    offload: float = 0.0
    skew: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """How many decoder layers do what."""

    forward: int
    again: int
    backward: int


def estimate_step(
    sizes: Sizes,
    setting: Setting,
    documents: Documents,
    device: Accelerator,
    *,
    step_tokens: float,
    optim: str,
    table: Efficiency = EFFICIENCY,
    work: ObjectiveWork = SFT,
) -> StepTime:
    """Seconds of one optimizer step of `step_tokens` tokens on each device.

    Args:
        sizes: of model and method.
        setting: as it runs; `accumulate` micro-batches make the step.
        documents: lengths and supervised share.
        device: rates.
        step_tokens: real tokens of a step on one device, all micro-batches together.
        optim: `train.optim`.
        table: constants.
        work: what the objective adds.
    """
    layers, lowest = sizes.shape.layers, sizes.lowest_layer
    again = max(0, setting.whole_layers(layers) - lowest)
    passes = _Passes(forward=layers, again=again, backward=layers - lowest)
    attending = replace(passes, again=max(0, setting.attending(layers) - lowest)) if sizes.fast else passes
    tokens = step_tokens / setting.accumulate
    rate = device.bf16 if setting.dtype_bytes == 2 and device.native_bf16 else device.fp32
    parts = {
        "products": _products(sizes, setting, passes, tokens, rate, device, table, documents.supervised),
        "thin": _thin(sizes, setting, passes, tokens, device, table),
        "head": _head(sizes, setting, documents, tokens, rate, device, table, work),
        "attention": _attention(sizes, documents, attending, tokens, rate, table),
        "elementwise": _elementwise(sizes, setting, passes, tokens, device, table),
        "unpack": _unpack(sizes, setting, passes, device, table),
        "gradients": _sum_bytes(sizes, setting) / (device.bandwidth * table.elementwise),
    }
    if work.forward_passes:
        once = forward_seconds(sizes, setting, documents, device, tokens=tokens, table=table)
        parts["reference"] = work.forward_passes * once
    micro = {name: setting.accumulate * seconds for name, seconds in parts.items()}
    busy = sum(micro.values())
    update, offload = _update_seconds(sizes, setting, device, optim, table)
    waiting = 0.0
    if device.type == "cuda":
        launching = launches(sizes, setting, again=again, table=table) * table.launch_seconds
        waiting = max(0.0, launching - busy - update)
    exchange = exchange_seconds(
        sizes, setting, device, compute=busy + waiting, tokens=tokens, again=again, table=table,
        forward_passes=work.forward_passes,
    )  # fmt: skip
    return StepTime(
        **micro, waiting=waiting, optimizer=update, exchange=exchange, offload=offload, other=table.step_seconds,
        skew=table.skew * (busy + waiting) if setting.world > 1 else 0.0,
    )  # fmt: skip


def _update_seconds(
    sizes: Sizes, setting: Setting, device: Accelerator, optim: str, table: Efficiency
) -> tuple[float, float]:
    """(on the device, in host memory and on the way there)."""
    parts = setting.trained_parts(sizes.adapters)
    moved, norm = _optimizer_bytes(sizes, setting, optim)
    rate = device.bandwidth * table.optimizer
    if not setting.moves_states(sizes.adapters):
        return (moved + norm) / parts / rate, 0.0
    return norm / parts / rate, update_seconds(sizes, setting, device, optim=optim, update_bytes=moved)


def forward_seconds(
    sizes: Sizes, setting: Setting, documents: Documents, device: Accelerator, *, tokens: float,
    table: Efficiency = EFFICIENCY,
) -> float:  # fmt: skip
    """Seconds of a pass over `tokens` tokens without gradients, head included."""
    passes = _Passes(forward=sizes.shape.layers, again=0, backward=0)
    rate = device.bf16 if setting.dtype_bytes == 2 and device.native_bf16 else device.fp32
    untrained = replace(sizes, trained_linear=0, trained_head=False)
    one = ObjectiveWork(head_products=1.0, logits_passes=2.0)
    return (
        _products(untrained, setting, passes, tokens, rate, device, table, documents.supervised)
        + _thin(untrained, setting, passes, tokens, device, table)
        + _head(untrained, setting, documents, tokens, rate, device, table, one)
        + _attention(untrained, documents, passes, tokens, rate, table)
        + _elementwise(untrained, setting, passes, tokens, device, table)
        + _unpack(untrained, setting, passes, device, table)
    )


def _product(m: float, n: int, k: int, rate: float, table: Efficiency) -> float:
    """Seconds of one (m, k) x (k, n) product."""
    return 2.0 * m * n * k / rate * (1.0 + table.tile * (1.0 / m + 1.0 / n + 1.0 / k))


def _products(
    sizes: Sizes, setting: Setting, passes: _Passes, tokens: float, rate: float, device: Accelerator,
    table: Efficiency, supervised: float,
) -> float:  # fmt: skip
    """Products with the weights of the decoder layers; a trained one also has its weight gradient. Of the last layer
    only the supervised rows go on after attention (`fast/decoder/layer.py`)."""
    best = rate * (table.product if setting.dtype_bytes == 2 else table.fp32_product)
    if setting.base == "fp8" and device.fp8:
        best = device.fp8 * table.fp8_product
    each = {group.name: _product(tokens, *_widths(group, setting), best, table) for group in sizes.groups}
    one = sum(each.values())
    trained = sizes.trained_linear / max(1, sizes.linear) * sizes.shape.layers
    saved = (one - each.get("qkv", one)) * (1.0 - supervised) if sizes.fast else 0.0
    trained_time = trained * table.weight_gradient
    last = min(1.0, passes.forward) + min(1, passes.backward) + min(1.0, trained_time)
    return one * (passes.forward + passes.again + passes.backward + trained_time) - saved * last


def _widths(group: Group, setting: Setting) -> tuple[int, int]:
    pad = group.pad if setting.wide else 0
    return group.outputs + pad, group.inputs + pad


def _thin(
    sizes: Sizes, setting: Setting, passes: _Passes, tokens: float, device: Accelerator, table: Efficiency
) -> float:
    """A x and the gradient of A read x (K), B^T dy and the gradient of B read dy (N). Outside an extended matrix the
    adapter is added to y and its gradient to dx."""
    if not sizes.adapters:
        return 0.0
    inputs = float(sum(group.inputs for group in sizes.groups if group.rank))
    outputs = float(sum(group.outputs for group in sizes.groups if group.rank))
    forward, backward = passes.forward + passes.again, passes.backward
    seconds = (inputs * forward + (inputs + 2.0 * outputs) * backward) / table.thin
    if not setting.wide:
        seconds += (2.0 * outputs * forward + 2.0 * inputs * backward) / table.added
    return tokens * setting.dtype_bytes * seconds / device.bandwidth


def _head(
    sizes: Sizes, setting: Setting, documents: Documents, tokens: float, rate: float, device: Accelerator,
    table: Efficiency, work: ObjectiveWork,
) -> float:  # fmt: skip
    if not work.head_products:
        return 0.0
    rows = documents.supervised * tokens
    shape = sizes.shape
    best = rate * (table.product if setting.dtype_bytes == 2 else table.fp32_product)
    count = work.head_products + (table.weight_gradient if sizes.trained_head else 0.0)
    products = count * _product(rows, shape.vocab_size, shape.hidden_size, best, table)
    logits = work.logits_passes * rows * shape.vocab_size * setting.dtype_bytes / (device.bandwidth * table.elementwise)
    return products + logits


def _attention(
    sizes: Sizes, documents: Documents, passes: _Passes, tokens: float, rate: float, table: Efficiency
) -> float:
    seen = documents.squares_per_token
    shape = sizes.shape
    if shape.window and shape.windowed_layers:
        inside = min(seen, float(shape.window) * 2)
        seen = seen + (inside - seen) * shape.windowed_layers / shape.layers
    own = own_attention(sizes)
    reached = table.attention if own else table.attention_fallback
    tile = table.attention_tile if own else table.attention_fallback_tile
    one = 2.0 * shape.query * tokens * (seen + tile)
    return one * (passes.forward + passes.again + 2.5 * passes.backward) / (rate * reached)


def _elementwise(
    sizes: Sizes, setting: Setting, passes: _Passes, tokens: float, device: Accelerator, table: Efficiency
) -> float:
    shape = sizes.shape
    d, q, kv, f = shape.hidden_size, shape.query, shape.key_value, shape.intermediate_size
    norms = shape.norms_per_layer / 2 + (0.25 if shape.qk_norm else 0.0)
    forward = 8 * d * norms + 2 * (q + kv) + 3 * f
    backward = 8 * d * norms + 2 * (q + 2 * kv) + 6 * f
    if setting.rest == "selective":
        backward += 4 * d
    size = float(setting.dtype_bytes)
    total = size * (forward * (passes.forward + passes.again) + backward * passes.backward)
    if setting.base == "fp8":
        total += (2 * d + q + f) * (passes.forward + passes.again) + (2 * d + q + 2 * kv + 2 * f) * passes.backward
    slower = 1.0 if sizes.fast else table.slow_layers
    norms, scaled = dora_traffic(sizes)
    again = passes.forward + passes.again
    more = size * (norms * again + tokens * scaled * (again + passes.backward))
    return (slower * tokens * total + more) / (device.bandwidth * table.elementwise)


def _unpack(sizes: Sizes, setting: Setting, passes: _Passes, device: Accelerator, table: Efficiency) -> float:
    """4.1 ms a pass over the 8B body on an H200 (perf.md §2.2): packed bytes in, 16-bit bytes out."""
    if setting.base != "nf4":
        return 0.0
    each = sizes.linear_per_layer * (NF4_BYTES + setting.dtype_bytes)
    count = passes.forward + passes.again + passes.backward
    return count * each / (device.bandwidth * table.elementwise)


def _sum_bytes(sizes: Sizes, setting: Setting) -> float:
    """Of one micro-batch, on average: 16-bit gradients are read, fp32 sums written, later read as well
    (`train/masters.py`); one micro-batch needs no sum."""
    if setting.accumulate == 1 or setting.dtype_bytes == 4:
        return 0.0
    return sizes.trainable * (6.0 + 10.0 * (setting.accumulate - 1)) / setting.accumulate


def _optimizer_bytes(sizes: Sizes, setting: Setting, optim: str) -> tuple[float, float]:
    """(read and written in one update, read before for the gradient's norm): gradient, master (or fp32 weight),
    moments, and the weight in 16 bits. Gradients are in fp32 where they were summed (`train/masters.py`)."""
    live = setting.dtype_bytes if setting.dtype_bytes < 4 else 0
    summed = setting.accumulate > 1 or (setting.world > 1 and (setting.trained_parts(sizes.adapters) == 1))
    gradient = live if live and not (summed or setting.deepspeed) else 4
    states = 4.0 if optim == "adafactor" else 2 * state_per_element(optim)[0]  # read and written
    return sizes.trainable * (gradient + 8 + states + live), float(sizes.trainable * gradient)
