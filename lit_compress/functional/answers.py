"""How near a text is to the right answers, as SQuAD's evaluation scripts count."""

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["answer_scores", "words_of"]

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


def _f1(said: list[str], right: list[str], no_answer: bool) -> float:
    common = (Counter(said) & Counter(right)).total()
    if not common:
        return float(no_answer and not said and not right)
    return 2 * common / (len(said) + len(right))
