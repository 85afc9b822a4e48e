"""Which tokens a masked language model has to guess."""

from collections.abc import Sequence

import numpy as np

__all__ = ["mask_tokens"]


def mask_tokens(
    ids: np.ndarray, special: np.ndarray, mask_id: int, words: np.ndarray, probability: float, key: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Masked ids and labels of one example: a function of its arguments alone.

    Of the tokens drawn 80 % become the mask, 10 % another word, 10 % stay (BERT, arXiv 1810.04805); each is drawn by
    itself, so a row has ``probability`` of them on average.

    Args:
        ids: token ids ``(tokens,)``.
        special: ids that are never masked.
        mask_id: id of the mask.
        words: ids that a token may be replaced by.
        probability: fraction of tokens to predict.
        key: seeds the draw, for example seed, epoch and number of the example.

    Returns:
        ids with masks, and labels that are -100 wherever nothing is to guess.

    Example:
        >>> ids, labels = mask_tokens(np.arange(9), np.array([0, 8]), 99, np.arange(1, 8), 0.5, (0, 1, 2))
        >>> ids.tolist(), labels.tolist()
        ([0, 99, 2, 99, 99, 99, 99, 99, 8], [-100, 1, -100, 3, 4, 5, 6, 7, -100])

    """
    generator = np.random.default_rng(list(key))
    drawn = (generator.random(len(ids)) < probability) & ~np.isin(ids, special)
    labels = np.where(drawn, ids, -100)
    how = generator.random(len(ids))
    others = generator.choice(words, len(ids))
    masked = np.where(drawn & (how < 0.8), mask_id, ids)
    return np.where(drawn & (how >= 0.8) & (how < 0.9), others, masked), labels
