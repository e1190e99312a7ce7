"""Model and loss as one module: from a batch to the sum of its losses and of what is counted beside them.

sft           hidden states of the trained rows -> head and weighted cross-entropy, in chunks (`head.py`)
preferences   hidden states -> log p of each target (`log_probs.py`) -> one sum an answer -> the objective
reward model  hidden states of the last token of each answer -> a head of one output -> the objective
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.fast.exchange import SequenceGroup
from luthier.fast.graph import Graphs
from luthier.fast.head import linear_cross_entropy, logits_cross_entropy, module_cross_entropy, plain_linear
from luthier.fast.hidden import Layout, ModelInputs, Wanted, model_inputs, take_rows
from luthier.fast.log_probs import answer_sums, linear_log_probs, logits_log_probs, module_log_probs
from luthier.fast.probe import HeadFinding
from luthier.fast.settings import EngineSettings
from luthier.objective.base import Objective, Scored

__all__ = ["LossModule", "LossSums", "inner_model"]


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the targets (or rows of preferences) of one batch; divide by the weight of the whole update."""

    loss: Tensor
    """fp32 scalar with gradient: sum of weight x loss."""
    weight_sum: float
    sums: dict[str, Tensor]
    """Scalars by name: `correct` (targets that are the arg max, unweighted, int64), or those of the objective."""

    @property
    def correct(self) -> Tensor:
        """Targets that are the arg max."""
        return self.sums["correct"]


class LossModule(nn.Module):  # type: ignore[misc]
    """`forward(batch)` -> (loss sum, other sums). This is what DDP wraps."""

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Layout,
        finding: HeadFinding,
        settings: EngineSettings,
        last_layer: int | None,
        graphs: Graphs | None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.layout: Layout = layout
        self.finding = finding
        self.neftune_noise_alpha = settings.neftune_noise_alpha
        self.last_layer = last_layer
        """The decoder layer that can compute trained rows alone, if there is one."""
        self.graphs = graphs
        """Recordings of the trunk, where they may be used."""
        self.objective = objective
        self.shared: SequenceGroup | None = None
        """The processes that share each sequence, where batches are parts (`Engine.share_sequences`)."""

    def forward(self, batch: Batch, label_smoothing: float = 0.0, kl: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss sum and other sums of one batch; without an objective the cross-entropy of its targets."""
        if self.objective is not None:
            return self._preference_loss(self.objective, batch, kl)
        outputs = self._outputs(batch, Wanted.targets(batch))
        settings: dict[str, Any] = {
            "target_ids_s": batch.target_ids, "target_weights_s": batch.target_weights,
            "label_smoothing": label_smoothing, "transform": self.finding.transform,
        }  # fmt: skip
        head, linear, vocab_size = self._head()
        if self.finding.kind == "model":
            loss, correct = logits_cross_entropy(outputs, **settings)
        elif linear is None:
            loss, correct = module_cross_entropy(outputs, head, vocab_size=vocab_size, **settings)
        else:
            loss, correct = linear_cross_entropy(outputs, linear.weight, bias_v=linear.bias, **settings)
        # A batch that counts nothing has targets all the same.
        return loss, {"correct": correct if batch.trained_tokens else torch.zeros_like(correct)}

    def answer_values(self, batch: Batch) -> Tensor:
        """(A,): the summed log-probability of each answer's targets; of a reward model the reward of each answer.

        Raises:
            ValueError: the batch is none of preferences.
        """
        answers = batch.answers
        if answers is None:
            raise ValueError("the batch has no answers")
        if self.finding.kind == "reward":
            rewards: Tensor = inner_model(self.model).score(self._outputs(batch, Wanted(answers.last_index)))
            return rewards.squeeze(-1).float()
        return answer_sums(self._log_probs(batch), batch.target_weights, answers, longest=batch.max_doc)

    def _preference_loss(self, objective: Objective, batch: Batch, kl: float) -> tuple[Tensor, dict[str, Tensor]]:
        values = self.answer_values(batch)
        if batch.answers is None or not batch.weight_sum:
            # It counts nothing, but its (zero) gradient takes part in what processes exchange.
            return values.sum() * 0.0, objective.none(values)
        outcome = objective(Scored(values=values, answers=batch.answers, kl=kl))
        return outcome.losses.sum(), outcome.sums

    def _log_probs(self, batch: Batch) -> Tensor:
        """(S,) log p of each target."""
        outputs = self._outputs(batch, Wanted.targets(batch))
        settings: dict[str, Any] = {"target_ids_s": batch.target_ids, "transform": self.finding.transform}
        head, linear, vocab_size = self._head()
        if self.finding.kind == "model":
            return logits_log_probs(outputs, **settings)[0]
        if linear is None:
            return module_log_probs(outputs, head, vocab_size=vocab_size, **settings)[0]
        return linear_log_probs(outputs, linear.weight, bias_v=linear.bias, **settings)[0]

    def _head(self) -> tuple[Any, nn.Linear | None, int]:
        """(the head, the one matrix it is at this moment if it is one, rows of the vocabulary)."""
        base = inner_model(self.model)
        head = base.get_output_embeddings()
        return head, None if head is None else plain_linear(head), base.get_input_embeddings().weight.shape[0]

    def _outputs(self, batch: Batch, wanted: Wanted) -> Tensor:
        """(S, D) last hidden states of the wanted flat tokens; (S, V) logits where only the model knows its head."""
        base = inner_model(self.model)
        inputs = model_inputs(batch, self.layout, self.shared)
        if self.training and self.neftune_noise_alpha > 0.0:
            inputs.embed(base.get_input_embeddings(), noise_alpha=self.neftune_noise_alpha)
        if self.finding.kind == "model":
            logits: Tensor = base(**inputs.kwargs).logits.flatten(0, 1)
            return wanted.arrange(logits[inputs.rows(wanted.rows)])
        return self._hidden(base, batch, inputs, wanted)

    def _hidden(self, base: Any, batch: Batch, inputs: ModelInputs, wanted: Wanted) -> Tensor:
        """(S, D) last hidden states of the wanted rows."""
        rows = inputs.rows(wanted.rows)
        if self.training and self.graphs is not None and batch.part is None and batch.tokens <= self.graphs.most_tokens:
            embeds = inputs.embedded(base.get_input_embeddings())
            replayed = self.graphs.hidden(
                embeds.squeeze(0), batch.position_ids, batch.doc_lengths, prefixes=batch.prefixes
            )
            if replayed is not None:
                return wanted.arrange(take_rows(replayed, rows))
        if self.last_layer is not None:
            inputs.only(rows, last_layer=self.last_layer)
        hidden: Tensor = base.get_decoder()(**inputs.kwargs)[0].flatten(0, 1)
        # A last layer that was called on all rows after all (its adapter is off, say) gives all of them.
        only = self.last_layer is not None and hidden.shape[0] == rows.shape[0]
        return wanted.arrange(hidden if only else take_rows(hidden, rows))


def inner_model(model: Any) -> Any:
    """The transformers model under PEFT, or the model itself. Adapters live in its layers, so calling it uses them."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
