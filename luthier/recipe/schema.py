"""The recipe: what a user may write, one frozen section per stage.

Every key has a docstring with its unit and scope; `luthier schema` publishes them.
Nothing is derived here (`auto` stays `auto`): `recipe/resolve.py` does that and records
each reason. Cross-field rules are in `recipe/check.py`. No torch below this line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.recipe.data_schema import DataSection, DedupSection, MixSection, Source, ValidationSection
from luthier.recipe.decontaminate_schema import AgainstSource, DecontaminateSection
from luthier.recipe.evaluate_schema import EvaluateSection, TaskSpec
from luthier.recipe.names import OptimName, ScheduleName, StartName
from luthier.recipe.online_schema import GrpoSection
from luthier.recipe.push_schema import PushSection
from luthier.recipe.section import Section

__all__ = [
    "AgainstSource",
    "DataSection",
    "DecontaminateSection",
    "DedupSection",
    "DistributedSection",
    "EvaluateSection",
    "ExportSection",
    "MethodSection",
    "MixSection",
    "ModelSection",
    "ObjectiveSection",
    "PushSection",
    "Recipe",
    "Source",
    "TaskSpec",
    "TrainSection",
    "ValidationSection",
]

Auto = Literal["auto"]
GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
]  # fmt: skip
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelSection(Section):
    """The base model."""

    name_or_path: str
    """Hub id or local folder of the base model; `smollm2-135m-instruct` is the model that ships in a package."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer, when it is not the model's own."""
    chat_template: str | None = None
    """A Jinja chat template, or the path of a `.jinja` file; replaces the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Extra variables for the chat template, for instance `{enable_thinking: false}`; in training and serving alike."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in memory. `auto`: bfloat16 where the device computes it natively, else float32."""
    quantization: Literal["auto", "none", "nf4", "fp8"] = "auto"
    """Storage of the frozen base. `auto`: `nf4` for `method.name: qlora`, else `none`. `fp8` is faster and inexact."""
    dequantize_base: bool | Auto = "auto"
    """For `nf4`: keep the weights unpacked in 16 bits on the device: the same numbers, faster, more memory."""
    attn_implementation: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention for padded batches and generation; packed batches use Luthier's own per-document attention."""
    new_tokens: list[str] = Field(default_factory=list)
    """Tokens to add to the vocabulary; their embedding rows are trained."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you trust its author."""


class MethodSection(Section):
    """Which weights are trained, and how."""

    name: Literal["full", "lora", "qlora", "freeze", "spectrum"] = "lora"
    """`full`: all weights; `lora`: adapters; `qlora`: adapters on a 4-bit base; `freeze`: the named weights;
    `spectrum`: the matrices with the strongest signal in their singular values (arXiv:2406.06623)."""
    r: PositiveInt = 16
    """LoRA rank."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """LoRA scale: the update is multiplied by lora_alpha / r (or / sqrt(r) with use_rslora)."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of the adapters."""
    target_modules: str | list[str] = "all-linear"
    """Module names (suffixes), a regular expression, or `all-linear` (every linear layer but the head)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353)."""
    init_lora_weights: Literal[True] | StartName | Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]*$")] = True
    """How adapters start (names of PEFT). `true`: A random, B zero; `gaussian`: the same, A normal; `orthogonal`: both
    random, product zero; `pissa` (arXiv:2404.02948), `pissa_niter_16` (fast SVD) and `olora` (arXiv:2406.01775): with
    the main part of each weight; these are saved as a plain adapter of rank 2r for the untouched base."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules trained in full beside the adapters, for instance `embed_tokens`, `lm_head`."""
    trainable: list[str] = Field(default_factory=list)
    """For `freeze`: regular expressions over parameter names; each must match something."""
    last_n_layers: PositiveInt | None = None
    """For `freeze`: train the last n decoder layers."""
    top_percent: Annotated[float, Field(gt=0.0, le=100.0)] = 30.0
    """For `spectrum`: share of the matrices of each module type that is trained, in percent, rounded down."""
    spectrum_score: Literal["calibrated", "compat"] = "calibrated"
    """For `spectrum`: what a matrix is ranked by. `calibrated`: share of its energy above the noise; `compat`: the
    original script's number."""
    train_embeddings: bool = True
    """For `spectrum`: train input embeddings and head, too, as the original does at any `top_percent`."""
    spectrum_file: str | None = None
    """For `spectrum`: a YAML file with `unfrozen_parameters` (of `luthier spectrum`, the original script or Axolotl):
    exactly these are trained, and nothing is scanned. Excludes the three keys above."""
    init_from: str | None = None
    """Folder of an adapter to continue from."""


