"""What a head is trained for: its loss, its metrics, and what it predicts."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from lit_compress.errors import UserError
from lit_compress.modules.metrics import IGNORED, AnswerScore, ClassScore, EntityScore, MaskedTokenScore

__all__ = [
    "Classification",
    "MaskedLanguageModel",
    "Pretraining",
    "QuestionAnswering",
    "Regression",
    "Task",
    "TokenClassification",
    "make_task",
]

Batch = dict[str, Any]


class Task(Protocol):
    """A loss and the metrics that judge it, from a Hugging Face output and the batch that it answers."""

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Scalar training loss."""
        ...

    def count(self, batch: Batch) -> int:
        """How many things (rows, tokens) the loss of a batch is the mean of."""
        ...

    def metrics(self, prefix: str) -> MetricCollection:
        """Fresh metrics for :meth:`update`."""
        ...

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        """Add a batch to metrics made by :meth:`metrics`."""
        ...

    def predictions(self, output: Any, batch: Batch) -> Any:
        """What ``predict`` gives for a batch, which need not have labels."""
        ...


def make_task(name: str | None, labels: Sequence[str] | None) -> Task:
    """The task of a data module.

    Args:
        name: ``classification``, ``regression``, ``token_classification``, ``question_answering``, ``masked_lm`` or
            ``pretraining`` (masked words and next sentence); None is a classification with labels and a regression
            without.
        labels: names of classes or tags in the order of their ids.

    Raises:
        UserError: no such task, or one that has no meaning without labels.

    """
    name = name or ("classification" if labels else "regression")
    if name in ("classification", "token_classification"):
        if not labels:
            raise UserError(f"model.labels: a {name} needs the names of its labels; the data module has none")
        return Classification(len(labels)) if name == "classification" else TokenClassification(labels)
    tasks = {
        "regression": Regression,
        "question_answering": QuestionAnswering,
        "masked_lm": MaskedLanguageModel,
        "pretraining": Pretraining,
    }
    if name not in tasks:
        known = ["classification", "token_classification", *tasks]
        raise UserError(f"model.task: {name!r} must be one of {', '.join(known)}")
    return tasks[name]()


class Classification:
    """One of several classes: cross-entropy; accuracy, F1 and Matthews correlation; predicts probabilities."""

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(output.logits, batch["labels"])

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        # float32 also under bf16, where different logits have equal probabilities.
        return output.logits.float().softmax(-1)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(self.predictions(output, batch).argmax(-1), batch["labels"])

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"classes": ClassScore(self.num_labels)}, prefix=prefix)


class Regression:
    """One number: mean squared error; Pearson and Spearman correlation (GLUE's STS-B); predicts values."""

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return F.mse_loss(output.logits.squeeze(-1), batch["labels"])

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        # float32 also under bf16: the correlations are computed from sums that half precision cannot hold.
        return output.logits.squeeze(-1).float()

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(self.predictions(output, batch).double(), batch["labels"].double())

    def metrics(self, prefix: str) -> MetricCollection:
        # float64: of predictions that are nearly the same the correlation's fourth digit is wrong in float32.
        pearson = torchmetrics.PearsonCorrCoef().set_dtype(torch.float64)
        return MetricCollection({"pearson": pearson, "spearman": torchmetrics.SpearmanCorrCoef()}, prefix=prefix)


class TokenClassification:
    """A tag per word: cross-entropy over the first token of each word; entity and tag scores; predicts tags.

    A prediction is, for each row, ``{"sentence": its number, "first_word": of the row, "tags": [...]}``.

    Args:
        labels: tags in the order of their ids.

    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return _mean_over_tokens(output.logits, batch["labels"])

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def predictions(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        rows = zip(output.logits.argmax(-1), batch["word_starts"], batch["examples"], strict=True)
        return [
            {"sentence": example["sentence"], "first_word": example["first_word"]}
            | {"tags": [self.labels[tag] for tag in tags[starts].tolist()]}
            for tags, starts, example in rows
        ]

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(output.logits.argmax(-1), batch)

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"entities": EntityScore(self.labels)}, prefix=prefix)


class QuestionAnswering:
    """A span of a context: mean of the cross-entropies of start and end; SQuAD's exact match and F1; predicts texts.

    Positions outside a row's tokens do not count, as in Hugging Face. A prediction is, for each window,
    ``{"question": id, "text", "start", "end", "score", "null": score of no answer}``; start and end are characters of
    the context, the end is the one after the last.
    """

    def loss(self, output: Any, batch: Batch) -> Tensor:
        ends = ((output.start_logits, batch["start_positions"]), (output.end_logits, batch["end_positions"]))
        return sum(self._one_end(logits, positions) for logits, positions in ends) / 2  # type: ignore[return-value]

    @staticmethod
    def _one_end(logits: Tensor, positions: Tensor) -> Tensor:
        ignored = logits.shape[1]
        positions = positions.clamp(0, ignored)
        total = F.cross_entropy(logits, positions, ignore_index=ignored, reduction="sum")
        return total / (positions != ignored).sum().clamp_min(1)

    def count(self, batch: Batch) -> int:
        return int((batch["start_positions"] < batch["input_ids"].shape[1]).sum())

    def predictions(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        windows = AnswerScore().best_of_windows(output.start_logits, output.end_logits, batch)
        return [
            {name: window[name] for name in ("question", "text", "start", "end", "score", "null")} for window in windows
        ]

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics.update(output.start_logits, output.end_logits, batch)

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"answers": AnswerScore()}, prefix=prefix)


class MaskedLanguageModel:
    """Masked words: cross-entropy over the masked tokens; perplexity and top-1 accuracy; predicts token ids."""

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return _mean_over_tokens(self._logits(output), batch["labels"])

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def predictions(self, output: Any, batch: Batch) -> Tensor:
        return self._logits(output).argmax(-1)

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        metrics["words"].update(self._logits(output), batch["labels"])

    def metrics(self, prefix: str) -> MetricCollection:
        return MetricCollection({"words": MaskedTokenScore()}, prefix=prefix)

    def _logits(self, output: Any) -> Tensor:
        return output.logits


class Pretraining(MaskedLanguageModel):
    """Masked words, and whether the second segment follows the first (BERT): the sum of both cross-entropies."""

    def loss(self, output: Any, batch: Batch) -> Tensor:
        follows = F.cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
        return super().loss(output, batch) + follows

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        super().update(metrics, output, batch)
        metrics["next_sentence"].update(output.seq_relationship_logits.argmax(-1), batch["next_sentence_label"])

    def metrics(self, prefix: str) -> MetricCollection:
        accuracy = {"next_sentence": torchmetrics.Accuracy(task="binary")}
        return MetricCollection({"words": MaskedTokenScore(), **accuracy}, prefix=prefix, compute_groups=False)

    def _logits(self, output: Any) -> Tensor:
        return output.prediction_logits


def _mean_over_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the labelled tokens, 0 without any; the others' logits, most of a batch, are left out."""
    counted = labels != IGNORED
    total = F.cross_entropy(logits[counted], labels[counted], reduction="sum")
    return total / counted.sum().clamp_min(1)
