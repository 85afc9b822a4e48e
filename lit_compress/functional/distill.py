"""Distillation losses: what a student is asked to imitate."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "attention_kl",
    "attention_mse",
    "hidden_mse",
    "logit_kl",
    "mean_logits",
    "relation_kl",
    "similarity_kl",
    "soft_cross_entropy",
]

# A score that gets no probability; finite, because a difference of infinities is not a number.
_NEVER = -1e9
# SparseML's guard against a teacher that is all zeros.
_POWER_EPSILON = 1e-6


def logit_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    r"""Kullback-Leibler divergence of softened distributions, :math:`T^2\,\mathrm{KL}(p_T \| p_S)`, mean per row.

    Hinton et al. 2015 (arXiv 1503.02531); the factor :math:`T^2` keeps the gradient's size independent of ``T``.
    The sum over classes is divided by the number of distributions (``batchmean``), never by the number of elements.

    Args:
        student: logits ``(..., classes)``.
        teacher: logits of the same shape; no gradient flows into it.
        temperature: ``T``, positive.
        mask: ``(...)``, nonzero for rows that count (``attention_mask`` for token logits); None counts all. Rows that
            do not count are left out before anything is computed: with a vocabulary of classes they are the memory.

    Returns:
        Scalar. Zero when no row counts.

    Example:
        >>> logit_kl(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), temperature=2.0).item()
        0.0

    """
    student, teacher = _counted(student, mask), _counted(teacher, mask)
    # In fp32 always: in half precision two distributions that are close can have a negative divergence.
    log_p_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_p_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    total = F.kl_div(log_p_student, log_p_teacher, reduction="sum", log_target=True)
    return temperature**2 * total / max(log_p_student[..., 0].numel(), 1)


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""Cross-entropy with the teacher's distribution, :math:`-p_T \log p_S`, mean over rows *and* classes.

    ROSITA (arXiv 2103.11367) and TinyBERT (arXiv 1909.10351) train their last stages with it. Its gradient is that of
    :func:`logit_kl` divided by the number of classes and by :math:`T^2`.

    Args:
        student: logits ``(..., classes)``.
        teacher: logits of the same shape; no gradient flows into it.
        temperature: divides both; 1 in ROSITA.
        mask: ``(...)``, nonzero for rows that count; None counts all.

    Returns:
        Scalar. Zero when no row counts.

    Example:
        >>> round(soft_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 4)  # log(2) / 2
        0.3466

    """
    student, teacher = _counted(student, mask), _counted(teacher, mask)
    log_p_student = F.log_softmax(student.float() / temperature, dim=-1)
    p_teacher = F.softmax(teacher.detach().float() / temperature, dim=-1)
    return -(p_teacher * log_p_student).sum() / max(log_p_student.numel(), 1)


