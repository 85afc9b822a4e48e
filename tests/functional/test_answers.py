import pytest

from lit_compress.functional.answers import answer_scores


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
