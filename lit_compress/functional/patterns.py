"""Patterns of pruned weights, read from a word such as ``2:4``: what goes together, and which masks that makes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from lit_compress.functional import masks

__all__ = ["BalancedBlocks", "NOfM", "Pattern", "Scope", "parse_pattern", "wrong_option"]

Scope = Literal["layer", "global", "output"]


@dataclass(frozen=True)
class Pattern:
    """Blocks of ``rows`` outputs by ``columns`` inputs, anywhere; of one weight each: unstructured.

    Attributes:
        everywhere: whether equally many are kept in every part of a matrix, so that layers cannot share a threshold.

    """

    text: str = "unstructured"
    rows: int = 1
    columns: int = 1
    everywhere: ClassVar[bool] = False

    def mask(self, scores: Tensor, sparsity: float) -> Tensor:
        """The bool mask of one matrix, True keeps.

        Args:
            scores: ``(out_features, in_features)``; low ones go.
            sparsity: fraction of blocks, or of weights, that go.

        """
        if self.rows == self.columns == 1:
            return masks.unstructured_mask(scores, sparsity)
        return masks.block_mask(scores, sparsity, (self.rows, self.columns))

    def masks(self, scores: Sequence[Tensor], sparsity: float, scope: Scope = "layer") -> list[Tensor]:
        """The masks of several matrices.

        Args:
            scores: of each matrix.
            sparsity: fraction that goes: of each matrix (``layer``), of all together (``global``), or of each output,
                or row of blocks (``output``).
            scope: which of them.

        """
        if scope == "layer":
            return [self.mask(score, sparsity) for score in scores]
        means = [self._means(score) for score in scores]
        if scope == "global":
            return [self._spread(mask) for mask in masks.global_masks(means, sparsity)]
        kept = [(mean, mean.shape[1] - round(sparsity * mean.shape[1])) for mean in means]
        return [self._spread(masks.nm_mask(mean, keep, mean.shape[1])) for mean, keep in kept]

    def why_not(self, out_features: int, in_features: int) -> str | None:
        """Why a matrix cannot be pruned in this pattern; None when it can."""
        if out_features % self.rows or in_features % self.columns:
            return f"does not divide {out_features} x {in_features}"
        return None

    def _means(self, scores: Tensor) -> Tensor:
        return scores if self.rows == self.columns == 1 else masks.block_means(scores, (self.rows, self.columns))

    def _spread(self, mask: Tensor) -> Tensor:
        return mask if self.rows == self.columns == 1 else masks.expand_blocks(mask, (self.rows, self.columns))


@dataclass(frozen=True)
class NOfM(Pattern):
    """``keep`` of every ``group`` consecutive inputs."""

    keep: int = 2
    group: int = 4
    everywhere: ClassVar[bool] = True

    @property
    def sparsity(self) -> float:
        """The only final sparsity that goes with it."""
        return 1 - self.keep / self.group

    def mask(self, scores: Tensor, sparsity: float) -> Tensor:
        # On the way to N:M whole zeros per group: as many as the schedule has reached, rounded down.
        return masks.nm_mask(scores, self.group - int(sparsity * self.group + 1e-9), self.group)

    def why_not(self, out_features: int, in_features: int) -> str | None:
        return Pattern(columns=self.group).why_not(out_features, in_features)


@dataclass(frozen=True)
class BalancedBlocks(Pattern):
    """Blocks, a multiple of ``multiple`` kept in every row of blocks; the last row may have smaller ones."""

    multiple: int = 1
    everywhere: ClassVar[bool] = True

    def mask(self, scores: Tensor, sparsity: float) -> Tensor:
        return masks.balanced_block_mask(scores, sparsity, (self.rows, self.columns), self.multiple)

    def why_not(self, out_features: int, in_features: int) -> str | None:
        if in_features % self.columns:
            return f"does not divide {out_features} x {in_features}"
        blocks = in_features // self.columns
        return (
            f"can prune nothing of {in_features} inputs, which are {blocks} blocks" if blocks <= self.multiple else None
        )


def wrong_option(pattern: Pattern, sparsity: float, scope: str) -> tuple[str, str] | None:
    """Which of ``sparsity`` and ``scope`` is wrong, alone or with the pattern, and why; None when all is well.

    Example:
        >>> wrong_option(parse_pattern("2:4"), 0.6, "layer")
        ('sparsity', "0.6 does not go with '2:4'; it must be 0.5")

    """
    if not 0 <= sparsity < 1:
        return "sparsity", f"{sparsity} must be in [0, 1)"
    if isinstance(pattern, NOfM) and abs(sparsity - pattern.sparsity) > 1e-6:
        return "sparsity", f"{sparsity} does not go with {pattern.text!r}; it must be {pattern.sparsity:g}"
    if scope not in get_args(Scope):
        return "scope", f"{scope!r} must be one of {', '.join(get_args(Scope))}"
    if scope != "layer" and pattern.everywhere:
        return "scope", f"{scope} has no meaning for {pattern.text!r}; use 'layer'"
    return None


def parse_pattern(text: str) -> Pattern:
    """Read ``unstructured``, ``"N:M"``, ``"RxC"``, ``"RxC/N"`` or ``tall_blocks``; a ``ValueError`` for others.

    Example:
        >>> parse_pattern("2:4").mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 0.5).tolist()
        [[False, True, True, False]]
        >>> parse_pattern("1x2").masks([torch.tensor([[1.0, 1.0, 5.0, 0.0]])], 0.5)[0].tolist()
        [[False, False, True, True]]

    """
    if text == "unstructured":
        return Pattern()
    number = r"\s*([1-9]\d*)\s*"
    if match := re.fullmatch(f"{number}x{number}/{number}", "128x32/4" if text == "tall_blocks" else text):
        rows, columns, multiple = map(int, match.groups())
        return BalancedBlocks(text, rows, columns, multiple=multiple)
    if (match := re.fullmatch(f"{number}:{number}", text)) and int(match[1]) < int(match[2]):
        return NOfM(text, keep=int(match[1]), group=int(match[2]))
    if match := re.fullmatch(f"{number}x{number}", text):
        return Pattern(text, int(match[1]), int(match[2]))
    raise ValueError(
        f"{text!r} is not a pattern; write unstructured, a quoted '2:4' (N of M kept), '1x4' (blocks) or tall_blocks"
    )
