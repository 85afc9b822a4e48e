import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lit_compress.errors import UserError
from lit_compress.modules.mean_loss import MeanLoss
from lit_compress.tasks import (
    Batch,
    MaskedWordsTask,
    PretrainingTask,
    QuestionAnsweringTask,
    TokenClassificationTask,
    make_task,
)

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def output(**tensors):
    return SimpleNamespace(**tensors)


def values(metrics):
    return {name.removeprefix("val/"): float(value) for name, value in metrics.compute().items()}


def one_hot(ids, size):
    return 9.0 * torch.eye(size)[torch.tensor(ids)]


def test_a_mean_loss_is_weighted_and_shows_what_is_broken():
    loss = MeanLoss()
    for value, count in ((2.0, 3), (4.0, 1), (0.0, 0)):
        loss.update(torch.tensor(value), count)
    assert loss.compute() == 2.5
    loss.update(torch.tensor(math.nan), 1)
    assert loss.compute().isnan()


# --- tags


def tag_scores(*rows):
    """Metrics of rows of (predicted, true) tags; None has no label."""
    task = TokenClassificationTask(LABELS)
    metrics = task.metrics("val/")
    for row, (predicted, true) in enumerate(rows):
        logits = one_hot([[LABELS.index(tag) for tag in predicted]], len(LABELS))
        labels = torch.tensor([[-100 if tag is None else LABELS.index(tag) for tag in true]])
        task.update(
            metrics,
            output(logits=logits),
            Batch({}, {"labels": labels}, {"examples": [{"sentence": row, "first_word": 0}]}),
        )
    return values(metrics)


def test_an_entity_is_right_with_kind_and_both_ends():
    rows = [
        # Right, one too short, one of another kind: 1 of 3 found, 1 of 3 true.
        (
            ["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC"],
            ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "B-PER"],
        ),
        # One found that is not there.
        (["B-LOC", "O"], ["O", "O"]),
    ]
    assert tag_scores(*rows) == pytest.approx(
        {"accuracy": 5 / 8, "precision": 1 / 4, "recall": 1 / 3, "f1": 2 * 1 / (4 + 3)}
    )


def test_tokens_without_a_label_are_not_there():
    # The second piece of a word lies between B and I.
    scores = tag_scores((["B-LOC", "O", "I-LOC", "O"], ["B-LOC", None, "I-LOC", None]))
    assert scores == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1}


def test_the_first_score_is_the_one_that_tables_show():
    assert next(iter(tag_scores((["O"], ["O"])))) == "f1"
    assert next(iter(answer_scores(window("q", (4, 4), ["York"])))) == "f1"
    task = PretrainingTask()
    metrics = task.metrics("val/")
    ids = {"labels": torch.tensor([[1, 2]]), "next_sentence_label": torch.tensor([1])}
    both = output(prediction_logits=torch.zeros(1, 2, 5), seq_relationship_logits=torch.zeros(1, 2))
    task.update(metrics, both, Batch({}, ids, {}))
    assert list(values(metrics)) == ["perplexity", "accuracy", "next_sentence"]


def test_an_entity_over_two_rows_of_a_sentence_is_one():
    task, rows = TokenClassificationTask(LABELS), []
    for sentence, first, tags in ((4, 2, ["I-PER", "O"]), (5, 0, ["B-LOC"]), (4, 0, ["O", "B-PER"])):
        ids = [[LABELS.index(tag) for tag in tags]]
        batch = Batch({}, {"labels": torch.tensor(ids)}, {"examples": [{"sentence": sentence, "first_word": first}]})
        rows.append((output(logits=one_hot(ids, len(LABELS))), batch))
    metrics = task.metrics("val/")
    for row in rows:
        task.update(metrics, *row)
    assert values(metrics) == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
    # The second word of the person is said to be a place: one of two entities, and one that is not there.
    rows[0][0].logits[0, 0] = rows[1][0].logits[0, 0]
    metrics = task.metrics("val/")
    for row in rows:
        task.update(metrics, *row)
    assert values(metrics)["recall"] == 1 / 2
    assert values(metrics)["precision"] == pytest.approx(1 / 3)


def test_no_entities_at_all():
    assert tag_scores((["O"], ["O"])) == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0}


def test_parts_of_speech_have_an_accuracy_only():
    task = TokenClassificationTask(["NN", "VB"])
    metrics = task.metrics("val/")
    batch = Batch({}, {"labels": torch.tensor([[0, 0]])}, {"examples": [{"sentence": 0, "first_word": 0}]})
    task.update(metrics, output(logits=one_hot([[0, 1]], 2)), batch)
    assert values(metrics) == {"accuracy": 0.5}


