"""Distillation terms: what a student's loss takes from its teacher, named entries of ``LitStudent.distillation``.

Here are the base and the terms that compare answers; those that look inside are in
:mod:`lit_compress.modules.feature_distillation`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_compress.errors import UserError
from lit_compress.functional.distill import logit_kl, mean_logits, soft_cross_entropy
from lit_compress.init_args import KeepsInitArgs
from lit_compress.tasks import IGNORED, Batch, MultiLabelTask
from lit_compress.tasks.batch import count_of, rows_where

__all__ = ["Distillation", "LogitDistillation", "label_weight", "logit_heads", "named_terms", "projection_to"]

_LOSSES = {"kl": logit_kl, "soft_cross_entropy": soft_cross_entropy}
_TOKENS = ("all", "attended", "masked")
# The logits of Hugging Face outputs: question answering, pretraining, everything else; vectors of texts.
_SPANS = ("start_logits", "end_logits")
_VECTORS = "sentence_embedding"
_HEADS = (_SPANS, ("prediction_logits", "seq_relationship_logits"), ("logits",), (_VECTORS,))
# Logit of a position that is not a candidate; finite, because a difference of infinities is not a number.
_NEVER = -1e9


class Distillation(KeepsInitArgs, nn.Module):
    """Base of all terms: subclass it, return a scalar from ``forward``, and name the class in the YAML.

    Args:
        weight: factor of the term in the loss; None is that of the class, 1 unless it says another.

    Attributes:
        hardness: fraction of the task loss that the term replaces, in [0, 1].
        teacher: name of the teacher it uses; None averages over all.
        needs_hidden_states: whether both models must return ``hidden_states``.
        needs_attentions: whether both models must return ``attentions``.
        needs_projections: student layer and teacher layer (1 is the first, -1 the last) whose queries, keys and values
            must be in ``projections`` of the outputs; None for none.

    """

    weight: float = 1.0
    hardness: float = 0.0
    teacher: str | None = None
    needs_hidden_states: bool = False
    needs_attentions: bool = False
    needs_projections: tuple[int, int] | None = None

    def __init__(self, weight: float | None = None) -> None:
        super().__init__()
        if weight is not None:
            self.weight = weight

    def prepare(self, student: Any, teachers: Sequence[Any]) -> None:
        """Make what depends on both models, for example a learned projection; called once, before training.

        Args:
            student: Hugging Face configuration of the student.
            teachers: those of the teachers that the term uses.

        """

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        """Loss term from both models' Hugging Face outputs and the batch they saw."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(student, teacher, batch)")

    def average(self, student: Any, teachers: Sequence[Any], batch: Batch) -> Tensor:
        """The term for several teachers: the mean over them, unless a subclass knows better."""
        return torch.stack([self(student, teacher, batch) for teacher in teachers]).mean()


def projection_to(student: int, teachers: Iterable[int]) -> nn.Linear:
    """A learned matrix from the student's width to that of the teachers.

    Raises:
        UserError: the teachers differ.

    """
    widths = {*teachers}
    if len(widths) > 1:
        raise UserError(
            f"distillation projection: the teachers are {sorted(widths)} wide; give the term one with `teacher`"
        )
    return nn.Linear(student, widths.pop(), bias=False)


