import contextlib
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.families import FAMILIES, batch, build
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lit_compress.errors import UserError
from lit_compress.models.folder import load_whole_model

HEADS = [
    *(AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering),
    *(AutoModelForMaskedLM, AutoModel),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model"
    build("bert").save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def change(folder, name="config.json", **values):
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps(content))


def refused(folder):
    with pytest.raises(UserError) as caught:
        load_whole_model(str(folder), "--model")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--model: ")
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_with_the_head_it_has(family, tmp_path):
    for head in HEADS:
        if family == "xlnet" and head is AutoModelForMaskedLM:
            continue
        model = build(family, head)
        model.save_pretrained(tmp_path / head.__name__)
        loaded = load_whole_model(str(tmp_path / head.__name__), "--model")
        assert type(loaded) is type(model)
        with torch.no_grad():
            assert torch.equal(loaded(**batch())[0], model(**batch())[0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_labels": 10**7}, "num_labels"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"vocab_size": 10**7}, "elements"),
        ({"hidden_size": 2**20, "intermediate_size": 2**20}, "elements"),
        ({"max_position_embeddings": 2**24}, "elements"),
        ({"num_hidden_layers": 50, "intermediate_size": 10000}, "elements"),
        ({"hidden_size": -16}, "describes"),
        ({"hidden_size": "16"}, ""),
        ({"vocab_size": None}, ""),
        ({"num_attention_heads": 0}, ""),
        ({"intermediate_size": 25}, ""),
        ({"num_hidden_layers": 4}, "keys|has no|elements"),
        ({"architectures": ["os"]}, "'os'"),
        ({"architectures": ["PreTrainedModel"]}, ""),
        ({"architectures": ["RobertaForSequenceClassification"]}, "bert"),
        ({"architectures": []}, "name"),
        ({"architectures": ["__class__"]}, ""),
        ({"model_type": "../../x"}, ""),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, ""),
        ({"transformers_weights": "../outside.safetensors"}, "outside"),
        ({"quantization_config": {"quant_method": "lit_compress", "shapes": {"neurons": [10**9] * 3}}}, "neurons"),
        ({"quantization_config": {"quant_method": "lit_compress", "storage": "zip"}}, "zip"),
        ({"quantization_config": {"quant_method": "lit_compress", "storage": "bitmap"}}, "digest"),
        ({"quantization_config": {"quant_method": "lit_compress"}}, "shapes"),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(values, words, copy):
    change(copy, **values)
    said = refused(copy)
    assert any(word in said for word in words.split("|"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        *(
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
            "architectures",
        ),
        *("max_position_embeddings", "type_vocab_size", "quantization_config", "model_type", "id2label", "num_labels"),
        *("layer_norm_eps", "hidden_act", "pad_token_id", "dtype", "transformers_weights", "tie_word_embeddings"),
    ]
)


@settings(max_examples=30)
@given(st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_any_configuration_loads_or_is_one_error(folder, tmp_path_factory, values):
    copy = tmp_path_factory.getbasetemp() / "any-config"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    change(copy, **values)
    with contextlib.suppress(UserError):  # anything else is a crash
        load_whole_model(str(copy), "--model")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 10**5, '{"a": ' * 10**4, "\ufeff{}", "1" * 5000, '{"a": NaN}']
)
def test_a_configuration_that_is_none_is_refused(content, copy):
    (copy / "config.json").write_text(content)
    refused(copy)


def test_files_outside_of_the_folder_are_refused(copy, tmp_path):
    (copy / "model.safetensors").rename(tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "a/../../outside.safetensors", ".."):
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        assert "outside of its folder" in refused(copy)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "missing.safetensors"}}))
    assert "not there" in refused(copy)


def test_only_safetensors_are_read(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, copy / "pytorch_model.bin")
    assert "model.safetensors" in refused(copy)


@pytest.mark.parametrize("length", [0, 5, 100, 5000])
def test_cut_weights_are_refused(length, copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert "damaged" in refused(copy)


def test_a_missing_folder_is_refused(tmp_path):
    assert "not a folder" in refused(tmp_path / "nowhere")
    assert "config.json" in refused(tmp_path)
