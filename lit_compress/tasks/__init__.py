"""Tasks: what a head is for, one file each."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from lit_compress.errors import UserError
from lit_compress.init_args import made_of
from lit_compress.tasks.batch import IGNORED, Batch
from lit_compress.tasks.classification import ClassificationTask
from lit_compress.tasks.embedding import EmbeddingTask
from lit_compress.tasks.masked_words import MaskedWordsTask, PretrainingTask
from lit_compress.tasks.multi_label import MultiLabelTask
from lit_compress.tasks.outcomes import Outcomes
from lit_compress.tasks.question_answering import QuestionAnsweringTask
from lit_compress.tasks.regression import RegressionTask
from lit_compress.tasks.reranking import RerankingTask
from lit_compress.tasks.task import Task
from lit_compress.tasks.token_classification import TokenClassificationTask

__all__ = [
    "IGNORED",
    "TASKS",
    "Batch",
    "ClassificationTask",
    "EmbeddingTask",
    "MaskedWordsTask",
    "MultiLabelTask",
    "Outcomes",
    "PretrainingTask",
    "QuestionAnsweringTask",
    "RegressionTask",
    "RerankingTask",
    "Task",
    "TokenClassificationTask",
    "make_task",
    "task_class_of",
]

TASKS: tuple[type[Task], ...] = (
    ClassificationTask,
    MultiLabelTask,
    RerankingTask,  # before a regression, which reads any single output
    RegressionTask,
    TokenClassificationTask,
    QuestionAnsweringTask,
    PretrainingTask,  # before masked words, which its models can do, too
    MaskedWordsTask,
    EmbeddingTask,
)
"""Those that come with the package, which a name or a model's configuration may stand for."""


def task_class_of(config: PretrainedConfig) -> type[Task] | None:
    """The task of the package that a model was made for, by its architecture; None for another one's."""
    return next((kind for kind in TASKS if kind.reads(config)), None)


def make_task(task: Task | str | Mapping[str, Any] | None, labels: Sequence[str] | None = None) -> Task:
    """A task as it is, one of the package by its name, or one that a checkpoint says the settings of.

    Args:
        task: a task; a name: ``classification``, ``multi_label_classification``, ``regression``,
            ``token_classification``, ``question_answering``, ``masked_lm``, ``pretraining`` (masked words and next
            sentence) or ``embedding``; ``class_path`` and ``init_args`` of one; None is a classification with labels,
            a regression without.
        labels: names of classes or tags in the order of their ids; for a name.

    Raises:
        UserError: no such task, or one that has no meaning without labels.

    """
    if isinstance(task, Task):
        return task
    if isinstance(task, Mapping):
        return made_of(task, Task, "model.task")
    name = task or ("classification" if labels else "regression")
    kind = next((kind for kind in TASKS if kind.name == name), None)
    if kind is None:
        raise UserError(f"model.task: {name!r} must be a Task or one of {', '.join(kind.name for kind in TASKS)}")
    return kind(labels) if kind.has_classes else kind()
