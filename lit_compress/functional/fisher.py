"""Block-diagonal inverse of the empirical Fisher matrix, and which weights it says can go (oBERT, arXiv 2203.07259).

The Fisher matrix ``F = damping * I + sum(g g^T) / m`` over ``m`` gradients stands for the Hessian of the loss. Of a
weight tensor only blocks of ``B`` consecutive entries (row by row, the last block filled up with zeros) are kept on its
diagonal, as their inverse, in one tensor ``(blocks, B, B)`` of fp32.

Bytes needed while gradients are added, see :func:`inverse_bytes`::

    4 * blocks * B * (B + k)                      the inverse, and k gradients that are added together
    4 * min(blocks, chunk) * (2 * k * B + 3 * k * k)    workspace
"""

import torch
from torch import Tensor

__all__ = [
    "GRADIENTS_PER_UPDATE",
    "add_gradients_",
    "compensate",
    "damped_inverse",
    "inverse_bytes",
    "saliency",
    "to_blocks",
]

# Gradients that one update adds: measured, more of them save no more time and need more memory.
GRADIENTS_PER_UPDATE = 8

# Blocks that one update works on at a time. On a CPU fewer are no faster on one thread, and slower on several that
# have to wait for each other; a GPU wants to be filled.
_CHUNK = {"cpu": 4096}
_GPU_CHUNK = 65536


def to_blocks(tensor: Tensor, block_size: int) -> Tensor:
    """Entries row by row in blocks ``(blocks, block_size)`` of fp32 or wider, the last one filled up with zeros.

    Example:
        >>> to_blocks(torch.tensor([[1.0, 2.0, 3.0]]), 2).tolist()
        [[1.0, 2.0], [3.0, 0.0]]

    """
    flat = tensor.reshape(-1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)


