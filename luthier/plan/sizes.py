"""A model and a method as the few sums that memory and time are computed from.

Legend: d hidden, q query width, kv key width, f intermediate, V vocabulary, L layers, r rank. A *group* is the linear
layers of a decoder layer that share their input: qkv, o, gate-up, down (`fast/decoder/bases.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.plan.shape import ModelShape, Tensor
from luthier.plan.trained import (
    adapted_tensors,
    has_adapters,
    layer_of,
    trainable_parameters,
    trained_how,
    trained_tensors,
)
from luthier.recipe.schema import MethodSection

__all__ = ["ENGINE_FAMILIES", "PAD", "Group", "Sizes", "sizes_of"]

PAD = 64
"""Columns that adapters are padded to in an extended matrix (`fast/decoder/lora.py`)."""
ENGINE_FAMILIES = frozenset(["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3"])
"""Families whose decoder layers are one function with a hand-written backward pass; others keep what autograd keeps."""
SMALL_TENSOR = 4096
"""`adamw_8bit` keeps fp32 moments for tensors of fewer elements (`train/adamw8.py:SMALLEST`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Stacked linear layers of one decoder layer."""

    name: str
    outputs: int
    inputs: int
    members: int
    """Linear layers in it: 3 for qkv, 2 for gate-up."""
    rank: int
    """Sum of the ranks of their adapters; 0: none is adapted."""

    @property
    def parameters(self) -> int:
        """Of the stacked matrix."""
        return self.outputs * self.inputs

    @property
    def pad(self) -> int:
        """Rows and columns an extended matrix has more than this one."""
        return -(-self.rank // PAD) * PAD

    @property
    def padding(self) -> int:
        """Elements of the extended matrix (N + P, K + P) that the adapters and their alignment add."""
        return (self.outputs + self.pad) * (self.inputs + self.pad) - self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Everything that does not change with the batch."""

    shape: ModelShape
    method: str
    adapters: bool
    groups: tuple[Group, ...]
    """Of one decoder layer; all layers are taken as equal."""
    parameters: int
    linear: int
    """In the linear layers of the decoder layers."""
    trainable: int
    adapter_parameters: int
    trained_base: int
    """Trained parameters of the model itself."""
    trained_linear: int
    """Those of them in the linear layers of the decoder layers."""
    trained_head: bool
    trained_embedding: bool
    lowest_layer: int
    """Index of the lowest decoder layer with something trained below or in it: nothing is kept and no gradient runs
    below. L if only the head or the last norm is trained."""
    small_trained: int
    """Trained parameters in tensors of fewer than 4,096 elements."""
    factored_rows: int
    """Rows plus columns of all trained matrices (Adafactor's states)."""
    trained_vectors: int
    largest_trained: int
    """Elements of the largest trained tensor."""
    hidden_matrices: int = 0
    """Trained parameters in matrices other than embeddings and head (what Muon updates)."""
    dropout: bool = False
    """Adapters have dropout."""
    dora: bool = False
    """Adapters have magnitudes: their layers run as PEFT wrote them."""
    trained_how: str = ""
    """How far it is known which tensors are trained; empty where the recipe says it all."""

    @property
    def head(self) -> int:
        """Parameters of the head, tied or not."""
        return self.shape.hidden_size * self.shape.vocab_size

    @property
    def trained_decoder(self) -> int:
        """Trained parameters outside embeddings and head, adapters included."""
        ends = {(True, True): 1 if self.shape.tied else 2, (False, False): 0}.get(
            (self.trained_embedding, self.trained_head), 1
        )
        return self.trainable - ends * self.head

    @property
    def linear_per_layer(self) -> int:
        """Parameters in the linear layers of one decoder layer."""
        return self.linear // self.shape.layers

    @property
    def backward_layers(self) -> int:
        """Decoder layers the backward pass goes through."""
        return self.shape.layers - self.lowest_layer

    @property
    def fast(self) -> bool:
        """The engine has its own layer for this family, and for adapters of this kind."""
        return self.shape.family in ENGINE_FAMILIES and not self.dora


def sizes_of(shape: ModelShape, method: MethodSection, unfrozen: Sequence[str] | None = None) -> Sizes:
    """The sums for one model and method. Costs some milliseconds for 700 tensors; compute it once.

    `unfrozen`: what a scan chose for Spectrum (`trained.py`).
    """
    adapted, trained = adapted_tensors(shape, method), trained_tensors(shape, method, unfrozen)
    names = {tensor.name for tensor in trained}
    linear = {tensor.name for tensor in shape.linear_tensors}
    matrices = _trained_matrices(adapted, trained, method.r)
    vectors = sum(tensor.parameters for tensor in trained if len(tensor.shape) < 2)
    magnitudes = [tensor.shape[0] for tensor in adapted if method.use_dora]
    vectors += sum(magnitudes)
    small = sum(size for size in magnitudes if size < SMALL_TENSOR)
    small += sum(rows * columns for rows, columns in matrices if rows * columns < SMALL_TENSOR)
    small += sum(tensor.parameters for tensor in trained if len(tensor.shape) < 2 and tensor.parameters < SMALL_TENSOR)
    tied_embedding = any(name.endswith("embed_tokens.weight") for name in names)
    trained_head = any(name.endswith("lm_head.weight") for name in names) or (shape.tied and tied_embedding)
    trainable = trainable_parameters(shape, method, unfrozen)
    base = sum(tensor.parameters for tensor in trained)
    return Sizes(
        shape=shape, method=method.name, adapters=has_adapters(method), groups=_groups(shape, adapted, method.r),
        parameters=shape.parameters, linear=sum(tensor.parameters for tensor in shape.linear_tensors),
        trainable=trainable, adapter_parameters=trainable - base, trained_base=base,
        trained_linear=sum(tensor.parameters for tensor in trained if tensor.name in linear),
        trained_head=trained_head, trained_embedding=tied_embedding,
        lowest_layer=_lowest(shape, adapted, trained, tied_embedding),
        small_trained=small, factored_rows=sum(sum(matrix) for matrix in matrices), trained_vectors=vectors,
        largest_trained=max((rows * columns for rows, columns in matrices), default=0),
        hidden_matrices=sum(
            rows * columns for rows, columns in _trained_matrices(adapted, [t for t in trained if not _is_table(t)],
                                                                  method.r)
        ),
        dropout=has_adapters(method) and method.lora_dropout > 0.0, trained_how=trained_how(method, unfrozen),
        dora=has_adapters(method) and method.use_dora,
    )  # fmt: skip


def _trained_matrices(adapted: list[Tensor], trained: list[Tensor], rank: int) -> list[tuple[int, int]]:
    thin = [(rank, side) for tensor in adapted for side in tensor.shape]
    return thin + [
        (tensor.shape[0], tensor.parameters // tensor.shape[0]) for tensor in trained if len(tensor.shape) > 1
    ]


def _is_table(tensor: Tensor) -> bool:
    return tensor.name.endswith(("embed_tokens.weight", "lm_head.weight"))


def _lowest(shape: ModelShape, adapted: list[Tensor], trained: list[Tensor], embedding: bool) -> int:
    if embedding:
        return 0
    return min(
        (index for tensor in [*adapted, *trained] if (index := layer_of(tensor)) is not None), default=shape.layers
    )


_GROUP_OF = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "qkv_proj": "qkv", "o_proj": "o",
    "gate_proj": "gate_up", "up_proj": "gate_up", "gate_up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip


def _groups(shape: ModelShape, adapted: list[Tensor], rank: int) -> tuple[Group, ...]:
    """The linear layers of layer 0 by group; a name that is not known is a group of its own.

    With adapters on some layers only, the layer with most adapters stands for all: counts of parameters are exact
    elsewhere, padding and thin products are then an upper bound.
    """
    outputs: Counter[str] = Counter()
    members: Counter[str] = Counter()
    ranks: Counter[str] = Counter()
    inputs: dict[str, int] = {}
    typical = Counter(layer_of(tensor) for tensor in adapted).most_common(1)
    chosen = {
        tensor.name.rpartition(".layers.")[2].partition(".")[2]
        for tensor in adapted
        if layer_of(tensor) == typical[0][0]
    }
    for tensor in shape.linear_tensors:
        if layer_of(tensor) != 0:
            continue
        module = tensor.name.removesuffix(".weight").rpartition(".")[2]
        name = _GROUP_OF.get(module, module)
        outputs[name] += tensor.shape[0]
        inputs[name] = tensor.shape[1]
        members[name] += 1
        ranks[name] += rank if tensor.name.rpartition(".layers.")[2].partition(".")[2] in chosen else 0
    return tuple(
        Group(name=name, outputs=outputs[name], inputs=inputs[name], members=members[name], rank=ranks[name])
        for name in outputs
    )
