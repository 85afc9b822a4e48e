import pytest
import torch

from lit_compress.errors import UserError
from lit_compress.serve.records import Records, schema_of
from lit_compress.tasks import (
    ClassificationTask,
    MaskedWordsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)


def test_probabilities_and_the_most_probable_label():
    records = Records(ClassificationTask(["no", "yes"]), [0, 1])
    assert list(records.add(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))) == [
        {"row": 0, "label": "yes", "probability_no": 0.25, "probability_yes": 0.75}
    ]
    assert [record["label"] for record in records.finish(2)] == ["no"]


def test_values():
    records = Records(RegressionTask(), [0, 1, 2])
    got = [*records.add(torch.tensor([1.5, 2.5])), *records.add(torch.tensor([3.5])), *records.finish(3)]
    assert got == [{"row": 0, "value": 1.5}, {"row": 1, "value": 2.5}, {"row": 2, "value": 3.5}]


def test_windows_of_a_sentence_are_joined_over_batches_and_empty_sentences_have_no_tags():
    records = Records(TokenClassificationTask(["O", "B"]), [1, 1, 3], first=0)
    got = [*records.add([{"tags": ["O"]}]), *records.add([{"tags": ["B", "O"]}, {"tags": ["O"]}]), *records.finish(5)]
    assert got == [
        {"row": 0, "tags": []},
        {"row": 1, "tags": ["O", "B", "O"]},
        {"row": 2, "tags": []},
        {"row": 3, "tags": ["O"]},
        {"row": 4, "tags": []},
    ]


def answer(text, score, null, start=0):
    end = None if text is None else start + len(text)
    return {"question": "q", "text": text, "start": start, "end": end, "score": score, "null": null}


@pytest.mark.parametrize(
    ("windows", "no_answer", "expected"),
    [
        ([answer("a", 1.0, 0.0), answer("bc", 2.0, -1.0, start=9)], False, ("bc", 9, 11, 2.0, -1.0)),
        ([answer("a", 1.0, 5.0)], False, ("a", 0, 1, 1.0, 5.0)),
        ([answer("a", 1.0, 5.0), answer("b", 0.5, 4.0)], True, ("", None, None, 1.0, 4.0)),
        ([answer("a", 1.0, 5.0), answer("b", 0.5, 0.9)], True, ("a", 0, 1, 1.0, 0.9)),
        ([answer(None, None, 1.0)], False, ("", None, None, None, 1.0)),
    ],
)
def test_the_best_answer_of_all_windows(windows, no_answer, expected):
    records = Records(QuestionAnsweringTask(no_answer), [4] * len(windows), first=4)
    assert list(records.add(windows)) == []
    (got,) = records.finish(5)
    assert (got["id"], got["row"]) == ("q", 4)
    assert tuple(got[name] for name in ("answer", "start", "end", "score", "score_no_answer")) == expected


def test_a_task_without_columns():
    with pytest.raises(UserError, match="masked_lm"):
        schema_of(MaskedWordsTask())
