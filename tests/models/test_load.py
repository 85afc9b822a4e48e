import json
import shlex
import shutil

import pytest
import torch
from contracts import errors
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    RobertaConfig,
)
from transformers.utils import logging as transformers_logging

from lit_compress.data.augmentation import MaskedWordReplacement
from lit_compress.errors import UserError
from lit_compress.models import check_compatible, load_classifier
from lit_compress.models.folder import load_whole_model
from lit_compress.models.load import load_config, transformers_progress
from lit_compress.report.explain import explain
from lit_compress.report.timing import cases_of
from lit_compress.tasks import ClassificationTask, RegressionTask

TWO = ClassificationTask(["0", "1"])


@pytest.fixture
def copy(tmp_path, tiny_teacher):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_teacher, folder)
    return folder


def error_of(source, labels=("0", "1"), key="model.pretrained"):
    message = errors.error_of(load_classifier, str(source), list(labels) if labels else None, key)
    assert message.startswith(f"{key}: ")
    return message


def test_a_fine_tuned_model_keeps_its_head(tiny_teacher):
    expected = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).state_dict()
    got = load_classifier(str(tiny_teacher), ["0", "1"], "model.pretrained").state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in got)


@pytest.mark.parametrize(
    ("labels", "outputs", "problem"),
    [
        (["no", "yes"], 2, "single_label_classification"),
        (["a", "b", "c"], 3, "single_label_classification"),
        (None, 1, "regression"),
    ],
)
def test_an_encoder_gets_a_new_head(tiny_model, labels, outputs, problem):
    model = load_classifier(str(tiny_model), labels, "model.pretrained")
    assert model.classifier.out_features == outputs
    assert (model.config.num_labels, model.config.problem_type) == (outputs, problem)
    if labels:
        assert model.config.id2label == dict(enumerate(labels))
        assert model.config.label2id == {label: index for index, label in enumerate(labels)}
    encoder = AutoModel.from_pretrained(tiny_model).state_dict()
    assert all(torch.equal(value, model.bert.state_dict()[name]) for name, value in encoder.items())


def test_a_language_model_gets_a_new_head(tiny_model, tmp_path):
    AutoModelForMaskedLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    assert load_classifier(str(tmp_path), ["a", "b", "c"], "model.pretrained").classifier.out_features == 3


def test_weights_are_full_precision_whatever_is_stored(tiny_teacher, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_teacher).half().save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), ["0", "1"], "model.pretrained")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_package_is_a_source(copy, monkeypatch):
    package = copy.parent / "model_package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    copy.rename(package / "weights")
    monkeypatch.syspath_prepend(package.parent)
    source = f"package:{package.name}/weights"
    assert load_classifier(source, ["0", "1"], "model.pretrained").config.num_labels == 2
    assert load_config(source, "model.teacher").num_labels == 2
    assert "has no 'nothing'" in error_of(f"package:{package.name}/nothing")
    assert "not installed" in error_of("package:no_such_package_here/weights")


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "a/b/c", "nobody/nothing-of-this-name", "nothing"])
def test_a_source_that_does_not_exist(source):
    assert repr(source) in error_of(source)


def test_errors_name_the_key_that_is_asked_for():
    error_of("/nowhere", key="--dense")


def test_a_file_is_no_model(tiny_teacher):
    message = error_of(tiny_teacher / "config.json")
    assert "not a model folder" in message


def test_a_folder_without_a_configuration(tmp_path):
    assert "no config.json" in error_of(tmp_path)


def test_a_folder_without_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "safetensors" in error_of(copy)


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    assert "pytorch_model.bin is not read" in error_of(copy)


