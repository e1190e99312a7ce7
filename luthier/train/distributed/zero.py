"""A model under DeepSpeed's ZeRO: its engine around the model, and our passes through it.

    engine = partition(model, optimizer, settings, device)    the optimizer's tensors become DeepSpeed's partitions
    Passes(engine, module)                                    the engine's loss as a pass through DeepSpeed's engine

ZeRO-1 partitions fp32 masters and moments, ZeRO-2 gradients as well; both keep weights whole. ZeRO-3 partitions the
weights too: its hooks gather a module before each of its passes. A decoder layer is gathered as one
(`set_z3_leaf_modules`), so that the layer function can read the matrices from the modules (`fast/decoder/bases.py:
Gathered`); embeddings, last norm and head belong to the root (`register_external_parameter`) and are whole while a
forward pass runs, which is where the loss reads them.

DeepSpeed: https://deepspeed.readthedocs.io/en/latest/zero3.html
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn

from luthier.fast.loss import inner_model
from luthier.runtime.errors import EnvironmentProblem, RecipeError

__all__ = [
    "Passes",
    "Root",
    "import_deepspeed",
    "let_gradients_through",
    "partition",
    "require_deepspeed",
    "run_alone",
]


_INSTALL = "pip install 'luthier[deepspeed]', or use `distributed.strategy: fsdp2`, which shards the same"


def require_deepspeed() -> None:
    """Look for DeepSpeed without importing it.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise EnvironmentProblem(code="L170", message="DeepSpeed's strategies need it, and it is not installed",
                                 hint=_INSTALL)  # fmt: skip


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told what computes.

    On CPUs its own operator for collectives is left out: it would be compiled at the first start (a minute or more,
    and a C++ compiler), and gloo does the same.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise EnvironmentProblem(
            code="L170", message=f"DeepSpeed is not usable here: {error}",
            hint=_INSTALL,
        ) from error  # fmt: skip
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch 2.13 has replaced.
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    return deepspeed


class Root(nn.Module):  # type: ignore[misc]
    """What DeepSpeed wraps: the model, and whatever is to run while its weights can be had."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task: Callable[[], Any] | None = None
        self._rest: Any = None

    def forward(self) -> torch.Tensor | None:
        """Run the task. DeepSpeed's hooks look at what is returned: the loss alone, nothing that is no tensor."""
        assert self._task is not None
        _read_as_they_are(self)
        result = self._task()
        if isinstance(result, tuple) and result and isinstance(result[0], torch.Tensor):
            self._rest = result[1:]
            return result[0]
        self._rest = result
        return None

    def run(self, engine: nn.Module, task: Callable[[], Any]) -> Any:
        """What `task` returns, run inside the forward pass of DeepSpeed's engine."""
        self._task = task
        try:
            first, rest = engine(), self._rest
        finally:
            self._task = self._rest = None
        return rest if first is None else (first, *rest)