class ObjectiveSection(Section):
    """What is minimised."""

    name: Literal["sft", "dpo", "orpo", "kto", "simpo", "reward", "grpo"] = "sft"
    """`sft`: cross-entropy on the trained tokens. Over pairs of answers: `dpo`, `orpo`, `simpo`, and `reward`, a
    reward model. Over rated answers: `kto`. Online RL: `grpo`, rewards of sampled completions (`objective.grpo`)."""
    grpo: GrpoSection = Field(default_factory=GrpoSection)
    """Keys of `name: grpo`; it takes no other key of this section."""
    beta: Annotated[float, Field(gt=0.0)] | Auto | None = "auto"
    """`dpo`, `kto`: how strongly the model is held to the reference; `orpo`: weight of the odds ratio (lambda of the
    paper); `simpo`: scale of the reward. `auto`: 0.1, for `simpo` 2.0."""
    loss_type: Literal["sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "apo_zero", "apo_down"] = "sigmoid"
    """For `dpo`: which loss of the gap between two log-ratios (names of TRL)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """`sft`: share of probability spread over the vocabulary, (1-e) NLL + e mean(-log p). `simpo`, and `dpo` with
    loss_type `sigmoid` (conservative DPO) or `robust`: probability that a pair is labelled the wrong way round."""
    rpo_alpha: Annotated[float, Field(gt=0.0)] | None = None
    """`dpo`, `simpo`: weight of the loss a token of the chosen answer, added to the loss."""
    simpo_gamma: Annotated[float, Field(ge=0.0)] | Auto | None = "auto"
    """`simpo`: margin that the chosen answer's reward should have. `auto`: beta / 2."""
    desirable_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """`kto`: weight of the loss of desired answers."""
    undesirable_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """`kto`: weight of the loss of undesired answers."""
    center_rewards_coefficient: Annotated[float, Field(gt=0.0)] | None = None
    """`reward`: weight of the squared sum of a pair's rewards, which keeps rewards around zero."""
    neftune_noise_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """`sft`: NEFTune noise on the embeddings in training (arXiv:2310.05914); 0 turns it off."""


class TrainSection(Section):
    """The loop."""

    num_train_epochs: Annotated[float, Field(gt=0.0)] = 1.0
    """Passes over the training rows; may be a fraction."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps. Excludes `num_train_epochs`."""
    learning_rate: Annotated[float, Field(gt=0.0)] | Auto = "auto"
    """Peak learning rate."""
    learning_rate_multiplier: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the rate that `learning_rate: auto` comes to, as in OpenAI's fine-tuning API."""
    embedding_learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Peak learning rate of embeddings and head where they are trained themselves; null: as the others."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0.0)] | None = None
    """LoRA+ (arXiv:2402.12354): the rate of the B matrices is this many times `learning_rate`, for instance 16."""
    loraplus_lr_embedding: Annotated[float, Field(gt=0.0)] = 1e-6
    """With LoRA+: peak learning rate of adapters on embedding layers."""
    layerwise_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Decoder layer l of L learns at `learning_rate` x this ^ (L - 1 - l), embeddings at this ^ L; 1: all alike."""
    lr_scheduler_type: ScheduleName = "cosine"
    """Shape of the schedule (names of transformers)."""
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the schedule (names of transformers), for instance `{min_lr_rate: 0.1}`."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    """Share of the steps in which the learning rate rises from 0. Excludes `warmup_steps`."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the learning rate rises from 0."""
    optim: OptimName = "adamw_torch_fused"
    """Optimizer (names of transformers; `muon` is torch's, with AdamW for all but hidden matrices)."""
    optim_args: dict[str, Any] = Field(default_factory=dict)
    """Settings of the optimizer (names of transformers), for instance `{momentum: 0.9}` for `sgd`."""
    adam_beta1: Fraction = 0.9
    """AdamW beta1."""
    adam_beta2: Fraction = 0.999
    """AdamW beta2."""
    adam_epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    """AdamW epsilon."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay; never on norms and biases."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Clip the norm of the whole gradient; 0 turns clipping off."""
    tokens_per_step: PositiveInt | Auto = "auto"
    """Tokens of one optimizer step over all devices. Excludes the three batch keys below."""
    rows_per_step: PositiveInt | None = None
    """Rows of one optimizer step over all devices: exactly so many without `data.packing`, on average with it."""
    per_device_train_batch_size: PositiveInt | Auto = "auto"
    """Sequences (packs, or rows without packing) of one micro-batch on one device."""
    gradient_accumulation_steps: PositiveInt | Auto = "auto"
    """Micro-batches summed before an update. The split between the two keys never changes the result."""
    gradient_checkpointing: bool | Literal["selective"] | Auto = "auto"
    """Recompute activations in the backward pass. `true`: whole layers, 1.3 to 1.45 times the time;
    `selective`: only norms and the product of the MLP, almost free; `auto`: what the plan finds fastest that fits."""
    gradient_checkpointing_layers: PositiveInt | Auto | None = "auto"
    """Recompute only the first n decoder layers as a whole; the others keep all, or are `selective` beside it.
    null: all layers with `true`, none with `selective`."""
    gradient_checkpointing_attention: bool | PositiveInt | Auto = "auto"
    """Layers that are recomputed as a whole run attention again, too. false keeps its output, about as large as the
    layer's input: much less time for long documents. n: only the first n layers. `auto`: what the plan finds faster."""
    shuffle: bool = True
    """New seeded order in every epoch; false keeps the order of the files."""
    logging_steps: PositiveInt = 1
    """Steps between two metric lines."""
    eval_steps: PositiveInt | Auto | None = "auto"
    """Steps between two validation losses; null: only at the end. `auto`: ten times in a run."""
    save_steps: PositiveInt | Auto | None = "auto"
    """Steps between two checkpoints; null: none but the last. `auto`: as `eval_steps`."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept, besides the best one."""
    load_best_model_at_end: bool = False
    """Finish with the weights of the lowest validation loss instead of the last ones."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many validation losses without a new best."""
    early_stopping_threshold: Annotated[float, Field(ge=0.0)] = 0.0
    """How much lower a validation loss must be to count as a new best."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of order, dropout and initial adapter weights."""
    deterministic: bool = False
    """Only deterministic kernels (slower on a GPU)."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml"]] = Field(default_factory=list)
    """Trackers besides the run folder; each must be installed."""

    @property
    def keeps_attention(self) -> bool:
        """The recipe's own words: layers that run again, or some of them, do not attend again."""
        wanted = self.gradient_checkpointing_attention
        return isinstance(wanted, int) and wanted is not True


class DistributedSection(Section):
    """How several processes train one model; with one process nothing of it has an effect, and what needs several
    (`dp_replicate_size`, `sequence_parallel_size`) is refused."""

    strategy: Literal["auto", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "auto"
    """`ddp`: the whole model on each device; `fsdp2`: weights, gradients and optimizer state in shards (torch's
    `fully_shard`); `zero1`, `zero2`, `zero3`: DeepSpeed's. `auto`: the plan chooses."""
    reshard_after_forward: bool = True
    """For `fsdp2`: free a layer's weights after its forward pass and gather them again for its backward pass. `false`
    keeps them: less to send, and as much memory for weights as `ddp` while a step runs."""
    dp_replicate_size: PositiveInt = 1
    """For `fsdp2`: copies of the model, each in shards over the processes divided by this number (HSDP, as FSDP1's
    `HYBRID_SHARD`); the number of machines keeps gathers within each. Divides the number of processes. Left out beside
    `strategy: auto`, the plan considers it on several machines."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lives in host memory between its uses: optimizer state (with masters; in one process, too), or the shards of
    the weights as well. AdamW updates it on the GPU. Left out beside `strategy: auto`, the plan chooses it where
    nothing fits without."""
    sequence_parallel_size: PositiveInt = 1
    """Processes that share each sequence, for long contexts (DeepSpeed-Ulysses: heads are exchanged for positions);
    divides the number of processes and the model's heads. `sft` with `ddp` or `fsdp2`. Left out beside
    `strategy: auto`, the plan chooses it where a sequence does not fit on one."""
    deepspeed_config: str | None = None
    """A DeepSpeed configuration (JSON) that you have; what it says must agree with the recipe or be `auto`."""
    accelerate_config: str | None = None
    """A configuration of accelerate (YAML) that you have: what it says is taken, and must agree with the recipe."""


class ExportSection(Section):
    """What is made of the result."""

    merge: bool = True
    """Merge adapters into the original base and check the result against the adapter."""
    max_shard_size: str = "5GB"
    """Largest safetensors file."""
    checkpoints: bool = False
    """Write each checkpoint also as servers load it: an adapter (or model) in `served/step-N` of the run folder."""
    gguf: list[GgufType] = Field(default_factory=list)
    """GGUF files for llama.cpp, Ollama and LM Studio, each read back and compared; needs `merge`."""
    push_to_hub: PushSection | None = None
    """Publish the result with its model card when everything else is done; null: nothing leaves this machine."""


class Recipe(Section):
    """One fine-tune, from rows to a model."""

    version: Literal[1] = 1
    """Version of this schema."""
    name: str | None = None
    """Title in reports; default: the name of the output folder."""
    model: ModelSection
    data: DataSection
    method: MethodSection = Field(default_factory=MethodSection)
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    train: TrainSection = Field(default_factory=TrainSection)
    distributed: DistributedSection = Field(default_factory=DistributedSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    export: ExportSection = Field(default_factory=ExportSection)
    output_dir: str
    """Run folder; made if it does not exist."""
