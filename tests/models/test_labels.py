"""A head whose classes are in another order than the labels, or have other names."""

import logging
from functools import partial

import pytest
import torch
from contracts import errors
from models.families import FAMILIES, batch, build
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from lit_compress.models import load_model
from lit_compress.tasks import make_task

LABELS = ["a", "b", "c"]
THEIRS = {0: "c", 1: "a", 2: "b"}
HEADS = {"classification": AutoModelForSequenceClassification, "token_classification": AutoModelForTokenClassification}
error_of = partial(errors.error_of, load_model)


def saved(folder, names, family="bert", task="classification"):
    """A model whose classes have names, and what it says of a batch, by name."""
    model = build(family, HEADS[task], id2label=names, label2id={name: index for index, name in names.items()})
    model.save_pretrained(folder)
    with torch.no_grad():
        logits = model(**batch()).logits
    return {name: logits[..., index] for index, name in names.items()}


def loaded(folder, labels=LABELS, label_map=None, task="classification"):
    model = load_model(str(folder), make_task(task, labels), "model.pretrained", label_map).eval()
    assert (model.config.id2label, model.config.label2id) == (
        dict(enumerate(labels)),
        {label: index for index, label in enumerate(labels)},
    )
    with torch.no_grad():
        return model(**batch()).logits


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_brought_into_the_order_of_the_labels(family, task, tmp_path, caplog):
    said = saved(tmp_path, THEIRS, family, task)
    logits = loaded(tmp_path, task=task)
    for index, label in enumerate(LABELS):
        torch.testing.assert_close(logits[..., index], said[label], msg=label)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "\n" not in record.getMessage()
    for words in ("model.pretrained", str(tmp_path), "['c', 'a', 'b']", "['a', 'b', 'c']"):
        assert words in record.getMessage()


@pytest.mark.parametrize("names", [{0: "a", 1: "b", 2: "c"}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}])
def test_the_same_order_and_names_that_say_nothing_are_left_alone(names, tmp_path, caplog):
    said = saved(tmp_path, names)
    logits = loaded(tmp_path)
    for index, name in names.items():
        torch.testing.assert_close(logits[..., index], said[name])
    assert caplog.records == []


@pytest.mark.parametrize(
    ("names", "label_map"),
    [
        (["LOW", "HIGH"], {"LOW": 1, "HIGH": 0}),
        (["LOW", "HIGH"], {"LOW": "0", "HIGH": "1"}),
        (["LABEL_0", "LABEL_1"], {"LABEL_0": 1, "LABEL_1": 0}),
        (["1", "HIGH"], {"HIGH": 0}),
        # The map is another model's: this one's names are the data's already.
        (["1", "0"], {"0": 1, "1": 0}),
        (["0", "1"], {"LOW": 1, "HIGH": 0}),
    ],
)
def test_names_are_mapped_to_labels(names, label_map, tmp_path):
    said = saved(tmp_path, dict(enumerate(names)))
    logits = loaded(tmp_path, ["0", "1"], label_map)
    for name in names:
        label = name if sorted(names) == ["0", "1"] else label_map.get(name, name)
        torch.testing.assert_close(logits[:, int(label)], said[name])


@pytest.mark.parametrize(
    ("names", "label_map"),
    [
        (["LOW", "HIGH"], None),
        (["LOW", "HIGH"], {"LOW": 0}),
        (["LOW", "HIGH"], {"LOW": 0, "HIGH": 0}),
        (["LOW", "HIGH"], {"LOW": 0, "HIGH": 2}),
        (["0", "HIGH"], None),
        (["LABEL_1", "LABEL_0"], None),
        (["LABEL_0", "LABEL_1"], {"LABEL_0": 1}),
    ],
)
@pytest.mark.parametrize(("key", "option"), [("model.teacher", "model.label_map"), ("--dense", "--label_map")])
def test_other_names_are_refused(names, label_map, key, option, tmp_path):
    saved(tmp_path, dict(enumerate(names)))
    message = error_of(str(tmp_path), make_task(None, ["0", "1"]), key, label_map)
    for words in (f"{key}: {str(tmp_path)!r} has the classes {names}", "['0', '1']", option):
        assert words in message


def test_a_long_list_of_names_is_cut(tmp_path):
    saved(tmp_path, {index: f"intent {index}" for index in range(40)})
    task = make_task(None, [str(index) for index in range(40)])
    assert len(error_of(str(tmp_path), task, "model.pretrained")) < 600


def test_an_encoder_without_a_head_has_no_names(tiny_model):
    loaded_model = load_model(str(tiny_model), make_task(None, ["yes", "no"]), "model.pretrained", {"LABEL_0": "no"})
    assert loaded_model.config.id2label == {0: "yes", 1: "no"}
