import numpy as np
import pytest

from lit_compress.functional.answer_scores import answer_scores, best_threshold


@pytest.mark.parametrize(
    ("answer", "gold", "no_answer", "exact", "f1"),
    [
        ("the U.S. President!", ["us president"], False, 1, 1),
        ("an apple a day", ["apple", "banana day"], False, 0, 2 * 0.5 * 1 / 1.5),
        ("new new york", ["new york"], False, 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("York", [""], True, 0, 0),
        ("", [""], True, 1, 1),
        ("", ["York"], True, 0, 0),
        # Nothing is left of either: equal texts without a word in common, an F1 of 0 in version 1.1's script.
        ("The", ["a"], False, 1, 0),
        ("The", ["a"], True, 1, 1),
    ],
)
def test_scores_of_an_answer(answer, gold, no_answer, exact, f1):
    assert answer_scores(answer, gold, no_answer) == (exact, pytest.approx(f1))


def by_the_script(predictions, scores, margins, has_answer):
    """`find_best_thresh` of SQuAD 2.0's evaluate-v2.0.py: a share, and a threshold."""
    current = best = sum(not has_answer[question] for question in has_answer)
    threshold = 0.0
    for question in sorted(margins, key=lambda question: margins[question]):
        if has_answer[question]:
            current += scores[question]
        else:
            current += -1 if predictions[question] else 0
        if current > best:
            best, threshold = current, margins[question]
    return best / len(scores), threshold


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_best_threshold_is_that_of_the_script(seed, share):
    draw = np.random.default_rng(seed)
    none, scores = draw.random(50) < share, draw.random(50) * (draw.random(50) < 0.7)
    margins, said = draw.normal(size=50).round(1) + none, draw.random(50) < 0.9
    expected = by_the_script(said, dict(enumerate(scores)), dict(enumerate(margins)), dict(enumerate(~none)))
    gains = np.where(none, -1.0 * said, scores)
    score, threshold = best_threshold(gains, none, margins, np.ones((1, 50)))
    assert (score[0], threshold[0]) == pytest.approx(expected)
    margins = draw.permutation(50).astype(float)  # the order of equal ones is that of the questions
    drawn = draw.integers(50, size=50)
    weighted = best_threshold(gains, none, margins, np.bincount(drawn, minlength=50)[None].astype(float))
    alone = best_threshold(gains[drawn], none[drawn], margins[drawn], np.ones((1, 50)))
    assert np.array(weighted) == pytest.approx(np.array(alone))


def test_nothing_drawn_has_no_best_score():
    score, _ = best_threshold(np.ones(2), np.zeros(2, dtype=bool), np.ones(2), np.zeros((1, 2)))
    assert np.isnan(score).all()
