"""Masked words, alone or with the order of two segments."""

from typing import Any, ClassVar

import numpy as np
import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, PretrainedConfig, PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.tasks.batch import IGNORED, Batch, count_of, rows_where
from lit_compress.tasks.outcomes import Outcomes, Scores, array, divide
from lit_compress.tasks.task import Task

__all__ = ["MaskedTokenScore", "MaskedWordsTask", "PretrainingTask", "mean_over_tokens"]

# Part of BERT's pretraining head that a file of a masked language model need not have.
_NEXT_SENTENCE = "seq_relationship"


class MaskedWordsTask(Task):
    """Masked words: cross-entropy over the masked tokens; perplexity and top-1 accuracy; predicts token ids."""

    name = "masked_lm"
    head = AutoModelForMaskedLM
    architectures = ("ForMaskedLM", "ForPreTraining")
    pipeline_tag = "fill-mask"
    data_module = "lit_compress.data.MaskedLanguageModeling"
    lower_is_better = frozenset({"perplexity"})

    def configure(self, config: PretrainedConfig) -> None:
        super().configure(config)
        if not self.has_head(config):  # a new decoder is that of the word embeddings
            config.tie_word_embeddings = True

    def loss(self, output: Any, batch: Batch) -> Tensor:
        labels = batch.targets["labels"]
        return mean_over_tokens(self._logits(output), labels, count_of(batch, "labelled", labels))

    def count(self, batch: Batch) -> int:
        return int((batch.targets["labels"] != IGNORED).sum())

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"masked_words": MaskedTokenScore()}, prefix=prefix)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics["masked_words"].update(self._logits(output), batch.targets["labels"])

    def points(self, metric: str) -> float | None:
        return None if metric == "perplexity" else 100.0

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        return self._logits(output).argmax(-1)

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        labels = batch.targets["labels"]
        row, column = torch.nonzero(labels != IGNORED, as_tuple=True)
        logits, truth = self._logits(output)[row, column].float(), labels[row, column]
        sums = np.zeros((len(labels), 4))
        values = (F.cross_entropy(logits, truth, reduction="none"), logits.argmax(-1) == truth, torch.ones_like(truth))
        for index, value in enumerate(values):
            sums[:, index] = np.bincount(array(row), array(value), len(labels))
        return {"sums": sums}

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        sums = columns["sums"]

        def score(weights: np.ndarray) -> Scores:
            return self._scores(weights @ sums, weights.sum(1))

        return Outcomes(unit="sequences", lengths=columns["lengths"], score=score, goodness=-sums[:, 0])

    def _scores(self, total: np.ndarray, rows: np.ndarray) -> Scores:
        loss, right, count, _ = total.T
        return {"perplexity": np.exp(divide(loss, count)), "accuracy": divide(right, count)}

    def _logits(self, output: Any) -> Tensor:
        return output.logits


class PretrainingTask(MaskedWordsTask):
    """Masked words, and whether the second segment follows the first (BERT): the sum of both cross-entropies."""

    name = "pretraining"
    head = AutoModelForPreTraining
    architectures = ("ForPreTraining",)
    data_options: ClassVar = {"packing": "segment_pairs"}

    def check_head(self, model: PreTrainedModel, key: str) -> None:
        if not any(_NEXT_SENTENCE in name for name, _ in model.named_parameters()):
            raise UserError(
                f"{key}: {type(model).__name__} has no next-sentence head; set data.packing to full_sentences or line"
            )

    def may_be_new(self, weight: str, config: PretrainedConfig) -> bool:
        # A masked language model has all but the next-sentence part of the head, so the loss of another is damage.
        return not (self if _NEXT_SENTENCE in weight else MaskedWordsTask).has_head(config)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        follows = F.cross_entropy(output.seq_relationship_logits, batch.targets["next_sentence_label"])
        return super().loss(output, batch) + follows

    def metrics(self, prefix: str) -> MetricCollection:
        # By alphabet the masked words come first, as in the report.
        accuracy = {"next_sentence": torchmetrics.Accuracy(task="binary")}
        return MetricCollection({"masked_words": MaskedTokenScore(), **accuracy}, prefix=prefix, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        super().update(metrics, output, batch)
        guess = output.seq_relationship_logits.argmax(-1)
        metrics["next_sentence"].update(guess, batch.targets["next_sentence_label"])

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, Any]:
        columns = super().outcome_columns(output, batch)
        right = output.seq_relationship_logits.argmax(-1) == batch.targets["next_sentence_label"]
        columns["sums"][:, 3] = array(right)
        return columns

    def _scores(self, total: np.ndarray, rows: np.ndarray) -> Scores:
        return super()._scores(total, rows) | {"next_sentence": divide(total[:, 3], rows)}

    def _logits(self, output: Any) -> Tensor:
        return output.prediction_logits


def mean_over_tokens(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """Cross-entropy over the labelled tokens, 0 without any; the others' logits, most of a batch, are left out.

    Args:
        logits: ``(batch, tokens, classes)``.
        labels: ``(batch, tokens)``.
        count: how many have a label; None waits for the device to know.

    """
    labelled = labels != IGNORED
    logits, targets = rows_where(labelled, count, logits, labels)
    return F.cross_entropy(logits, targets, reduction="sum") / labelled.sum().clamp_min(1)


class MaskedTokenScore(Metric):
    """``perplexity`` and top-1 ``accuracy`` over the tokens with a label, every token weighing the same."""

    full_state_update = False
    loss: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits ``(batch, tokens, vocabulary)`` and labels ``(batch, tokens)``."""
        masked = labels != IGNORED
        logits, labels = logits[masked].float(), labels[masked]
        self.loss += F.cross_entropy(logits, labels, reduction="sum").double()
        self.correct += (logits.argmax(-1) == labels).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        count = self.count.clamp_min(1)
        return {"perplexity": (self.loss / count).exp(), "accuracy": self.correct / count}
