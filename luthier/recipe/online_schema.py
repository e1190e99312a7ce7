"""Keys of online RL (`objective.grpo`): rewards, sampling, the loss. Names of TRL where TRL has the key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.recipe.section import Section

__all__ = ["GrpoSection", "JudgeSection", "RewardSpec"]

PositiveInt = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0.0)]


class RewardSpec(Section):
    """One reward: a number for each completion. What is trained on is the weighted sum of all."""

    name: Literal["exact_match", "number", "json_valid", "json_exact", "regex", "length", "judge"] | None = None
    """`exact_match`: equal to the reference; `number`: its last number is the reference's; `json_valid`, `json_exact`;
    `regex`: `pattern` is found; `length`: 0 down to -1 for long completions; `judge`: a score of another model."""
    python: str | None = None
    """Instead of `name`: your own code, as FILE:FUNCTION. Called as TRL calls rewards, with
    `(prompts, completions, **columns)`; returns a list of numbers."""
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Name in metrics. null: `name`, or the name of the function."""
    weight: float = 1.0
    """Factor in the sum; 0 only logs the reward."""
    pattern: str | None = None
    """Regular expression. `exact_match`, `number`: its first group is compared; `regex`: what must be found."""
    soft_tokens: PositiveInt | None = None
    """`length`: the penalty begins so many tokens below `max_tokens` (arXiv:2503.14476, equation 13)."""
    max_tokens: PositiveInt | None = None
    """`length`: tokens from which the penalty is -1. null: `max_completion_length`."""
    rubric: str | None = None
    """`judge`: what makes an answer good, in words."""
    min_score: float = 0.0
    """`judge`: lowest score of the rubric; the reward is 0 there."""
    max_score: float = 10.0
    """`judge`: highest score of the rubric; the reward is 1 there."""


class JudgeSection(Section):
    """The model that `judge` rewards ask, behind any OpenAI-compatible server."""

    base_url: str | None = None
    """For instance `http://localhost:8000/v1`; `/chat/completions` is appended."""
    model: str | None = None
    """Name the server knows the model by."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null: no key is sent."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """Of the judge's answer."""
    max_tokens: PositiveInt = 512
    """Longest answer of the judge."""
    concurrency: PositiveInt = 8
    """Requests in flight at once."""
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    """Longest time of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 6
    """Further attempts after 429, 5xx, a broken connection or a broken answer."""
    input_price: Price | None = None
    """US dollars a million prompt tokens; with `output_price` the cost is counted."""
    output_price: Price | None = None
    """US dollars a million completion tokens."""
    budget_usd: Annotated[float, Field(gt=0.0)] | None = None
    """Most that one session of the run may spend; then it stops with an error. Needs both prices."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of each request, for instance `{reasoning_effort: low}`; null removes a key."""


class GrpoSection(Section):
    """Group relative policy optimisation (arXiv:2402.03300), run by TRL's GRPOTrainer."""

    rewards: list[RewardSpec] = Field(default_factory=list)
    """What a completion is worth; at least one."""
    reference_column: str | None = None
    """Column with the reference answer. null: the last assistant message of the row."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions sampled for each prompt: a group, whose mean reward is the baseline."""
    max_completion_length: PositiveInt = 512
    """Longest completion, in tokens."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of sampling."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the likeliest tokens that have this probability together."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the k likeliest tokens; 0: from all."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Leave out tokens below this share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    """Above 1: tokens already used become less likely in sampling."""
    beta: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the KL divergence from the model at the start; 0: no reference model is kept."""
    epsilon: Annotated[float, Field(gt=0.0)] = 0.2
    """Clipping of the probability ratio, below (and above, unless `epsilon_high` is given)."""
    epsilon_high: Annotated[float, Field(gt=0.0)] | None = None
    """Clipping above. null: as `epsilon`. DAPO takes 0.28."""
    num_iterations: PositiveInt = 1
    """Optimizer steps on the same completions."""
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo"] = "dapo"
    """How token losses are summed (names of TRL). `dapo`: over all tokens of the step; `grpo`: mean of each completion;
    `dr_grpo`: over a constant length."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or of the whole completion (GSPO, arXiv:2507.18071)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or not at all."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut at `max_completion_length` out of the loss."""
    use_vllm: bool = False
    """Sample with vLLM, which must be installed; else transformers samples."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """vLLM in this process, or a server of its own (`trl vllm-serve`)."""
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the device that vLLM takes in this process."""
    vllm_server_base_url: str | None = None
    """Of the server, for `vllm_mode: server`."""
    judge: JudgeSection = Field(default_factory=JudgeSection)
    """The model that `judge` rewards ask."""