def test_tag_loss_is_the_mean_over_words():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    batch = Batch({}, {"labels": labels}, {})
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(TokenClassificationTask(LABELS).loss(output(logits=logits), batch), expected)
    assert TokenClassificationTask(LABELS).count(batch) == 3


def test_predicted_tags():
    starts = torch.tensor([[False, True, False, True]])
    batch = Batch({}, {}, {"word_starts": starts, "examples": [{"sentence": 7, "first_word": 2}]})
    task = TokenClassificationTask(LABELS)
    got = task.predictions(output(logits=one_hot([[0, 3, 0, 4]], 5)), batch)
    assert got == [{"sentence": 7, "first_word": 2, "tags": ["B-PER", "I-PER"]}]


# --- masked words


def test_perplexity_and_accuracy_weigh_every_token_alike():
    task = MaskedWordsTask()
    metrics = task.metrics("val/")
    total, right, count = 0.0, 0, 0
    for masked in (1, 5):
        logits, labels = torch.randn(2, 6, 11), torch.full((2, 6), -100)
        labels[0, :masked] = torch.randint(11, (masked,))
        task.update(metrics, output(logits=logits), Batch({}, {"labels": labels}, {}))
        total += F.cross_entropy(logits[0, :masked], labels[0, :masked], reduction="sum").item()
        right += int((logits[0, :masked].argmax(-1) == labels[0, :masked]).sum())
        count += masked
    assert values(metrics) == pytest.approx({"perplexity": math.exp(total / count), "accuracy": right / count})


def test_a_batch_without_masks_has_no_loss():
    logits = torch.randn(1, 3, 7, requires_grad=True)
    loss = MaskedWordsTask().loss(output(logits=logits), Batch({}, {"labels": torch.full((1, 3), -100)}, {}))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_pretraining_adds_both_losses():
    words, follows = torch.randn(2, 4, 7), torch.randn(2, 2)
    labels, next_labels = torch.tensor([[1, -100, -100, 3], [-100, 2, -100, -100]]), torch.tensor([0, 1])
    batch = Batch({}, {"labels": labels, "next_sentence_label": next_labels}, {})
    both = output(prediction_logits=words, seq_relationship_logits=follows)
    expected = F.cross_entropy(words.flatten(0, 1), labels.flatten()) + F.cross_entropy(follows, next_labels)
    task = PretrainingTask()
    assert torch.allclose(task.loss(both, batch), expected)
    metrics = task.metrics("val/")
    task.update(metrics, both, batch)
    assert values(metrics)["next_sentence"] == (follows.argmax(1) == next_labels).float().mean()


# --- answers

CONTEXT = "the old Dr. Who was born in New York City."


def window(question, span, answers, score=5.0, null=0.0, no_answer=False):
    """A window of CONTEXT by words, whose best span is words ``span`` and whose first token scores ``null``."""
    words = CONTEXT.split()
    begins = [CONTEXT.index(word) for word in words]
    ends = [begin + len(word) for begin, word in zip(begins, words, strict=True)]
    start, end = torch.full((1, len(words) + 2), -9.0), torch.full((1, len(words) + 2), -9.0)
    start[0, 0] = end[0, 0] = null / 2
    if span:
        start[0, span[0] + 2], end[0, span[1] + 2] = score / 2, score / 2
    meta = {
        "char_start": torch.tensor([[-1, -1, *begins]]),
        "char_end": torch.tensor([[-1, -1, *ends]]),
        "examples": [{"question": question, "context": CONTEXT, "answers": answers, "no_answer": no_answer}],
    }
    return output(start_logits=start, end_logits=end), Batch({}, {}, meta)


def answer_scores(*windows, **options):
    task = QuestionAnsweringTask(**options)
    metrics = task.metrics("val/")
    for got, batch in windows:
        task.update(metrics, got, batch)
    return values(metrics)


# Words of CONTEXT that are predicted, gold answers -> exact match and F1 as the official script 1.1 counts.
CASES = {
    "right": ((7, 8), ["New York"], 100, 100),
    "articles, case and punctuation do not count": ((0, 3), ["old dr who"], 100, 100),
    "the best of several answers": ((7, 9), ["York", "New York City"], 100, 100),
    "half": ((7, 9), ["York"], 0, 100 * 2 * (1 / 3) * 1 / (1 / 3 + 1)),
    "nothing in common": ((4, 5), ["New York"], 0, 0),
}