def mean_logits(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Logits whose distribution at ``temperature`` is the mean of those of several teachers.

    Args:
        logits: of each teacher, all ``(..., classes)``.
        temperature: at which the distributions are averaged.

    Returns:
        ``(..., classes)``, fp32.

    Example:
        >>> both = mean_logits([torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()])
        >>> both.softmax(-1)
        tensor([0.7000, 0.3000])

    """
    if len(logits) == 1:
        return logits[0]
    softened = torch.stack([F.log_softmax(one.float() / temperature, dim=-1) for one in logits])
    # The mean of probabilities in log space: no probability is rounded to 0 on the way. A constant factor, here the
    # number of teachers, changes no distribution.
    return temperature * torch.logsumexp(softened, dim=0)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None, normalize: bool = False) -> Tensor:
    """Mean squared difference of hidden states over the unpadded tokens.

    Args:
        student: ``(batch, tokens, hidden)``.
        teacher: the same shape; no gradient flows into it.
        mask: ``(batch, tokens)``, nonzero for unpadded tokens; None counts all.
        normalize: divide by the teacher's mean square plus 1e-6 (SparseML's per-layer distillation): layers of
            different size then weigh the same.

    Returns:
        Scalar: mean over hidden dimensions, then over counted tokens.

    Example:
        >>> hidden_mse(torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.tensor([[1, 0]])).item()
        1.0

    """
    teacher = teacher.detach().float()
    error = _masked_mean((student.float() - teacher).square().mean(-1), mask)
    return error / (_masked_mean(teacher.square().mean(-1), mask) + _POWER_EPSILON) if normalize else error


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of attention probabilities over heads and pairs of unpadded tokens.

    Args:
        student: ``(batch, heads, tokens, tokens)``, rows are queries.
        teacher: the same shape; no gradient flows into it.
        mask: ``(batch, tokens)``, nonzero for unpadded tokens; None counts all.

    Returns:
        Scalar.

    Example:
        >>> attention_mse(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)).item()
        0.25

    """
    error = (student.float() - teacher.detach().float()).square().mean(1)
    return _masked_mean(error, None if mask is None else mask[:, :, None] * mask[:, None, :])


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Divergence of attention distributions, :math:`\mathrm{KL}(A_T \| A_S)`, mean over heads and counted queries.

    MiniLM (Wang et al. 2020, arXiv 2002.10957) has it for the last layer.

    Args:
        student: probabilities ``(batch, heads, tokens, tokens)``, rows are queries and sum to 1.
        teacher: the same shape; no gradient flows into it.
        mask: ``(batch, tokens)``, nonzero for unpadded tokens; None counts all.

    Returns:
        Scalar.

    Example:
        >>> attention_kl(torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0]]]])).item()  # log(2)
        0.6931471824645996

    """
    teacher, student = teacher.detach().float(), student.float()
    log_student = student.clamp_min(torch.finfo(torch.float32).tiny).log()
    return _masked_mean((torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1).mean(1), mask)


def relation_kl(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    r"""Divergence of self-attention relations :math:`\mathrm{softmax}(A A^\top / \sqrt{d_r})` (MiniLMv2, 2012.15828).

    ``A`` are queries, keys or values, all heads side by side, cut into ``heads`` parts of :math:`d_r` dimensions: two
    models of other widths and other numbers of attention heads have relations of one shape.

    Args:
        student: ``(batch, tokens, width)``.
        teacher: ``(batch, tokens, other width)``; no gradient flows into it.
        heads: relation heads; divides both widths.
        mask: ``(batch, tokens)``, nonzero for unpadded tokens: the others are neither rows nor columns of a
            relation. None counts all.

    Returns:
        Scalar: mean over heads and counted tokens.

    Example:
        >>> vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> relation_kl(vectors, torch.cat([vectors, vectors], dim=-1), heads=1).item() > 0
        True
        >>> relation_kl(vectors, vectors, heads=2).item()
        0.0

    """
    rows = F.kl_div(
        _log_relations(student, heads, mask),
        _log_relations(teacher.detach(), heads, mask),
        reduction="none",
        log_target=True,
    )
    return _masked_mean(rows.sum(-1).mean(1), mask)


def _log_relations(vectors: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """``(batch, tokens, width)`` to log-probabilities ``(batch, heads, tokens, tokens)``."""
    parts = vectors.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    with torch.autocast(parts.device.type, enabled=False):  # which makes products half precision again
        scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None, :] == 0, _NEVER)
    return F.log_softmax(scores, dim=-1)


def _counted(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else logits[mask.bool()]


def _masked_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean()
    mask = mask.to(rows.dtype)
    return (rows * mask).sum() / mask.sum().clamp_min(1.0)


def similarity_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""Divergence of how similar each text is to all others, :math:`\mathrm{KL}(p_T \| p_S)`, mean over the texts.

    Similarities are cosines, divided by the temperature; a text is not compared with itself. (Fang et al. 2021, arXiv
    2101.04731, equation 3, with the other texts of the batch in the place of a queue.)

    Args:
        student: vectors ``(texts, width)``.
        teacher: vectors ``(texts, any width)``; no gradient flows into it.
        temperature: positive.

    Returns:
        Scalar. Zero for fewer than three texts, which have one neighbour at most.

    Example:
        >>> vectors = torch.eye(4)
        >>> similarity_kl(vectors, 3 * vectors, temperature=0.1).item()
        0.0

    """
    if len(student) < 3:
        return student.sum() * 0
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    with torch.autocast(student.device.type, enabled=False):  # which makes products half precision again
        ours, theirs = (
            (unit @ unit.T / temperature).masked_fill(itself, _NEVER)
            for unit in (F.normalize(vectors.float(), dim=-1) for vectors in (student, teacher.detach()))
        )
    return F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