class Passes(nn.Module):  # type: ignore[misc]
    """Passes of `module` through DeepSpeed's engine."""

    def __init__(self, root: Any, module: nn.Module) -> None:
        super().__init__()
        self.root, self.module = root, module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's."""
        return self.run(self.module, *args, **kwargs)

    def run(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`action(*args, **kwargs)`, which is a pass of all processes, with the weights whole where it needs them."""
        return self.root.module.run(self.root, lambda: action(*args, **kwargs))


def run_alone(engine: Any, task: Callable[[], Any]) -> Any:
    """What `task` returns, run with the weights whole where it needs them, and nothing of them whole after it.

    DeepSpeed takes the modules of one pass for those of the next, and would keep the layers of a pass that is no
    training step until they come again.
    """
    try:
        return engine.module.run(engine, task)
    finally:
        engine.empty_partition_cache()


def partition(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], device: torch.device, *, file: str
) -> Any:
    """DeepSpeed's engine around `model` and `optimizer`, both changed in place.

    Args:
        model: All of its parameters in one type, or bytes seen as integers; with stage 3 it may be in host memory.
        optimizer: Over the trained parameters, no step taken.
        settings: DeepSpeed's configuration, without `auto`.
        device: Where it computes.
        file: Where `settings` come from, for messages.

    Raises:
        RecipeError: DeepSpeed does not take the settings, or the model has no list of decoder layers.
    """
    deepspeed = import_deepspeed(device)
    layers = list(getattr(inner_model(model).get_decoder(), "layers", ()))
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if not layers or len(kinds) != 1:
        what = f"weights of several types ({', '.join(map(str, kinds))})" if layers else "no list of decoder layers"
        raise RecipeError(
            code="L176", message=f"ZeRO cannot partition {type(inner_model(model)).__name__}: it has {what}",
            hint="use `distributed.strategy: ddp`",
        )  # fmt: skip
    root = Root(model)
    if settings["zero_optimization"]["stage"] == 3:
        deepspeed.utils.set_z3_leaf_modules(root, [type(layers[0])])
    # Its BF16_Optimizer prints the memory of the process to stdout, where a reader of JSON finds it.
    with _buffers_kept(root, device), redirect_stdout(io.StringIO()):
        try:
            engine, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=dict(settings))
        except (AssertionError, ValueError) as error:
            first = " ".join(str(error).split())[:600]
            raise RecipeError(code="L177", message=f"{file}: DeepSpeed refuses it: {first}") from error
    if settings["zero_optimization"]["stage"] == 3:
        _whole_in_the_root(deepspeed, root, layers)
    return engine


def _whole_in_the_root(deepspeed: Any, root: nn.Module, layers: list[nn.Module]) -> None:
    """What passes read outside of a module of its own: everything but the layers. Not the frozen tables of which PEFT
    trains copies (`modules_to_save`): no pass reads those."""
    from peft.utils.other import ModulesToSaveWrapper

    copied = [module.original_module for module in root.modules() if isinstance(module, ModulesToSaveWrapper)]
    left = {id(parameter) for module in [*layers, *copied] for parameter in module.parameters()}
    for parameter in root.parameters():
        if id(parameter) not in left:
            deepspeed.zero.register_external_parameter(root, parameter)


def _read_as_they_are(root: nn.Module) -> None:
    """Let the parameters of all modules be read inside a forward pass without being gathered for it.

    DeepSpeed's `ZeROOrderedDict.__getitem__` gathers what is read while it is in parts, and makes it one of the module
    at work for good. The engine reads the type of every matrix when it is attached, so the root would own, and gather
    at once, the whole model in each pass. Nothing needs it: a layer is gathered as one, and the rest is the root's.
    """
    for module in root.modules():
        if hasattr(module._parameters, "_in_forward"):
            module._parameters._in_forward = False


@contextmanager
def _buffers_kept(root: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers on the device and in their own types: rotary frequencies in bf16 would be other positions."""
    held = [
        (module, name, buffer.to(device))
        for module in root.modules() for name, buffer in module._buffers.items() if buffer is not None
    ]  # fmt: skip
    yield
    for module, name, buffer in held:
        module._buffers[name] = buffer


def let_gradients_through(model: nn.Module) -> list[Any]:
    """Let the input of each layer that is trained have a gradient; returns handles of hooks.

    DeepSpeed reduces a leaf module's gradients when that of its input is there. Without one (the first layer, under a
    frozen embedding) it does so before the layer's own backward pass has run, and what comes later is lost as soon as
    the layer has more weights than a bucket. Called after the engine is attached: it looks for hooks.
    """

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled() or not args or args[0].requires_grad:
            return None
        return (args[0].detach().requires_grad_(), *args[1:])

    layers = inner_model(model).get_decoder().layers
    trained = [layer for layer in layers if any(parameter.requires_grad for parameter in layer.parameters())]
    return [layer.register_forward_pre_hook(hook, prepend=True) for layer in trained]
