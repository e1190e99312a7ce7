"""Linear layers and LoRA layers whose products run on the library of `products.py`.

An instance is replaced by giving it a subclass: parameters, names, hooks, saving and merging stay those
of `nn.Linear` and PEFT. `replace_layers` walks the model through one visible rule per class and returns
what it did; `restore_layers` undoes it.

LoRA, y = x W^T + b + s (x A^T) B^T, is one autograd function. Against PEFT's own layer (base, A, B, scale
and add as separate passes, each with a gradient pass) it adds the thin product straight into the fresh
output and into the fresh input gradient, and folds s into the thin factor:

    u  = x A^T                      y  = x W^T + b;  y += u (s B)^T
    v  = g (s B)                    dx = g W;        dx += v A
    dB = s g^T u                    dA = v^T x

What it does not cover (dropout in training, DoRA and other variants, several adapters, merged or disabled
adapters, mixed dtypes) runs through PEFT's own forward, decided at each call.

Legend: M rows, K inputs, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.products import grad_input, grad_weight, product, product_library

__all__ = ["FastLinear", "Undo", "fast_lora_class", "replace_layers", "restore_layers"]


Undo = Sequence[tuple[nn.Module, str, Any]]
"""Changed instances: the attribute, and the value it had."""


class FastLinear(nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with its three products on the library of `products.py`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's own name
        """x W^T + b over the last axis."""
        if torch.is_autocast_enabled(input.device.type) or input.dtype != self.weight.dtype:
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        # Not `out_features`: of a tied head beside adapters PEFT makes a layer whose numbers are swapped.
        return _Linear.apply(rows, self.weight, self.bias).view(*input.shape[:-1], self.weight.shape[0])


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x_mk: Tensor, weight_nk: Tensor, bias_n: Tensor | None) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x_mk if need_weight else None, weight_nk if need_x else None)
        return product(x_mk, weight_nk, bias_n)

    @staticmethod
    def backward(ctx: Any, grad_mn: Tensor) -> tuple[Tensor | None, ...]:
        x_mk, weight_nk = ctx.saved_tensors
        grad_mn = grad_mn.contiguous()
        return (
            None if weight_nk is None else grad_input(grad_mn, weight_nk),
            None if x_mk is None else grad_weight(grad_mn, x_mk),
            grad_mn.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )


class _LoraLinear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x_mk: Tensor, weight_nk: Tensor, bias_n: Tensor | None, a_rk: Tensor, b_nr: Tensor, scale: float
    ) -> Tensor:
        u_mr = product(x_mk, a_rk)
        out_mn = product(x_mk, weight_nk, bias_n)
        out_mn.addmm_(u_mr, b_nr.t(), alpha=scale)
        ctx.save_for_backward(x_mk, weight_nk, a_rk, b_nr, u_mr)
        ctx.scale = scale
        return out_mn

    @staticmethod
    def backward(ctx: Any, grad_mn: Tensor) -> tuple[Tensor | None, ...]:
        x_mk, weight_nk, a_rk, b_nr, u_mr = ctx.saved_tensors
        grad_mn = grad_mn.contiguous()
        v_mr = grad_input(grad_mn, b_nr).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grad_input(grad_mn, weight_nk)
            d_x.addmm_(v_mr, a_rk)
        return (
            d_x,
            grad_weight(grad_mn, x_mk) if ctx.needs_input_grad[1] else None,
            grad_mn.sum(dim=0) if ctx.needs_input_grad[2] else None,
            grad_weight(v_mr, x_mk) if ctx.needs_input_grad[3] else None,
            grad_weight(grad_mn, u_mr).mul_(ctx.scale) if ctx.needs_input_grad[4] else None,
            None,
        )


def fast_lora_class() -> type[nn.Module]:
    """Subclass of PEFT's LoRA linear with the function above; made on first use, since it needs peft."""
    global _fast_lora
    if _fast_lora is None:
        from peft.tuners.lora.layer import Linear

        class FastLoraLinear(Linear):  # type: ignore[misc]
            """PEFT's LoRA linear; the common case in one autograd function."""

            def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                """As PEFT's."""
                adapter = None if args or kwargs else _simple_adapter(self, x)
                if adapter is None:
                    dora = None if args or kwargs else _dropped_dora(self)
                    return super().forward(x, *args, **kwargs) if dora is None else _dora_of_dropped(self, dora, x)
                base, a, b = self.base_layer, self.lora_A[adapter].weight, self.lora_B[adapter].weight
                rows = x.reshape(-1, x.shape[-1])
                out = _LoraLinear.apply(rows, base.weight, base.bias, a, b, self.scaling[adapter])
                return out.view(*x.shape[:-1], b.shape[0])

        _fast_lora = FastLoraLinear
    return _fast_lora


_fast_lora: type[nn.Module] | None = None


