import copy
import json
import re

import pytest
import torch
from contracts.training import data, fit, student
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import lit_compress
from lit_compress.errors import UserError
from lit_compress.export import fold, save_folder
from lit_compress.files import atomic_folder
from lit_compress.models.manifest_file import manifest_with_scales
from lit_compress.nn import compressible_layers, describe
from lit_compress.strategies import MagnitudePruning, QuantAwareTraining

FILES = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "compression.json", "README.md"),
    ".lit_compress.json",
}
CASES = {
    "dense": lambda: [],
    "pruned": lambda: [MagnitudePruning(sparsity=0.75, targets=["*.attention.*"])],
    "int8": lambda: [QuantAwareTraining(start="0%")],
    "int4 per tensor": lambda: [
        QuantAwareTraining(start="0%", weight_bits=4, per_channel=False, activations="int8", freeze_observers=None)
    ],
    "dynamic": lambda: [QuantAwareTraining(start="0%", activations="dynamic")],
    "everything int8": lambda: [
        QuantAwareTraining(start="0%", outputs=["*.query"], embeddings="uint8", attention="all")
    ],
    "pruned and int8": lambda: [MagnitudePruning(), QuantAwareTraining(start="60%", ignore=["*.output.dense"])],
}


@pytest.fixture(scope="session")
def make(tmp_path_factory, tiny_teacher, tiny_data):
    """Each case trained and exported once: the student and its folder."""
    done = {}

    def export(case):
        if case not in done:
            root = tmp_path_factory.mktemp("case")
            module, datamodule = student(tiny_teacher), data(tiny_data, tiny_teacher)
            fit(module, datamodule, CASES[case](), root / "run", max_epochs=1)
            save_folder(module.student.eval(), datamodule.tokenizer, root / "model")
            done[case] = module.student, root / "model"
        return done[case]

    return export


def manifest(folder):
    return json.loads((folder / "compression.json").read_text())


@pytest.fixture
def tokenizer(tiny_teacher):
    return AutoTokenizer.from_pretrained(tiny_teacher)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_complete_and_stock_transformers_loads_it(case, make):
    model, folder = make(case)
    assert {path.name for path in folder.iterdir()} == FILES
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    expected = fold(model).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_the_tokenizer_comes_along(make, tokenizer):
    _, folder = make("dense")
    text = "the film was not very good , but funny !"
    assert AutoTokenizer.from_pretrained(folder)(text).data == tokenizer(text).data


@pytest.mark.parametrize("case", [case for case in CASES if "int" in case or case == "dynamic"])
def test_scales_rebuild_the_weights_exactly(case, make):
    _, folder = make(case)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    quantized = 0
    for name, entry in manifest(folder)["linears"].items():
        if not entry["weight_quantizer"]:
            assert entry["scales"] == {}
            continue
        quantized += 1
        spec, weight = entry["weight_quantizer"]["spec"], model.get_submodule(name).weight
        assert len(entry["scales"]["weight"]) == (weight.shape[0] if spec["per_channel"] else 1)
        scale = torch.tensor(entry["scales"]["weight"]).unsqueeze(1)
        integers = (weight / scale).round()
        assert integers.abs().max() <= 2 ** (spec["bits"] - 1) - 1
        assert torch.equal(integers * scale, weight)
        # Ranges were never frozen: the largest weight of a channel is the largest integer.
        largest = integers.abs().amax(1) if spec["per_channel"] else integers.abs().amax()
        assert (largest == 2 ** (spec["bits"] - 1) - 1).all()
    assert quantized


@pytest.mark.parametrize("case", CASES)
def test_the_manifest_says_what_each_layer_has_become(case, make):
    model, folder = make(case)
    text = manifest(folder)
    assert text["lit_compress"] == lit_compress.__version__
    layers = {name: {k: v for k, v in entry.items() if k not in ("sparsity", "scales")}
              for name, entry in text.get("linears", {}).items()}  # fmt: skip
    assert layers == describe(model).get("linears", {})
    folded = fold(model)
    for name, entry in text.get("linears", {}).items():
        weight = folded.get_submodule(name).weight
        assert entry["sparsity"] == pytest.approx(int((weight == 0).sum()) / weight.numel())
        assert entry["sparsity"] >= 0.75 or not entry["mask"]


def test_scales_of_inputs(make):
    model, folder = make("int8")
    for name, entry in manifest(folder)["linears"].items():
        scale, zero_point = model.get_submodule(name).input_quantizer.qparams()
        assert entry["scales"]["input"] == {"scale": scale.item(), "zero_point": zero_point.item()}
    _, folder = make("dynamic")
    assert {tuple(entry["scales"]) for entry in manifest(folder)["linears"].values()} == {("weight",)}


