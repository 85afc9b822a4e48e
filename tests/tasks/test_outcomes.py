"""The metrics of any resample are those that torchmetrics gives for the rows it drew."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_compress.report.accuracy import Recorder
from lit_compress.tasks import IGNORED, Batch, make_task

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
LABELS = {
    "classification": ["a", "b", "c"],
    "binary": ["no", "yes"],
    "multi_label_classification": ["a", "b", "c"],
    "token_classification": TAGS,
    "pos": ["N", "V", "X"],
}
TASKS = {"binary": "classification", "pos": "token_classification"}
KINDS = [
    "classification",
    "binary",
    "multi_label_classification",
    "regression",
    "token_classification",
    "pos",
    "question_answering",
    "masked_lm",
    "pretraining",
]


def classification(rows, draw, count=3):
    return {"logits": torch.randn(rows, count, generator=draw)}, {"labels": torch.arange(rows) % count}


def binary(rows, draw):
    return classification(rows, draw, 2)


def multi_label_classification(rows, draw):
    labels = torch.rand(rows, 3, generator=draw) < torch.tensor([0.6, 0.3, 0.0])
    noise = torch.randn(rows, 3, generator=draw)
    return {"logits": labels * 1.5 - 1 + noise}, {"labels": labels.float()}


def regression(rows, draw):
    # Rounded, so that there are ties.
    values = torch.randn(rows, 2, generator=draw).mul(2).round()
    return {"logits": values[:, :1]}, {"labels": values[:, 1] + values[:, 0]}


def token_classification(rows, draw, tags=5):
    labels = torch.randint(tags, (rows, 7), generator=draw)
    guess = torch.where(torch.rand(rows, 7, generator=draw) < 0.7, labels, torch.zeros_like(labels))
    labels[:, 0] = IGNORED
    batch = {"labels": labels, "examples": [{"sentence": row, "first_word": 0} for row in range(rows)]}
    return {"logits": torch.nn.functional.one_hot(guess, tags).float()}, batch


def pos(rows, draw):
    return token_classification(rows, draw, 3)


def question_answering(rows, draw):
    logits = {f"{end}_logits": torch.randn(rows, 7, generator=draw) for end in ("start", "end")}
    places = torch.arange(7).expand(rows, 7)
    texts = ["abcdefg", "x y z w", "good one"]
    examples = [
        {
            "question": f"q{row}",
            "context": texts[row % 3],
            "answers": ["a", "one"] if row % 2 else [],
            "no_answer": True,
        }
        for row in range(rows)
    ]
    return logits, {"char_start": places, "char_end": places + 1, "examples": examples}


def masked_lm(rows, draw, name="logits"):
    labels = torch.randint(11, (rows, 7), generator=draw)
    labels[torch.rand(rows, 7, generator=draw) < 0.6] = IGNORED
    return {name: torch.randn(rows, 7, 11, generator=draw)}, {"labels": labels}


def pretraining(rows, draw):
    output, batch = masked_lm(rows, draw, "prediction_logits")
    output["seq_relationship_logits"] = torch.randn(rows, 2, generator=draw)
    return output, batch | {"next_sentence_label": torch.arange(rows) % 2}


def example(kind, rows=12, seed=0):
    output, batch = globals()[kind](rows, torch.Generator().manual_seed(seed))
    mask = torch.ones(rows, 7, dtype=torch.long).tril(3)
    return output, batch | {"input_ids": mask, "attention_mask": mask}


def batched(columns):
    inputs, targets = (
        {name: columns[name] for name in names if name in columns}
        for names in (("input_ids", "attention_mask"), ("labels", "next_sentence_label"))
    )
    meta = {name: value for name, value in columns.items() if name not in inputs and name not in targets}
    return Batch(inputs, targets, meta)


def drawn(values, numbers):
    """The rows that a resample drew, each as a unit of its own."""
    picked = {}
    for name, value in values.items():
        picked[name] = value[numbers] if isinstance(value, torch.Tensor) else [dict(value[n]) for n in numbers]
        for place, entry in enumerate(picked[name] if name == "examples" else ()):
            entry |= {"sentence": place, "question": f"q{place}"}
    return picked


def expected(kind, output, batch):
    task = make_task(TASKS.get(kind, kind), LABELS.get(kind))
    metrics = task.metrics("")
    task.update(metrics, SimpleNamespace(**output), batched(batch))
    # A threshold is not a measure of how good a model is, and its interval would say nothing.
    return {name: float(value) for name, value in metrics.compute().items() if name != "best_f1_threshold"}


def outcomes(kind, output, batch, parts=1):
    recorder = Recorder(make_task(TASKS.get(kind, kind), LABELS.get(kind)))
    for numbers in torch.arange(len(batch["input_ids"])).chunk(parts):
        pieces = [
            {name: value[numbers[0] : numbers[-1] + 1] for name, value in part.items()} for part in (output, batch)
        ]
        recorder.add(SimpleNamespace(**pieces[0]), batched(pieces[1]))
    return recorder.outcomes()


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_task(kind):
    output, batch = example(kind)
    found = outcomes(kind, output, batch, parts=3).score(np.ones((1, 12)))
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(
        expected(kind, output, batch), rel=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_resample_is_scored_as_its_rows(kind):
    output, batch = example(kind)
    numbers = torch.randint(12, (3, 12), generator=torch.Generator().manual_seed(7))
    weights = np.stack([np.bincount(row, minlength=12) for row in numbers.numpy()]).astype(float)
    found = outcomes(kind, output, batch).score(weights)
    for row, picked in enumerate(numbers):
        truth = expected(kind, drawn(output, picked), drawn(batch, picked))
        assert {name: float(value[row]) for name, value in found.items()} == pytest.approx(truth, rel=1e-4, abs=1e-6)


def test_classes_by_hand():
    logits = torch.eye(3)[[0, 0, 1, 1, 0]]
    batch = {"labels": torch.tensor([0, 0, 1, 0, 1]), "input_ids": torch.ones(5, 4)}
    found = outcomes("classification", {"logits": logits}, batch)
    classes = found.score_classes(np.ones((1, 5)))
    assert {name: float(value[0]) for name, value in classes["a"].items()} == pytest.approx(
        {"recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3}
    )
    assert float(classes["b"]["recall"][0]) == 0.5
    assert np.isnan(classes["c"]["recall"][0])
    assert found.class_units == {"a": 3, "b": 2, "c": 0}
    assert found.right.tolist() == [True, True, True, False, False]
    assert found.lengths.tolist() == [4] * 5


CONSTANT = {
    "classification": "b",
    "multi_label_classification": "b",
    "regression": "about 2",
    "token_classification": "O",
    "question_answering": "no answer",
}


@pytest.mark.parametrize("kind", CONSTANT)
def test_a_model_that_always_answers_the_same(kind):
    output, batch = example(kind)
    assert outcomes(kind, output, batch).constant is None
    if kind == "question_answering":
        for logits in output.values():
            logits[:, 0] = 99.0
        batch["char_start"] = torch.where(torch.arange(7) == 0, -1, batch["char_start"])
    elif kind == "regression":
        output = {"logits": torch.full_like(output["logits"], 2.0)}
    else:
        output = {"logits": torch.zeros_like(output["logits"])}
        output["logits"][..., 0 if kind == "token_classification" else 1] = 1.0
    assert outcomes(kind, output, batch).constant == CONSTANT[kind]


def test_one_class_of_data_with_one_class_is_no_sign_of_anything():
    batch = {"labels": torch.zeros(3, dtype=torch.long), "input_ids": torch.ones(3, 4)}
    found = outcomes("binary", {"logits": torch.eye(2)[[0, 0, 0]]}, batch)
    assert found.constant is None
    assert found.majority == ("no", 1.0)


def test_windows_of_a_sentence_are_one_unit():
    output, batch = example("token_classification", rows=4)
    for row, sentence in enumerate((0, 0, 1, 1)):
        batch["examples"][row]["sentence"] = sentence
    found = outcomes("token_classification", output, batch)
    assert found.lengths.tolist() == [9, 13]
    assert found.class_units.keys() == {"LOC", "PER"}
    whole = {name: float(value[0]) for name, value in found.score(np.ones((1, 2))).items()}
    assert whole == pytest.approx(expected("token_classification", output, batch), rel=1e-5)


def test_questions_with_and_without_an_answer_are_slices():
    found = outcomes("question_answering", *example("question_answering"))
    assert found.slices["with an answer"].tolist() == [False, True] * 6
    assert found.length_unit == "characters of context"
    output, batch = example("question_answering")
    metrics = make_task("question_answering").metrics("")
    make_task("question_answering").update(metrics, SimpleNamespace(**output), batched(batch))
    assert found.tuned == {"null_threshold": pytest.approx(float(metrics.compute()["best_f1_threshold"]))}
