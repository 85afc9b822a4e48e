"""Distillation losses: what a student is asked to imitate."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["hidden_mse", "logit_kl"]


def logit_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    r"""Kullback-Leibler divergence of softened distributions, :math:`T^2\,\mathrm{KL}(p_T \| p_S)`, mean per row.

    Hinton et al. 2015 (arXiv 1503.02531); the factor :math:`T^2` keeps the gradient's size independent of ``T``.
    The sum over classes is divided by the number of distributions (``batchmean``), never by the number of elements.

    Args:
        student: logits ``(..., classes)``.
        teacher: logits of the same shape; no gradient flows into it.
        temperature: ``T``, positive.
        mask: ``(...)``, nonzero for rows that count (``attention_mask`` for token logits); None counts all.

    Returns:
        Scalar. Zero when no row counts.

    Example:
        >>> logit_kl(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), temperature=2.0).item()
        0.0

    """
    # In fp32 always: in half precision two distributions that are close can have a negative divergence.
    log_p_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_p_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    rows = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _masked_mean(rows, mask)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden states over the tokens that count.

    Args:
        student: ``(batch, tokens, hidden)``.
        teacher: the same shape; no gradient flows into it.
        mask: ``(batch, tokens)``, nonzero for tokens that count; None counts all.

    Returns:
        Scalar: mean over hidden dimensions, then over counted tokens.

    Example:
        >>> hidden_mse(torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.tensor([[1, 0]])).item()
        1.0

    """
    return _masked_mean((student.float() - teacher.detach().float()).square().mean(-1), mask)


def _masked_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean()
    mask = mask.to(rows.dtype)
    return (rows * mask).sum() / mask.sum().clamp_min(1.0)