@pytest.mark.parametrize(("span", "answers", "exact", "f1"), CASES.values(), ids=CASES)
def test_official_scores(span, answers, exact, f1):
    assert answer_scores(window("q", span, answers)) == pytest.approx({"exact_match": exact, "f1": f1})


def test_the_best_window_of_a_question_answers_it():
    windows = [window("q", (4, 4), ["York"], score=3.0), window("q", (8, 8), ["York"], score=4.0)]
    assert answer_scores(*windows) == {"exact_match": 100, "f1": 100}
    assert answer_scores(*windows, window("r", (1, 1), ["York"])) == {"exact_match": 50, "f1": 50}


# Score of the best span, of none, gold answers -> whether it is right, in SQuAD 2.0.
@pytest.mark.parametrize(
    ("score", "null", "answers", "right"),
    [
        (5.0, 1.0, ["York"], True),
        (5.0, 6.0, ["York"], False),
        (5.0, 6.0, [], True),
        (5.0, 1.0, [], False),
        (5.0, 5.0, [], False),  # equal is not above the threshold of 0
        (5.0, 6.0, ["the"], True),  # an answer that is nothing but an article is none
    ],
)
def test_no_answer(score, null, answers, right):
    got = answer_scores(window("q", (8, 8), answers, score, null, no_answer=True))
    assert (got["exact_match"], got["f1"]) == (100 * right, 100 * right)
    assert got["best_exact"] == got["best_f1"] == (0 if answers == ["the"] else 100)  # as the script has it


def test_a_threshold_of_none_is_taken_and_the_best_one_is_said():
    windows = [
        window(name, (8, 8), answers, 5.0, null, no_answer=True)
        for name, answers, null in (("a", ["York"], 7.0), ("b", ["York"], 4.0), ("c", [], 8.0))
    ]
    assert answer_scores(*windows)["f1"] == pytest.approx(200 / 3)
    found = answer_scores(*windows, null_threshold=2.0)
    assert found == {"f1": 100, "exact_match": 100, "best_f1": 100, "best_exact": 100, "best_f1_threshold": 2}


def test_the_least_null_score_of_all_windows_counts():
    windows = [window("q", (8, 8), ["York"], 5.0, null, no_answer=True) for null in (9.0, 1.0)]
    found = answer_scores(*windows)
    assert (found["exact_match"], found["f1"]) == (100, 100)


def test_none_is_no_answer_where_there_must_be_one():
    assert answer_scores(window("q", (8, 8), ["York"], score=1.0, null=9.0)) == {"exact_match": 100, "f1": 100}


def test_an_answer_is_at_most_thirty_tokens_and_in_the_context():
    task = QuestionAnsweringTask()
    got, batch = window("q", (8, 8), [])
    (prediction,) = task.predictions(got, batch)
    assert prediction == {"question": "q", "text": "York", "start": 32, "end": 36, "score": 5.0, "null": 0.0}
    got.start_logits[:] = got.end_logits[:] = torch.tensor([3.0] * 2 + [0.0] * 10)
    batch.meta["char_start"][:] = batch.meta["char_end"][:] = -1
    assert task.predictions(got, batch)[0]["text"] is None


def test_positions_outside_the_window_do_not_count():
    start, end = torch.randn(2, 5), torch.randn(2, 5)
    targets = {"start_positions": torch.tensor([1, 99]), "end_positions": torch.tensor([2, 99])}
    batch = Batch({"input_ids": start}, targets, {})
    task = QuestionAnsweringTask()
    expected = (F.cross_entropy(start[:1], torch.tensor([1])) + F.cross_entropy(end[:1], torch.tensor([2]))) / 2
    assert torch.allclose(task.loss(output(start_logits=start, end_logits=end), batch), expected)
    assert task.count(batch) == 1
    targets |= {"start_positions": torch.tensor([99, 99]), "end_positions": torch.tensor([99, 99])}
    assert task.loss(output(start_logits=start, end_logits=end), batch) == 0


# --- names


@pytest.mark.parametrize(
    ("name", "labels", "part"),
    [
        ("translation", None, "'translation'"),
        ("token_classification", None, "labels"),
        ("classification", [], "labels"),
    ],
)
def test_tasks_that_cannot_be(name, labels, part):
    with pytest.raises(UserError, match=part):
        make_task(name, labels)


def test_without_a_name_labels_decide():
    assert type(make_task(None, ["a", "b"])).__name__ == "ClassificationTask"
    assert type(make_task(None, None)).__name__ == "RegressionTask"
