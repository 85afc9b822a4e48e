"""A distillation term of rerankers: how much better the relevant document is than each of the others."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lit_compress.errors import UserError
from lit_compress.modules.distillation import Distillation, logit_heads
from lit_compress.tasks import Batch

__all__ = ["MarginDistillation"]


class MarginDistillation(Distillation):
    """Squared error of the margins between the first document of an example and its others.

    Margin-MSE (Hofstätter et al. 2020, arXiv 2010.02666). It needs lists of documents, not single ones with scores.

    Args:
        weight: factor of the term.
        teacher: name of the teacher to use; None averages over all.

    """

    def __init__(self, weight: float = 1.0, teacher: str | None = None) -> None:
        super().__init__(weight)
        self.teacher = teacher

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        documents = batch.meta.get("texts", 1)
        if documents < 2:
            raise UserError(
                "distillation margin: an example has one document and no margin; give data.text_columns of a relevant "
                "document and others, without data.label_column, or use LogitDistillation"
            )
        ours, theirs = (_margins(output, documents) for output in (student, teacher))
        return F.mse_loss(ours, theirs)


def _margins(output: Any, documents: int) -> Tensor:
    """Logits of the first document minus those of each other: ``(documents - 1, examples)``, in fp32."""
    (logits,) = logit_heads(output).values()
    scores = logits.float().squeeze(-1).unflatten(0, (documents, -1))
    return scores[:1] - scores[1:]
