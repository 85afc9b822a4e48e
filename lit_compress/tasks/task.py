"""What a head is for. A task is one class; whatever depends on the task asks it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.init_args import KeepsInitArgs
from lit_compress.sentence_settings import CROSS_ENCODER_KEY, SENTENCE_KEY
from lit_compress.tasks.batch import Batch
from lit_compress.tasks.outcomes import Outcomes

__all__ = ["Task", "weights_like"]


class Task(KeepsInitArgs):
    """A head, its loss and metrics, and what becomes of its answers; subclass it for a task of your own.

    Loading asks it for the head, training for :meth:`loss`, evaluation for :meth:`metrics`, ``predict`` for
    :meth:`predictions` and, to write files, :meth:`schema` and :meth:`record`, ``report`` for :meth:`outcome_columns`
    and :meth:`outcomes`. Outputs are those of Hugging Face models, batches those of the data module whose ``task`` it
    is.

    Args:
        labels: names of classes or tags in the order of their ids; None where there are none.

    Attributes:
        name: in reports and errors.
        head: the class of Transformers that loads a model with this head.
        architectures: ends of the names of the models whose files have the head.
        has_classes: whether the outputs of the head have names.
        problem_type: what the configuration of a model says about its loss, where several tasks share a head.
        pipeline_tag: the task's name on the Hugging Face hub.
        data_module: the class that reads files for it, where a model folder is all there is. An import path, because
            data modules import their tasks.
        data_options: options that this class needs for the task.
        lower_is_better: metrics of which less is better.
        class_metric: which metric of each class a chart shows.
        outputs: how many values the head gives, a class each; None where neither data nor task decides about that.

    """

    name: ClassVar[str]
    head: ClassVar[Any]
    architectures: ClassVar[tuple[str, ...]]
    has_classes: ClassVar[bool] = False
    problem_type: ClassVar[str | None] = None
    pipeline_tag: ClassVar[str | None] = None
    data_module: ClassVar[str] = "lit_compress.data.TextClassification"
    data_options: ClassVar[Mapping[str, Any]] = {}
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    class_metric: ClassVar[str] = "f1"
    outputs: int | None = None

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        if self.has_classes and not labels:
            raise UserError(f"model.labels: a {self.name} needs the names of its labels; the data module has none")
        self.labels = list(labels) if self.has_classes and labels else None
        if self.labels is not None:
            self.outputs = len(self.labels)

    # --- the head

    @classmethod
    def has_head(cls, config: PretrainedConfig) -> bool:
        """Whether the files of a model with this configuration have the head."""
        return any(name.endswith(cls.architectures) for name in config.architectures or [])

    @classmethod
    def can_teach(cls, config: PretrainedConfig) -> bool:
        """Whether a model with this configuration, which names a head, gives what a teacher of this task has to."""
        return cls.has_head(config)

    @classmethod
    def reads(cls, config: PretrainedConfig) -> bool:
        """Whether a model with this configuration was made for this task, as far as it says."""
        return cls.has_head(config)

    @classmethod
    def options_for(cls, config: PretrainedConfig) -> Mapping[str, Any]:
        """Options of the data module, in addition to :attr:`data_options`, that follow from a model."""
        return {}

    def configure(self, config: PretrainedConfig) -> None:
        """Set what the head needs in the configuration that a model is about to be loaded with."""
        # Also where it is None: the source may have been a classifier.
        config.problem_type = self.problem_type  # type: ignore[assignment]  (one of Transformers' three)
        for key in (SENTENCE_KEY, CROSS_ENCODER_KEY):  # the same, for a model of vectors or a reranker
            vars(config).pop(key, None)

    def check_head(self, model: PreTrainedModel, key: str) -> None:
        """Raise a ``UserError`` that begins with the key when the head of a model is not what the task needs."""

    def may_be_new(self, weight: str, config: PretrainedConfig) -> bool:
        """Whether a weight of the head that a source lacks may start at random: all of a head it never had."""
        return not self.has_head(config)

    # --- training and evaluation

    @property
    def needs_teacher(self) -> bool:
        """Whether the data says nothing about what is right, so that a teacher must."""
        return False

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Scalar training loss."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(output, batch)")

    def count(self, batch: Batch) -> int:
        """How many things (rows, tokens) the loss of a batch is the mean of."""
        return batch.rows

    def metrics(self, prefix: str) -> MetricCollection:
        """Fresh metrics for :meth:`update`; the first is the score that tables show.

        A collection computes its metrics by alphabet; one metric that computes several has them in its own order.
        """
        raise NotImplementedError(f"{type(self).__name__} must define metrics(prefix)")

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        """Add a batch to metrics made by :meth:`metrics`."""
        raise NotImplementedError(f"{type(self).__name__} must define update(metrics, output, batch)")

    def points(self, metric: str) -> float | None:
        """What a metric is multiplied by to be in points of a hundred; None where that has no meaning."""
        return 100.0

    # --- predictions

    def answers(self, logits: Tensor) -> Tensor:
        """What a head's logits say, the last axis of which are classes or positions: the largest of them."""
        return logits.argmax(-1)

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Which answers of two heads are the same."""
        return self.answers(ours) == self.answers(theirs)

    def predictions(self, output: Any, batch: Batch) -> Any:
        """A tensor or a list with a prediction for each example of a batch, which need not have targets."""
        raise NotImplementedError(f"{type(self).__name__} must define predictions(output, batch)")

    def schema(self) -> list[tuple[str, pyarrow.DataType]] | None:
        """Columns of a file of predictions after the number of the row; None where they are not written to files."""
        return None

    def record(self, predictions: list[Any]) -> dict[str, Any]:
        """The columns of one row of the file, from the predictions of its examples: several windows, or none."""
        raise NotImplementedError(f"{type(self).__name__} must define record(predictions)")

    def note(self) -> str | None:
        """How outputs are read, for the model card; None where it is as usual."""
        return None

    # --- the report

    def outcome_columns(self, output: Any, batch: Batch) -> dict[str, np.ndarray | list[Any]]:
        """Columns that :meth:`outcomes` needs of a batch, arrays or lists; logits are too large to keep."""
        raise NotImplementedError(f"{type(self).__name__} must define outcome_columns(output, batch)")

    def outcomes(self, columns: dict[str, Any]) -> Outcomes:
        """What the answers were, from the joined columns of :meth:`outcome_columns` and ``lengths`` in tokens."""
        raise NotImplementedError(f"{type(self).__name__} must define outcomes(columns)")


def weights_like(weights: Sequence[float] | None, like: Tensor) -> Tensor | None:
    """Weights ``(classes,)`` with device and type of a tensor, copied there once and not at every step."""
    return None if weights is None else _on_device(tuple(weights), like.device, like.dtype)


@lru_cache(maxsize=16)
def _on_device(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # asked for in a validation first: its tensors cannot be trained with
        return torch.tensor(numbers, device=device, dtype=dtype)