def _simple_adapter(layer: Any, x: Tensor) -> str | None:
    """Name of the one active plain adapter, or None where PEFT's own forward must run."""
    if layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type):
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    name = active[0]
    dropout, a, b = layer.lora_dropout[name], layer.lora_A[name], layer.lora_B[name]
    if (layer.training and getattr(dropout, "p", 0.0) > 0.0) or b.bias is not None:
        return None
    if any(type(part) not in (nn.Linear, FastLinear) for part in (layer.base_layer, a, b)):
        return None
    same = x.dtype == layer.base_layer.weight.dtype == a.weight.dtype == b.weight.dtype
    return name if same else None


def _dropped_dora(layer: Any) -> str | None:
    """Name of the one active DoRA adapter whose input is dropped in part, on a `FastLinear`; None for any other."""
    if layer.disable_adapters or layer.merged or not layer.training or type(layer.base_layer) is not FastLinear:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or type(layer.lora_variant.get(active[0])).__name__ != "DoraLinearVariant":
        return None
    name = active[0]
    same = layer.lora_A[name].weight.dtype == layer.base_layer.weight.dtype
    return name if same and getattr(layer.lora_dropout[name], "p", 0.0) > 0.0 else None


def _dora_of_dropped(layer: Any, name: str, x: Tensor) -> Tensor:
    """As PEFT's, with both products of the base on its own layer: PEFT's second one, torch's, would keep the weight."""
    dropped, base = layer.lora_dropout[name](x), layer.base_layer
    more: Tensor = layer.lora_magnitude_vector[name](
        dropped, lora_A=layer.lora_A[name], lora_B=layer.lora_B[name], scaling=layer.scaling[name], base_layer=base,
        base_result=base(dropped),
    )  # fmt: skip
    result: Tensor = base(x) + more
    return result


def replace_layers(model: nn.Module) -> tuple[Undo, list[tuple[str, str, str]]]:
    """Give instances their fast subclass.

    Under ZeRO-3 every linear layer gets one, in every type and on every device: torch's own keeps W^T for its gradient,
    a view of what was gathered, so that nothing of it would be freed before the backward pass.

    Also keeps bitsandbytes' 4-bit layers on a CPU in the layout that trains: on processors with AVX512-BF16 they
    repack themselves at the first forward pass in evaluation mode, and the repacked product has no gradient, so one
    validation pass would silently end the training of everything below.

    Returns:
        (undo, report): what `restore_layers` needs; lines (part, runs on, why).
    """
    from peft.tuners.lora.layer import Linear as LoraLinear

    library, reason = product_library()
    on_cpu = next(model.parameters()).device.type == "cpu"
    undo: list[tuple[nn.Module, str, Any]] = []
    linears = parted = loras = four_bit = repacked = 0
    for module in list(model.modules()):
        # Not `module.weight`: ZeRO-3 would take that for a use of the weight, and gather it in every pass.
        weight = next(module.parameters()) if type(module) is nn.Linear else None
        if weight is not None and hasattr(weight, "ds_id"):
            undo.append((module, "__class__", nn.Linear))
            module.__class__ = FastLinear
            parted += 1
        elif weight is not None and on_cpu and library == "onednn" and weight.dtype == torch.float32:
            undo.append((module, "__class__", nn.Linear))
            module.__class__ = FastLinear
            linears += 1
        elif type(module) is LoraLinear and not module.fan_in_fan_out:
            undo.append((module, "__class__", LoraLinear))
            module.__class__ = fast_lora_class()
            loras += 1
        elif getattr(module, "support_avx512bf16_for_cpu", False) and on_cpu:
            undo.append((module, "support_avx512bf16_for_cpu", True))
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks when it saves; its scales were rounded on the way
                repacked += 1
            four_bit += 1
    report: list[tuple[str, str, str]] = []
    if parted:
        why = "nothing gathered is kept between passes"
        report.append(("linear layers", f"one function each ({parted} layers)", why))
    if linears:
        report.append(("linear layers", f"oneDNN ({linears} layers)", reason))
    elif on_cpu and library == "onednn" and not parted:
        report.append(("linear layers", "torch", "torch already multiplies this type with oneDNN"))
    elif on_cpu and not parted:
        report.append(("linear layers", "torch", reason))
    if loras:
        report.append(("LoRA layers", f"one function each ({loras} layers)", "thin products added in place"))
    if four_bit:
        why = "bitsandbytes' repacked layout for evaluation has no gradient"
        if repacked:
            why += f"; {repacked} layers had been evaluated before, which rounded their scales (about 1%)"
        report.append(("4-bit layers", f"the layout that trains ({four_bit} layers)", why))
    return undo, report


def restore_layers(undo: Undo) -> None:
    """Take back what `replace_layers` did."""
    for module, attribute, original in undo:
        setattr(module, attribute, original)
