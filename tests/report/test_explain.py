import json

import pytest
import torch
from models.families import build
from models.packing import wide
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import pack, save_packed
from lit_compress.models import layer_linears
from lit_compress.models.fused import fuse
from lit_compress.ops.dispatch import forced
from lit_compress.report.explain import explain, explanation


@pytest.fixture
def packed_folder(tmp_path, tiny_teacher):
    model = wide(num_hidden_layers=3)
    for linear in layer_linears(model).values():
        linear.weight.data[:, 32:] = 0
    save_packed(pack(model, "tall_blocks"), AutoTokenizer.from_pretrained(tiny_teacher), tmp_path / "packed")
    return tmp_path / "packed"


def test_every_layer_is_explained(packed_folder, tmp_path, capsys):
    for tokens in (64, 4096):  # the second replaces the first
        explain(str(packed_folder), tokens=tokens, device="h200", output=str(tmp_path / "facts.json"))
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["device"], facts["tokens"], facts["fused_layers"]) == ("NVIDIA H200", 4096, 3)
    assert facts["gain"] == pytest.approx(facts["dense_us"] / facts["chosen_us"])
    for index, layer in enumerate(facts["layers"]):
        assert (layer["layer"], layer["fused"], layer["launches"]) == (index, True, 9)
        assert [product["name"] for product in layer["products"]] == ["qkv", "out", "up", "down"]
        qkv = layer["products"][0]
        assert (qkv["outputs"], qkv["inputs"], qkv["format"], qkv["tile"]) == (384, 128, "tall_blocks", "128 x 32")
        assert qkv["bytes"] >= 3 * 128 * 128  # a chunk of four blocks for each tile
        assert qkv["source"] == "derived"
    for words in ("0-2", "int8 tall_blocks", "of 128 x 32", "derived, not measured", "3 of 3 layers"):
        assert words in printed


def test_a_cpu_has_no_times_and_claims_no_gain(packed_folder, capsys):
    explain(str(packed_folder), device="cpu")
    printed = capsys.readouterr().out
    assert "dense" in printed
    assert "[1] no kernels for this device" in printed
    assert "gain" not in printed
    facts = explanation(AutoModelForSequenceClassification.from_pretrained(packed_folder), 16, "cpu")
    assert facts["gain"] is None
    assert {product["choice"] for layer in facts["layers"] for product in layer["products"]} == {"dense"}


def test_what_is_forced_is_said(packed_folder):
    model = AutoModelForSequenceClassification.from_pretrained(packed_folder)
    with forced("reference"):
        facts = explanation(model, 16, "NVIDIA H200")
    assert {product["choice"] for layer in facts["layers"] for product in layer["products"]} == {"reference"}
    assert facts["gain"] is None


def test_layers_that_stay_plain_say_why():
    facts = explanation(fuse(build("deberta-v2", conv_kernel_size=3)), 16, "cpu")
    assert facts["fused_layers"] == 0
    assert {layer["reason"] for layer in facts["layers"]} == {
        "a convolution after the first layer reads the tokens around each"
    }
    assert json.loads(json.dumps(facts)) == facts


def test_a_folder_that_is_not_packed(tiny_teacher, capsys):
    explain(str(tiny_teacher), device="cpu")
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 of 2 layers" in printed
    assert "lit_compress export --to packed" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h2000"}, "--device: 'h2000' is not one of h200, h100, a100, l4, cpu"),
        ({"tokens": 0}, "--tokens: 0 must be 1 or more"),
        ({"model": "./nothing"}, "--model: './nothing'"),
    ],
)
def test_wrong_options(options, message, packed_folder):
    with pytest.raises(UserError, match=message):
        explain(**({"model": str(packed_folder)} | options))


def test_the_command(packed_folder, tmp_path, capsys):
    main(
        ["explain", str(packed_folder), "--tokens", "64", "--device", "a100", "--output", str(tmp_path / "facts.json")]
    )
    assert json.loads((tmp_path / "facts.json").read_text())["device"] == "NVIDIA A100-SXM4-80GB"
    assert "A100" in capsys.readouterr().out
    assert not torch.is_inference_mode_enabled()


def test_the_table_fits_a_window(packed_folder, capsys, monkeypatch):
    monkeypatch.setattr("lit_compress.report.explain._WIDTH", 80)
    explain(str(packed_folder), device="h200")
    table = capsys.readouterr().out.partition(" of 3 layers")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    for word in ("launches", "product", "kernel", "dense", "runs", "0-2", "128 x"):
        assert word in table