def test_grids_of_tables_attention_and_outputs(make):
    model, folder = make("everything int8")
    text = manifest(folder)
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, entry in text["embeddings"].items():
        scale, zero_point = entry["scales"]["weight"][0], entry["scales"]["weight_zero_point"]
        integers = (reloaded.get_submodule(name).weight / scale).round() + zero_point
        assert integers.min() >= 0
        assert integers.max() <= 255
        assert torch.allclose((integers - zero_point) * scale, reloaded.get_submodule(name).weight, atol=1e-6)
    assert len(text["embeddings"]) == 3
    for name, entry in text["attention"].items():
        owner = model.get_submodule(f"{name}.matmul_quantizers")
        assert set(entry["scales"]) == {"query", "key", "probabilities", "value", "scores", "context"}
        assert entry["scales"]["key"] == {"scale": owner.key.qparams()[0].item(), "zero_point": 0}
    assert len(text["attention"]) == 2
    assert {"output" in entry["scales"] for name, entry in text["linears"].items() if name.endswith("query")} == {True}
    assert {"output" in entry["scales"] for name, entry in text["linears"].items() if name.endswith("value")} == {False}
    assert "embedding tables: 3" in (folder / "README.md").read_text()


def test_scales_are_those_of_the_current_weights(make):
    model = copy.deepcopy(make("int4 per tensor")[0])  # its ranges were never frozen
    layers = dict(compressible_layers(model))
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.mul_(2)
    for name, entry in manifest_with_scales(model)["linears"].items():
        assert entry["scales"]["weight"] == [pytest.approx(layers[name].weight.abs().max().item() / 7)]


def test_quantizers_that_are_off_leave_weights_alone(tokenizer, tmp_path, tiny_teacher):
    module = student(tiny_teacher)
    QuantAwareTraining().setup(None, module, "validate")
    save_folder(module.student, tokenizer, tmp_path / "model")
    layers = manifest(tmp_path / "model")["linears"]
    assert len(layers) == 12
    assert all(entry["scales"] == {} for entry in layers.values())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert all(
        torch.equal(loaded.get_submodule(name).weight, module.student.get_submodule(name).weight) for name in layers
    )
    assert "quantized" not in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("case", CASES)
def test_saving_changes_nothing_of_the_student(case, make, tokenizer, tmp_path):
    model = copy.deepcopy(make(case)[0])
    with torch.no_grad():
        for _, layer in compressible_layers(model):
            layer.weight.mul_(1.5)  # as a step after the last forward pass would
    # A range that follows the weights is brought up to date by every use, this one included.
    following = {
        f"{name}.weight_quantizer.scale"
        for name, layer in compressible_layers(model)
        if layer.weight_quantizer is not None and layer.weight_quantizer.observing
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    description = describe(model)
    save_folder(model, tokenizer, tmp_path / "out")
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} <= following
    assert describe(model) == description


def test_the_card_counts_what_is_there(make):
    model, folder = make("pruned and int8")
    card = (folder / "README.md").read_text()
    assert f"parameters: {sum(p.numel() for p in fold(model).parameters()):,}" in card
    assert "pruned layers: 12" in card
    assert "- labels: 0, 1\n" in card
    # What rounds to 0 on the grid is not a weight either.
    found = float(re.search(r"mean sparsity ([\d.]+)", card)[1])
    assert found == pytest.approx(sum(e["sparsity"] for e in manifest(folder)["linears"].values()) / 12, abs=1e-4)
    assert "quantized layers: 8;" in card
    dense = (make("dense")[1] / "README.md").read_text()
    assert not [word for word in ("pruned", "quantized", "compressed") if word in dense]


def test_the_code_of_the_card_runs(make, monkeypatch):
    _, folder = make("pruned")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    monkeypatch.chdir(folder)
    exec(code, names)
    assert isinstance(names["model"], BertForSequenceClassification)
    assert names["outputs"].logits.shape == (1, 2)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_existing_folder_is_refused(make, tokenizer, tmp_path):
    model, _ = make("pruned")
    save_folder(model, tokenizer, tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="overwrite") as caught:
        save_folder(model, tokenizer, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_an_existing_folder_is_replaced_when_told_so(make, tokenizer, tmp_path):
    model, folder = make("pruned")
    with atomic_folder(tmp_path / "out") as staging:
        (staging / "stale").write_text("data")
    assert save_folder(model, tokenizer, tmp_path / "out", overwrite=True) == tmp_path / "out"
    assert contents(tmp_path / "out") == contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("culprit", ["model", "tokenizer"])
def test_a_failure_half_way_leaves_everything_as_it_was(
    failure, overwrite, culprit, make, tokenizer, tmp_path, monkeypatch
):
    model, _ = make("pruned")
    if overwrite:
        save_folder(make("dense")[0], tokenizer, tmp_path / "out")
    before = contents(tmp_path)
    kind = type(model) if culprit == "model" else type(tokenizer)
    save = kind.save_pretrained

    def fail(self, *args, **kwargs):
        save(self, *args, **kwargs)
        raise failure

    monkeypatch.setattr(kind, "save_pretrained", fail)
    with pytest.raises(type(failure)):
        save_folder(model, tokenizer, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if overwrite else [])


@pytest.mark.parametrize("parent", ["file", "/proc/no/such"])
def test_a_parent_that_cannot_be_written(parent, make, tokenizer, tmp_path):
    model, _ = make("pruned")
    (tmp_path / "file").write_text("")
    output = tmp_path / parent / "out"
    with pytest.raises(UserError, match="cannot be written") as caught:
        save_folder(model, tokenizer, output)
    assert str(output) in str(caught.value)
    assert "\n" not in str(caught.value)