def damped_inverse(
    numel: int,
    block_size: int,
    damping: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The inverse before any gradient, ``I / damping``.

    Args:
        numel: entries of the weight tensor.
        block_size: B.
        damping: lambda, above 0.
        device: of the result.
        dtype: of the result.

    Returns:
        ``(blocks, block_size, block_size)``.

    Example:
        >>> damped_inverse(3, 2, damping=0.5).tolist()
        [[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 2.0]]]

    """
    inverse = torch.zeros(-(-numel // block_size), block_size, block_size, device=device, dtype=dtype)
    inverse.diagonal(dim1=1, dim2=2).fill_(1 / damping)
    return inverse


@torch.no_grad()
def add_gradients_(inverse: Tensor, gradients: Tensor, count: int, chunk: int | None = None) -> Tensor:
    """Add gradients to a Fisher matrix whose inverse is given, in place (oBERT, equation 6; exact).

    For one gradient this is the Sherman-Morrison formula ``F^-1 - (F^-1 g)(F^-1 g)^T / (m + g^T F^-1 g)``. For ``k`` of
    them, rows of ``G``, it is Woodbury's: ``F^-1 - P^T (m I + P G^T)^-1 P`` with ``P = G F^-1``, the same result for
    one pass over the inverse instead of ``k``.

    Args:
        inverse: ``(blocks, B, B)``; changed.
        gradients: ``(blocks, k, B)``.
        count: m, the number of all gradients that will be added, by this call and others.
        chunk: blocks worked on at a time; None chooses by device.

    Returns:
        ``inverse``.

    Example:
        >>> inverse = damped_inverse(2, block_size=2, damping=1.0)
        >>> add_gradients_(inverse, torch.tensor([[[1.0, 1.0]]]), count=1)
        tensor([[[ 0.6667, -0.3333],
                 [-0.3333,  0.6667]]])

    """
    chunk = chunk or _CHUNK.get(inverse.device.type, _GPU_CHUNK)
    identity = torch.eye(gradients.shape[1], device=inverse.device, dtype=inverse.dtype)
    for part, rows in zip(inverse.split(chunk), gradients.split(chunk), strict=True):
        projected = rows @ part
        inner = torch.baddbmm(identity, projected, rows.mT, beta=count)
        # Half of the update on either side: what is subtracted has no negative direction, whatever the rounding.
        factor = torch.linalg.cholesky_ex(inner).L
        half = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False) @ projected
        part.baddbmm_(half.mT, half, alpha=-1)
    return inverse


def saliency(weight: Tensor, inverse: Tensor, group: int = 1) -> Tensor:
    """How much the loss would rise if a weight, or a group of weights, were pruned and the others made up for it.

    ``w_q^2 / (2 [F^-1]_qq)`` for single weights (oBERT, equation 4); ``w_Q^T ([F^-1]_QQ)^-1 w_Q / 2`` for groups of
    consecutive weights, repeated for each of them.

    Args:
        weight: any shape.
        inverse: ``(blocks, B, B)`` of it.
        group: weights of a group; divides B and the last dimension.

    Returns:
        Scores of the weight's shape.

    Example:
        >>> saliency(torch.tensor([1.0, 3.0]), 2 * torch.eye(2).unsqueeze(0)).tolist()
        [0.25, 2.25]

    """
    blocks = to_blocks(weight, inverse.shape[-1])
    terms = (blocks * _solve_groups(blocks, inverse, group)).reshape(len(blocks), -1, group)
    scores = terms.sum(-1, keepdim=True).expand_as(terms) / 2
    return scores.reshape(-1)[: weight.numel()].reshape(weight.shape)


def compensate(weight: Tensor, inverse: Tensor, pruned: Tensor, group: int = 1) -> Tensor:
    """The weight after pruning: what is pruned is 0, the rest of its block makes up for it.

    ``w - F^-1 x``, where ``x`` holds ``([F^-1]_QQ)^-1 w_Q`` of every pruned group (oBERT, equation 4). Inside a block
    the contributions of the groups are summed; what they do to each other is left out.

    Args:
        weight: any shape.
        inverse: ``(blocks, B, B)`` of it.
        pruned: bool, of the weight's shape, True for what is pruned now; whole groups.
        group: weights of a group.

    Returns:
        New values, of the weight's shape and type.

    Example:
        >>> inverse = torch.tensor([[[2.0, -1.0], [-1.0, 2.0]]])
        >>> compensate(torch.tensor([1.0, 3.0]), inverse, torch.tensor([True, False])).tolist()
        [0.0, 3.5]

    """
    blocks, gone = to_blocks(weight, inverse.shape[-1]), to_blocks(pruned, inverse.shape[-1])
    solved = _solve_groups(blocks, inverse, group) * gone
    moved = torch.baddbmm(blocks.unsqueeze(-1), inverse, solved.unsqueeze(-1), alpha=-1)
    kept = moved.reshape(-1)[: weight.numel()].reshape(weight.shape).masked_fill(pruned, 0.0)
    return kept.to(weight.dtype)


def inverse_bytes(
    numel: int, block_size: int, gradients: int = GRADIENTS_PER_UPDATE, device: str = "cpu", chunk: int | None = None
) -> int:
    """Bytes for one tensor's inverse while gradients are added: the formula at the top.

    Args:
        numel: entries of the weight tensor.
        block_size: B.
        gradients: k, added together.
        device: type of the device, which chooses the chunk.
        chunk: as in :func:`add_gradients_`.

    Example:
        >>> f"{inverse_bytes(84_934_656, block_size=50) / 2**30:.1f} GiB for the encoder of BERT-base"
        '18.4 GiB for the encoder of BERT-base'

    """
    blocks = -(-numel // block_size)
    chunk = min(blocks, chunk or _CHUNK.get(device, _GPU_CHUNK))
    workspace = chunk * (2 * gradients * block_size + 3 * gradients * gradients)
    return 4 * (blocks * block_size * (block_size + gradients) + workspace)


def _solve_groups(blocks: Tensor, inverse: Tensor, group: int) -> Tensor:
    """``([F^-1]_QQ)^-1 w_Q`` of every group, ``(blocks, B)``; the type's epsilon keeps a zero from dividing."""
    epsilon = torch.finfo(inverse.dtype).eps
    count, size = blocks.shape
    if group == 1:
        return blocks / (inverse.diagonal(dim1=1, dim2=2) + epsilon)
    squares = inverse.reshape(count, size // group, group, size // group, group)
    squares = squares.diagonal(dim1=1, dim2=3).movedim(-1, 1)
    damped = squares + epsilon * torch.eye(group, device=inverse.device, dtype=inverse.dtype)
    return torch.linalg.solve(damped, blocks.reshape(count, -1, group)).reshape(count, size)
