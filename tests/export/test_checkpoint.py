import json
import os
import pickle
import random
import resource
from pathlib import Path

import pytest
import torch
from contracts.errors import error_of
from contracts.training import STEPS, data, fit, student
from transformers import RobertaConfig, RobertaForSequenceClassification

from lit_compress.export import (
    find_checkpoint,
    fold,
    from_source,
    load_checkpoint,
    save_folder,
    student_from_checkpoint,
)
from lit_compress.export.command import export
from lit_compress.nn import describe
from lit_compress.strategies import MagnitudePruning, QuantAwareTraining


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_teacher, tiny_data):
    """A compressed module and its last checkpoint."""
    root = tmp_path_factory.mktemp("trained")
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [MagnitudePruning(), QuantAwareTraining()], root)
    return module, root / f"step={STEPS}.ckpt"


def test_the_last_checkpoint_of_a_run(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.touch()
    assert find_checkpoint(tmp_path) == path
    assert find_checkpoint(str(tmp_path)) == path


def test_a_run_that_does_not_exist(tmp_path):
    assert "is not a folder" in error_of(find_checkpoint, tmp_path / "none")
    (tmp_path / "file").touch()
    assert "is not a folder" in error_of(find_checkpoint, tmp_path / "file")


@pytest.mark.parametrize("name", [None, "checkpoints", "checkpoints/epoch=1.ckpt", "checkpoints/last.ckpt/"])
def test_a_run_without_a_checkpoint(tmp_path, name):
    if name and name.endswith("ckpt"):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / name).touch()
    elif name:
        (tmp_path / name).mkdir(parents=True)
    assert "no checkpoints/last.ckpt" in error_of(find_checkpoint, tmp_path)


def test_the_student_comes_back_without_its_folder(trained):
    module, path = trained
    checkpoint = load_checkpoint(path)
    checkpoint["hyper_parameters"] = {}  # where its pretrained weights were
    again = student_from_checkpoint(checkpoint)
    assert type(again) is type(module.student)
    assert not any(child.training for child in again.modules())
    assert describe(again) == describe(module.student)
    assert again.config.id2label == {0: "0", 1: "1"}
    expected = module.student.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_a_student_of_another_family_comes_back(tmp_path, tiny_model, tiny_data):
    config = RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=72, pad_token_id=0
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "model")
    module = student(tmp_path / "model", tokenizer=str(tiny_model))
    fit(module, data(tiny_data, tiny_model), [MagnitudePruning()], tmp_path)
    again = student_from_checkpoint(load_checkpoint(tmp_path / f"step={STEPS}.ckpt"))
    assert isinstance(again, RobertaForSequenceClassification)
    assert describe(again) == describe(module.student)


def test_a_checkpoint_that_does_not_exist(tmp_path):
    path = tmp_path / "none.ckpt"
    assert error_of(load_checkpoint, path) == f"checkpoint: {str(path)!r} does not exist"


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.7, 0.99, 0.99999])
def test_a_truncated_checkpoint(share, trained, tmp_path):
    whole = trained[1].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(share * len(whole))])
    message = error_of(load_checkpoint, path)
    assert "damaged" in message
    assert str(path) in message


def test_a_flipped_bit_of_a_weight(trained, tmp_path):
    _, path = trained
    content, weight = bytearray(path.read_bytes()), trained[0].student.get_input_embeddings().weight
    at = content.index(weight.detach().numpy().tobytes())
    content[at + 100] ^= 1
    (tmp_path / "changed.ckpt").write_bytes(content)
    assert "is damaged" in error_of(load_checkpoint, tmp_path / "changed.ckpt")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(seed, tmp_path):
    path, draw = tmp_path / "random.ckpt", random.Random(seed)
    # torch.load meets each of them in another part of its reader.
    for length in [1, 2, 3, 10, 100] * 20:
        path.write_bytes(draw.randbytes(length))
        assert "damaged" in error_of(load_checkpoint, path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"state_dict: {}", b"\x80\x02}", b"\x80\x02", b"\n" * 99])
def test_other_files(content, tmp_path):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    assert "damaged" in error_of(load_checkpoint, path)