def test_pickled_weights_come_with_the_line_that_converts_them(copy):
    expected = load_file(copy / "model.safetensors")
    torch.save(expected, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    doors = (lambda: error_of(copy), lambda: errors.error_of(load_whole_model, str(copy), "--model"))
    doors += (lambda: errors.error_of(cases_of, [str(copy)], None), lambda: errors.error_of(explain, str(copy)))
    rows, replace = Dataset.from_dict({"text": ["a good film"]}), MaskedWordReplacement(model=str(copy))
    doors += (lambda: errors.error_of(replace, rows, ["text"]),)
    (*_, said) = messages = [door().partition("convert it: ")[2] for door in doors]
    assert all(message.startswith("python -c 'from transformers import ") for message in messages)
    assert "AutoModelForMaskedLM" in said
    exec(shlex.split(messages[0])[2], {})  # what the message tells to run
    got = load_file(copy / "model.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    load_classifier(str(copy), ["0", "1"], "key")


@pytest.mark.parametrize("kept", [0, 7, 100, 2000, -1])
def test_truncated_weights(copy, kept):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    message = error_of(copy)
    assert "damaged" in message
    assert str(copy) in message


@pytest.mark.parametrize(
    "text",
    [
        *["", "{", "[]", "null", "{}", '"bert"', "\x00\x01", '{"model_type": "no_such_type"}', '{"model_type": 3}'],
        '{"model_type": "bert", "hidden_size": "many"}',
        '{"model_type": "bert", "hidden_size": 33}',
        '{"model_type": "bert", "num_hidden_layers": -1}',
        '{"model_type": "vit"}',
    ],
)
def test_a_corrupted_configuration(copy, text):
    (copy / "config.json").write_text(text)
    assert str(copy) in error_of(copy)


def test_a_configuration_that_is_no_text(copy):
    (copy / "config.json").write_bytes(b"\xff\xfe\x80{}")
    assert str(copy) in error_of(copy)


def test_weights_of_another_size_than_the_configuration(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    assert str(copy) in error_of(copy)


def test_weights_without_a_layer_of_the_configuration(copy):
    # Transformers would start with a random layer and say so in a report that is not shown.
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert str(copy) in error_of(copy)


def test_a_fine_tuned_model_without_its_head(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "classifier.weight" in error_of(copy)


@pytest.mark.parametrize("labels", [["a", "b", "c"], None])
def test_a_head_for_another_number_of_labels(tiny_teacher, labels):
    message = error_of(tiny_teacher, labels)
    assert f"has 2 labels and the data has {len(labels or [0])}" in message


def test_verbosity_is_given_back(tiny_model, tmp_path):
    before = transformers_logging.get_verbosity()
    load_classifier(str(tiny_model), ["0", "1"], "model.pretrained")
    assert transformers_logging.get_verbosity() == before
    error_of(tmp_path)
    assert transformers_logging.get_verbosity() == before


def test_bars_are_shown_and_hidden():
    was = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_progress(False)
        assert not transformers_logging.is_progress_bar_enabled()
        transformers_progress(True)
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_progress(was)


def test_remote_code_is_never_run(copy, tmp_path, monkeypatch):
    flag = tmp_path / "flag"
    # A user who is asked may answer yes; nobody is to be asked.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (copy / "code.py").write_text(
        "import pathlib\nfrom transformers import PreTrainedConfig\n"
        f"pathlib.Path({str(flag)!r}).touch()\n\n\nclass Config(PreTrainedConfig):\n    model_type = 'mine'\n"
    )
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "mine"}
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Config"}
    (copy / "config.json").write_text(json.dumps(config))
    error_of(copy)
    assert not flag.exists()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({}, {}),
        ({"num_labels": 1, "id2label": {0: "score"}}, {"num_labels": 1, "id2label": {0: "other"}}),
        ({}, {"hidden_size": 1024, "num_hidden_layers": 24}),
    ],
)
def test_compatible(student, teacher):
    check_compatible(
        BertConfig(**student),
        RobertaConfig(**{"vocab_size": 30522} | teacher),
        "source",
        RegressionTask() if student else TWO,
    )


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ({"num_labels": 2}, {"num_labels": 3}, ["3 labels", "has 2"]),
    ],
)
def test_incompatible(student, teacher, words):
    with pytest.raises(UserError) as caught:
        check_compatible(BertConfig(**student), BertConfig(**teacher), "the-source", TWO)
    message = str(caught.value)
    assert message.startswith("model.teacher: 'the-source'")
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
