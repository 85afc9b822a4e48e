"""How near a text is to the right answers, as SQuAD's evaluation scripts count."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["answer_scores", "best_threshold", "words_of"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation and articles.

    Example:
        >>> words_of("The U.S.  President")
        ['us', 'president']

    """
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def answer_scores(answer: str, gold: Sequence[str], no_answer: bool) -> tuple[float, float]:
    """Exact match and F1 of the words, each with the gold answer that it is best with, from 0 to 1.

    torchmetrics' ``squad`` (version 1.9) adds in fp32, and counts two texts without words as equal in version 1.1, too.

    Args:
        answer: what is judged, empty for none.
        gold: right answers, at least one; an empty one where there is none.
        no_answer: whether questions may have no answer, SQuAD 2.0: then two texts without words agree in F1.

    Example:
        >>> answer_scores("New York City", ["York"], no_answer=False)
        (0.0, 0.5)

    """
    said, right = words_of(answer), [words_of(text) for text in gold]
    return float(said in right), max(_f1(said, words, no_answer) for words in right)


def best_threshold(
    gains: np.ndarray, none: np.ndarray, margins: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best mean score that a threshold for "none" can give, as ``find_best_thresh`` of SQuAD 2.0's script does.

    A question whose margin is above the threshold is answered with none. Where it is best to answer nothing, the
    threshold is 0, as in the script.

    Args:
        gains: ``(questions,)``, what a score of 0 to 1 becomes more by an answer in the place of none.
        none: bool ``(questions,)``, whether none is right.
        margins: ``(questions,)``, how much the score of none is above that of the best span.
        weights: ``(resamples, questions)``, how often each question counts.

    Returns:
        Score from 0 to 1 and threshold, ``(resamples,)`` each.

    Example:
        >>> gains, none = np.array([1.0, -1.0, 0.5]), np.array([False, True, False])
        >>> best_threshold(gains, none, np.array([-2.0, 3.0, -1.0]), np.ones((1, 3)))
        (array([0.83333333]), array([-1.]))

    """
    order = np.argsort(margins, kind="stable")
    sums = np.cumsum(weights[:, order] * gains[order], axis=1)
    best = sums.argmax(1)
    gained = np.maximum(sums[np.arange(len(sums)), best], 0)
    score, drawn = weights @ none + gained, weights.sum(1)
    return np.divide(score, drawn, out=np.full(len(score), np.nan), where=drawn > 0), np.where(
        gained > 0, margins[order][best], 0.0
    )


def _f1(said: list[str], right: list[str], no_answer: bool) -> float:
    common = (Counter(said) & Counter(right)).total()
    if not common:
        return float(no_answer and not said and not right)
    return 2 * common / (len(said) + len(right))