def test_a_folder_is_no_checkpoint(tmp_path):
    assert str(tmp_path) in error_of(load_checkpoint, tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", ["zip", "legacy", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(save, tmp_path):
    bomb, path = str(tmp_path / "executed"), tmp_path / "evil.ckpt"
    content = {"lit_compress": {}, "state_dict": {}, "callbacks": Malicious(bomb)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "zip")
    message = error_of(load_checkpoint, path)
    assert str(path) in message
    assert not os.path.exists(bomb)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {}, "epoch": 3, "pytorch-lightning_version": "2.6.0"},
        {"lit_compress": {}},
        {"weight": torch.ones(2)},
        [1, 2],
        torch.ones(2),
    ],
)
def test_a_checkpoint_of_something_else(content, tmp_path):
    path = tmp_path / "else.ckpt"
    torch.save(content, path)
    assert error_of(load_checkpoint, path) == f"checkpoint: {str(path)!r} was not made by lit_compress"


def test_weights_that_do_not_fit_their_description(trained):
    checkpoint = load_checkpoint(trained[1])
    del checkpoint["state_dict"]["student.classifier.weight"]
    assert "do not fit" in error_of(student_from_checkpoint, checkpoint)


# A class from a later release, and names that are not a model's.
@pytest.mark.parametrize("architecture", ["BertForTomorrow", "BertConfig", "pipeline", "AutoModel", "__version__"])
def test_an_architecture_that_does_not_exist(architecture, trained):
    checkpoint = load_checkpoint(trained[1])
    checkpoint["lit_compress"] |= {"architecture": architecture}
    assert repr(architecture) in error_of(student_from_checkpoint, checkpoint)


def test_a_manifest_of_another_model(trained):
    checkpoint = load_checkpoint(trained[1])
    name, entry = next(iter(checkpoint["lit_compress"]["manifest"]["linears"].items()))
    checkpoint["lit_compress"]["manifest"]["linears"]["no.such.layer"] = entry
    assert "'no.such.layer'" in error_of(student_from_checkpoint, checkpoint)
    del checkpoint["lit_compress"]["manifest"]["linears"]["no.such.layer"]
    checkpoint["lit_compress"]["manifest"]["linears"][name] = entry | {
        "weight_quantizer": {"kind": "Unheard", "spec": {}}
    }
    assert "'Unheard'" in error_of(student_from_checkpoint, checkpoint)


def change(checkpoint, *keys, value):
    """Set an entry of what a checkpoint says about its student; a configuration is JSON in it."""
    about = checkpoint["lit_compress"]
    if keys[0] == "config" and keys[1:]:
        settings = json.loads(about["config"])
        settings[keys[1]] = value
        about["config"] = json.dumps(settings)
        return
    for key in keys[:-1]:
        about = next(iter(about.values())) if key == "*" else about[key]
    about[keys[-1]] = value


