"""A model of random weights whose layers are made one by one, on the device, right before they are packed and sharded.

No process ever holds more than one whole layer (Llama-3.1-70B: 1.6 GiB in bfloat16) beside its shards, embeddings and
head. Every process makes the same numbers: each layer has a seed of its own.
"""

from __future__ import annotations

from typing import Any


def streamed_model(kind: str, settings: dict[str, Any], *, device: Any, dtype: str, nf4: bool, seed: int = 0) -> Any:
    """A causal model whose decoder layers have shapes only; `train/setup.py` has them filled as it shards them.

    Args:
        kind, settings: as for `models.random_model`.
        device: a torch device.
        dtype: of the weights; with `nf4` of the products.
        nf4: linear layers wait to be quantised (`model/quantize.py: nf4_later`).
        seed: of embeddings, head and (plus the number of a layer) each layer.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from benchmarks.gpu.models import make_config
    from luthier.model.quantize import nf4_config, nf4_later

    torch_dtype = getattr(torch, dtype)
    config = make_config(kind, settings)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype, attn_implementation="sdpa")
    model.tie_weights()
    layers = list(model.get_decoder().layers)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    fill(model, device, seed=seed, only=lambda parameter: id(parameter) not in inside)
    for layer in layers:  # PEFT puts adapters where a weight is: not on `meta`
        for module, name, parameter in _parameters(layer):
            _put(module, name, torch.full((), float("nan"), dtype=torch_dtype).expand(parameter.shape))
    model.tie_weights()
    if nf4:
        nf4_later(model, nf4_config(torch_dtype))
    numbers = {id(layer): index for index, layer in enumerate(layers)}
    model.luthier_bring = lambda layer: fill(
        layer, device, seed=seed + 1 + numbers[id(layer)], only=lambda parameter: not parameter.requires_grad
    )
    return model.eval()


def fill(module: Any, device: Any, *, seed: int, only: Any) -> None:
    """Random values for the parameters that `only` chooses: norms 1, biases 0, the rest normal with 0.02."""
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    made: dict[int, Any] = {}
    for owner, name, parameter in _parameters(module):
        if not only(parameter):
            continue
        if id(parameter) not in made:
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            if "norm" in type(owner).__name__.lower():
                value.fill_(1.0)
            elif name == "bias":
                value.zero_()
            else:
                value.normal_(0, 0.02, generator=generator)
            made[id(parameter)] = value
        _put(owner, name, made[id(parameter)])


def _parameters(module: Any) -> list[tuple[Any, str, Any]]:
    return [
        (owner, name, parameter)
        for owner in module.modules() for name, parameter in list(owner._parameters.items()) if parameter is not None
    ]  # fmt: skip


def _put(owner: Any, name: str, value: Any) -> None:
    """A frozen parameter of the class and with the settings of the one that is there."""
    import torch

    old = owner._parameters[name]
    if type(old).__name__ == "Params4bit":
        owner._parameters[name] = type(old)(value, requires_grad=False, **old.__dict__)
    else:
        owner._parameters[name] = torch.nn.Parameter(value, requires_grad=False)


def gathered_patterns() -> dict[str, int]:
    """How many of the 65,536 patterns of 16 bits `fully_shard` changes on their way, by the type they are seen as.

    The product stores packed bytes as float32 (`luthier/model/packed.py` says why): `float32 ...` must be 0. Anything
    else is only there to be looked at.
    """
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    patterns = torch.arange(65536).to(torch.uint16).view(torch.uint8).to(device)
    found = {}
    for storage in (torch.float32, torch.bfloat16, torch.float16):
        for neighbour in (torch.bfloat16, torch.float32):

            class Holder(nn.Module):
                def __init__(self, storage: Any = storage, neighbour: Any = neighbour) -> None:
                    super().__init__()
                    ones = torch.ones(5, dtype=neighbour, device=device)
                    self.norm = nn.Parameter(ones, requires_grad=False)
                    self.bytes = nn.Parameter(patterns.view(storage).clone(), requires_grad=False)

                def forward(self, _: Any) -> Any:  # torch 2.11 takes no module without inputs
                    return self.bytes.detach().view(torch.uint8).clone()

            holder = fully_shard(Holder(), mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
            with torch.no_grad():
                back = holder(patterns)
            key = f"{str(storage)[6:]} beside {str(neighbour)[6:]}"
            found[key] = int((back.view(-1, 2) != patterns.view(-1, 2)).any(dim=1).sum())
    return found