class LogitDistillation(Distillation):
    """Softened logits: ``hardness * T^2 KL(teacher || student)``, and ``1 - hardness`` of the task loss.

    Hinton et al. 2015 (arXiv 1503.02531) in SparseML's parametrisation. Several heads: start and end of an answer are
    averaged, token and sentence logits of a pretraining model are added (Prune Once for All, arXiv 2111.05754). Labels
    that do not exclude each other are softened one by one.
    Several teachers: the mean of their softened distributions.

    Args:
        hardness: 0 is the labels alone, 1 the teacher alone.
        temperature: softens both distributions; 1 to 5.5 in the papers.
        loss: ``kl`` with the factor ``T^2``; ``soft_cross_entropy`` without, mean over the classes too (ROSITA).
        tokens: which positions of token logits (or candidates for an answer) count: ``attended`` is every one that is
            no padding, ``all`` includes padding (SparseML), ``masked`` those with a label (other than -100). None is
            ``attended``.
        teacher: name of the teacher to use; None averages over all.

    """

    def __init__(
        self,
        hardness: float = 0.5,
        temperature: float = 2.0,
        loss: Literal["kl", "soft_cross_entropy"] = "kl",
        tokens: Literal["all", "attended", "masked"] | None = None,
        teacher: str | None = None,
    ) -> None:
        super().__init__(hardness)
        if not 0 <= hardness <= 1:
            raise UserError(f"distillation hardness: {hardness} must be in [0, 1]")
        if not temperature > 0:
            raise UserError(f"distillation temperature: {temperature} must be above 0")
        if loss not in _LOSSES:
            raise UserError(f"distillation loss: {loss!r} must be one of {', '.join(_LOSSES)}")
        if tokens is not None and tokens not in _TOKENS:
            raise UserError(f"distillation tokens: {tokens!r} must be one of {', '.join(_TOKENS)}")
        self.hardness = hardness
        self.temperature, self.loss, self.tokens, self.teacher = temperature, loss, tokens, teacher
        self.multi_label = False

    def prepare(self, student: Any, teachers: Sequence[Any]) -> None:
        self.multi_label = student.problem_type == MultiLabelTask.problem_type

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        return self.average(student, [teacher], batch)

    def average(self, student: Any, teachers: Sequence[Any], batch: Batch) -> Tensor:
        heads = logit_heads(student)
        if _VECTORS in heads:
            raise UserError(
                "distillation: LogitDistillation compares logits, and sentence embeddings are none; take "
                "EmbeddingDistillation or SimilarityDistillation"
            )
        terms = [
            self._span(logits, [getattr(teacher, name) for teacher in teachers], batch)
            if name in _SPANS
            else self._classes(logits, [getattr(teacher, name) for teacher in teachers], batch, len(heads) == 1)
            for name, logits in heads.items()
        ]
        total = sum(terms[1:], terms[0])
        return total / 2 if heads.keys() == set(_SPANS) else total

    def _span(self, student: Tensor, teachers: list[Tensor], batch: Batch) -> Tensor:
        """Distributions over the positions: ``(batch, tokens)``."""
        if self.tokens == "masked":
            raise UserError("distillation tokens: 'masked' needs a label per token; for answers use attended or all")
        if self.tokens != "all":
            padding = batch.inputs["attention_mask"] == 0
            student, *teachers = (logits.float().masked_fill(padding, _NEVER) for logits in (student, *teachers))
        return self._loss(student, teachers)

    def _classes(self, student: Tensor, teachers: list[Tensor], batch: Batch, alone: bool) -> Tensor:
        """Distributions over classes: ``(batch, classes)``, or ``(batch, tokens, classes)``."""
        if student.ndim == 2:
            if self.tokens is not None and alone:
                raise UserError(
                    f"distillation tokens: {self.tokens!r} has no effect on one answer per text; leave it out"
                )
            if self.multi_label:  # each label is a choice between two: it is there, or it is not
                student, *teachers = (torch.stack([torch.zeros_like(x), x], -1) for x in (student, *teachers))
            elif student.shape[-1] == 1:
                # One output is a regression: a softmax over it is constant, its imitation is the squared error.
                return (student.float() - torch.stack(teachers).float().mean(0)).square().mean()
            return self._loss(student, teachers)
        # Tables of words that were filled up to a round number differ in what lies beyond the tokenizer.
        words = min(logits.shape[-1] for logits in (student, *teachers))
        student, *teachers = (logits[..., :words] for logits in (student, *teachers))
        if self.tokens == "all":
            return self._loss(student, teachers)
        if self.tokens == "masked":
            labels = batch.targets["labels"]
            mask, count = labels != IGNORED, count_of(batch, "labelled", labels)
        else:
            mask = batch.inputs["attention_mask"]
            count = count_of(batch, "attended", mask)
        # Before the teachers are averaged, too: rows of a whole vocabulary are large.
        student, *teachers = rows_where(mask, count, student, *teachers)
        return self._loss(student, teachers)

    def _loss(self, student: Tensor, teachers: list[Tensor]) -> Tensor:
        return _LOSSES[self.loss](student, mean_logits(teachers, self.temperature), self.temperature)


def logit_heads(output: Any) -> dict[str, Tensor]:
    """The logits of a Hugging Face output, or its vectors of texts, by the names it gives them.

    Raises:
        UserError: it has none that are known.

    """
    for names in _HEADS:
        found = {name: logits for name in names if (logits := getattr(output, name, None)) is not None}
        if len(found) == len(names):
            return found
    raise UserError(f"distillation: the student's {type(output).__name__} has no logits that a teacher could shape")


def label_weight(terms: Sequence[Distillation]) -> float:
    """Factor of the task loss: what the terms' hardness leaves of it.

    Raises:
        UserError: the terms replace more than all of it.

    """
    total = sum(term.hardness for term in terms)
    if total > 1 + 1e-9:  # shares such as 0.1 and 0.9 add up to a rounding error more
        raise UserError(f"model.distillation: the hardness of all terms adds up to {total}; at most 1 is allowed")
    return max(1.0 - total, 0.0)


def named_terms(terms: Mapping[str, nn.Module], key: str, taken: Iterable[str] = ()) -> nn.ModuleDict:
    """The terms as submodules, once their names are known to be usable as such and free.

    Raises:
        UserError: a name is taken by another part of the loss, has a dot, or is an attribute of every module.

    """
    for name in terms:
        if name in {"loss", "task", *taken}:
            raise UserError(f"{key}: the name {name!r} is taken; choose another")
        if "." in name or not name or hasattr(nn.ModuleDict(), name):
            raise UserError(f"{key}: {name!r} cannot be a name; choose another, without dots")
    return nn.ModuleDict(terms)