LINEAR = ("manifest", "linears", "*")
QUANTIZER = (*LINEAR, "weight_quantizer")
TABLE = "bert.embeddings.word_embeddings"
HOSTILE = {
    "groups": ((*LINEAR, "groups"), 2**40),
    "groups of a text": ((*LINEAR, "groups"), "2"),
    "no groups": ((*LINEAR, "groups"), 0),
    "a rank": (("manifest", "factorized"), {TABLE: {"rank": 2**40, "mask": False}}),
    "a rank above the table": (("manifest", "factorized"), {TABLE: {"rank": 33, "mask": False}}),
    "a rank of a text": (("manifest", "factorized"), {TABLE: {"rank": "8", "mask": False}}),
    "channels of a quantizer": ((*QUANTIZER, "spec", "out_features"), 2**40),
    "bits of a quantizer": ((*QUANTIZER, "spec", "bits"), 10**12),
    "no bits": ((*QUANTIZER, "spec", "bits"), -1),
    "an argument that no quantizer has": ((*QUANTIZER, "spec", "path"), "/etc/passwd"),
    "a specification that is a list": ((*QUANTIZER, "spec"), [8]),
    "a kind that is a list": ((*QUANTIZER, "kind"), ["MinMaxWeightQuantizer"]),
    "a quantizer that is a number": (QUANTIZER, 8),
    "a switch that is a text": ((*QUANTIZER, "enabled"), "no"),
    "a mask that is a number": ((*LINEAR, "mask"), 1),
    "a layer that is nothing": (("manifest", "linears", "bert.pooler.dense"), None),
    "layers that are a list": (("manifest", "linears"), ["bert.pooler.dense"]),
    "a manifest that is a list": (("manifest",), []),
    "a million layers": (("config", "num_hidden_layers"), 10**6),
    "an endless width": (("config", "intermediate_size"), 2**40),
    "a width of a text": (("config", "hidden_size"), "32"),
    "a width that is larger than what is stored": (("config", "hidden_size"), 2**20),
    "a vocabulary that is larger than what is stored": (("config", "vocab_size"), 2**24),
    "no width": (("config", "hidden_size"), 0),
    "a width below 0": (("config", "hidden_size"), -32),
    "a model type that is a number": (("config", "model_type"), 3),
    "labels that are a number": (("config", "id2label"), 3),
    "shapes that are a text": (("config", "quantization_config"), {"quant_method": "lit_compress", "shapes": "x"}),
    "a configuration that is not JSON": (("config",), "{"),
    "a configuration that is a list": (("config",), "[]"),
    "a configuration without an end": (("config",), "[" * 10**5),
    "no configuration": (("config",), None),
    "an architecture that is a number": (("architecture",), 3),
    "a tokenizer that is a list": (("tokenizer",), ["x"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_one_line(name, trained, tmp_path):
    checkpoint = load_checkpoint(trained[1])
    keys, value = HOSTILE[name]
    change(checkpoint, *keys, value=value)
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, limits[1]))  # asking for more is an error of another kind
        message = error_of(from_source, checkpoint=str(tmp_path / "hostile.ckpt"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert message.startswith("checkpoint: ")
    assert len(message) < 600


def expanded(weight):
    return torch.zeros(1).expand(weight.shape)


@pytest.mark.parametrize(
    "make",
    [
        expanded,
        lambda weight: weight.to("meta"),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.tolist(),
        lambda weight: None,
        lambda weight: weight[:1],
    ],
)
def test_weights_that_are_none_are_one_line(make, trained, tmp_path):
    checkpoint = load_checkpoint(trained[1])
    name = f"student.{TABLE}.weight"
    checkpoint["state_dict"][name] = make(checkpoint["state_dict"][name])
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    assert error_of(from_source, checkpoint=str(tmp_path / "hostile.ckpt")).startswith("checkpoint: ")


def test_weights_that_share_what_is_stored_are_no_large_model(trained):
    checkpoint = load_checkpoint(trained[1])
    change(checkpoint, "config", "num_hidden_layers", value=200)
    weights = checkpoint["state_dict"]
    for name in [name for name in weights if ".layer.0." in name]:
        weights |= {name.replace(".layer.0.", f".layer.{number}."): weights[name] for number in range(200)}
    assert "elements" in error_of(student_from_checkpoint, checkpoint)


def test_weights_without_names_are_one_line(trained):
    checkpoint = load_checkpoint(trained[1]) | {"state_dict": [1, 2]}
    assert "weights by name" in error_of(student_from_checkpoint, checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_exported(value, trained, tmp_path):
    checkpoint = load_checkpoint(trained[1])
    weight = checkpoint["state_dict"]["student.bert.pooler.dense.bias"] = torch.zeros(32)
    weight[3] = value
    torch.save(checkpoint, tmp_path / "diverged.ckpt")
    message = error_of(export, checkpoint=str(tmp_path / "diverged.ckpt"), output=str(tmp_path / "out"))
    assert "'bert.pooler.dense.bias' has NaN or infinite values" in message
    assert not (tmp_path / "out").exists()
    model = student_from_checkpoint(checkpoint)
    assert "'bert.pooler.dense.bias'" in error_of(save_folder, model, None, tmp_path / "out")
    fold(model).save_pretrained(tmp_path / "model")
    message = error_of(export, model=str(tmp_path / "model"), output=str(tmp_path / "out"))
    assert "'bert.pooler.dense.bias'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["manifest", "config", "state_dict"])
def test_nothing_in_a_description_is_executed(place, trained, tmp_path):
    checkpoint = load_checkpoint(trained[1])
    bomb = Malicious(str(tmp_path / "executed"))
    if place == "state_dict":
        checkpoint["state_dict"]["student.bomb"] = bomb
    else:
        change(checkpoint, place, value=bomb)
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    assert "evil.ckpt" in error_of(from_source, checkpoint=str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "executed").exists()


def test_code_that_a_configuration_names_is_not_executed(trained, tmp_path):
    checkpoint = load_checkpoint(trained[1])
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass Evil: pass\n")
    change(checkpoint, "config", "auto_map", value={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    change(checkpoint, "config", "_name_or_path", value=str(tmp_path))
    student_from_checkpoint(checkpoint)
    assert not (tmp_path / "executed").exists()
