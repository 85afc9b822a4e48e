import json

import pytest
import torch
from contracts.training import differences
from export.quantized import prune, quantized, tiny_tokenizer
from models.families import FAMILIES, batch, build
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.quantizers import auto

from lit_compress.export import fold, from_source, from_student, write
from lit_compress.models.heads_and_neurons import removable_groups, remove_groups
from lit_compress.models.shapes import update_config
from lit_compress.nn.factorized import FactorizedEmbedding

HEADS = [
    *(AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering),
    AutoModelForMaskedLM,
]


@pytest.fixture
def tokenizer(tmp_path):
    return tiny_tokenizer(tmp_path)


def same(first, second):
    expected = first.state_dict()
    found = second.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head_comes_back_exactly(family, tokenizer, tmp_path):
    for head in HEADS:
        if family == "xlnet" and head is AutoModelForMaskedLM:
            continue
        model = prune(build(family, head))
        write(from_student(model, tokenizer), tmp_path / head.__name__, "sparse")
        loaded, info = head.from_pretrained(tmp_path / head.__name__, output_loading_info=True)
        assert not any(info.values())
        same(model, loaded)
        same(model, from_source(model=str(tmp_path / head.__name__)).model)
        with torch.no_grad():
            assert torch.equal(loaded(**batch())[0], model(**batch())[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"inputs": "uint8", "tables": "table"},
        {"inputs": "dynamic", "tables": "row"},
        {"inputs": "none", "bits": 4},
        {"inputs": "int8", "per_channel": False, "attention": True, "outputs": True},
    ],
)
def test_integers_come_back_exactly_with_their_manifest(settings, tokenizer, tmp_path):
    model = prune(quantized("bert", **settings))
    folded = from_student(model, tokenizer)
    write(folded, tmp_path / "out", "sparse")
    loaded = from_source(model=str(tmp_path / "out"))
    same(fold(model), loaded.model)
    assert loaded.manifest == json.loads(json.dumps(folded.manifest))
    again = tmp_path / "again"
    write(loaded, again, "sparse")
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", again))
    assert differences(first, second) == []


def test_size_follows_density_and_width(tokenizer, tmp_path):
    wide = {"hidden_size": 128, "intermediate_size": 512}

    def size(name, model):
        write(from_student(model, tokenizer), tmp_path / name, "sparse")
        return (tmp_path / name / "model.safetensors").stat().st_size

    def linears(model):
        return sum(p.numel() for n, p in model.named_parameters() if "layer." in n and p.ndim == 2)

    dense = build("bert", **wide)
    count, whole = linears(dense), size("dense", dense)
    half = size("half", prune(build("bert", **wide), 0.5))
    tenth = size("tenth", prune(build("bert", **wide), 0.9))
    assert whole - half == pytest.approx(count * (4 * 0.5 - 1 / 8), rel=0.02)
    assert whole - tenth == pytest.approx(count * (4 * 0.9 - 1 / 8), rel=0.02)
    integers = size("integers", prune(quantized("bert", **wide), 0.9))
    assert tenth - integers == pytest.approx(count * 3 * 0.1, rel=0.2)


def test_other_shapes_come_back(tokenizer, tmp_path):
    model = prune(build("bert"))

    block = removable_groups(model, "neurons", "test")[1]
    remove_groups(model, block, torch.arange(block.count) < 10)
    model.bert.embeddings.word_embeddings = FactorizedEmbedding.from_embedding(model.bert.embeddings.word_embeddings, 5)
    update_config(model)
    write(from_student(model, tokenizer), tmp_path / "out", "sparse")
    same(model, AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"))


def test_a_loaded_model_is_an_ordinary_one(tokenizer, tmp_path):
    model = prune(build("bert"))
    write(from_student(model, tokenizer), tmp_path / "out", "sparse")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    same(model, AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense"))
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    loaded.train()(**batch(), labels=torch.tensor([0, 1])).loss.backward()


def test_transformers_alone_refuses(tokenizer, tmp_path, monkeypatch):
    """What this package wrote must never be taken for random weights by those who do not have it."""
    write(from_student(prune(build("bert")), tokenizer), tmp_path / "out", "sparse")
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, "lit_compress")
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


def test_the_card_names_the_import(tokenizer, tmp_path):
    write(from_student(prune(build("bert")), tokenizer), tmp_path / "out", "sparse")
    assert "import lit_compress" in (tmp_path / "out/README.md").read_text()
