"""Distillation terms of sentence embeddings: the vectors themselves, and how similar the texts of a batch are."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_compress.errors import UserError
from lit_compress.functional.distill import similarity_kl
from lit_compress.modules.distillation import Distillation, projection_to
from lit_compress.sentence_settings import vector_width
from lit_compress.tasks import Batch

__all__ = ["EmbeddingDistillation", "SimilarityDistillation"]


class EmbeddingDistillation(Distillation):
    """The vector of each text: one minus the cosine with the teacher's, or the squared error.

    Reimers and Gurevych 2020 (arXiv 2004.09813), with the squared error. It needs no labels.

    Args:
        weight: factor of the term.
        loss: ``cosine``, mean over the texts; ``mse``, mean over texts and dimensions.
        projection: a learned matrix from the student's width to the teacher's; it is trained with the student and is no
            part of what is exported.
        teacher: name of the teacher to use; None averages over all.

    """

    def __init__(
        self,
        weight: float = 1.0,
        loss: Literal["cosine", "mse"] = "cosine",
        projection: bool = False,
        teacher: str | None = None,
    ) -> None:
        super().__init__(weight)
        if loss not in ("cosine", "mse"):
            raise UserError(f"distillation loss: {loss!r} must be one of cosine, mse")
        self.loss, self.project, self.teacher = loss, projection, teacher
        self.projection: nn.Linear | None = None

    def prepare(self, student: Any, teachers: Sequence[Any]) -> None:
        ours, theirs = vector_width(student), [vector_width(teacher) for teacher in teachers]
        if self.project:
            self.projection = projection_to(ours, theirs)
            return
        if width := next((each for each in theirs if each != ours), None):
            raise UserError(
                f"distillation embedding: the student is {ours} wide and the teacher {width}; "
                "set projection to true, or use SimilarityDistillation"
            )

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        ours, theirs = _vector(student, "student"), _vector(teacher, "teacher").detach()
        if self.projection is not None:
            ours = self.projection(ours)
        if self.loss == "mse":
            return F.mse_loss(ours, theirs)
        return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()


class SimilarityDistillation(Distillation):
    """How similar each text of a batch is to the others, as a distribution: the divergence from the teacher's.

    Fang et al. 2021 (SEED, arXiv 2101.04731) without its queue. It needs neither labels nor equal widths, and large
    batches.

    Args:
        weight: factor of the term.
        temperature: divides the cosines of both; the smaller, the more the nearest texts count.
        teacher: name of the teacher to use; None averages over all.

    """

    def __init__(self, weight: float = 1.0, temperature: float = 0.05, teacher: str | None = None) -> None:
        super().__init__(weight)
        if not temperature > 0:
            raise UserError(f"distillation temperature: {temperature} must be above 0")
        self.temperature, self.teacher = temperature, teacher

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        return similarity_kl(_vector(student, "student"), _vector(teacher, "teacher"), self.temperature)


def _vector(output: Any, who: str) -> Tensor:
    vectors = getattr(output, "sentence_embedding", None)
    if not isinstance(vectors, torch.Tensor):
        raise UserError(f"distillation: the {who} gives no vectors of texts; use data for sentence embeddings")
    return vectors.float()
