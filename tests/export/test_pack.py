import copy
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from contracts.training import data, differences, fit, student
from models.families import FAMILIES, batch, build
from models.packing import wide
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.export import fold, from_source, pack, save_folder, save_packed, write
from lit_compress.export.activation_ranges import Ranges
from lit_compress.export.command import export
from lit_compress.export.pack import packed_bytes
from lit_compress.functional import nm_mask, unstructured_mask
from lit_compress.functional.masks import expand_blocks
from lit_compress.models import layer_linears
from lit_compress.models.drop_layers import drop_layers
from lit_compress.models.folder import load_whole_model
from lit_compress.models.fused import unfuse
from lit_compress.models.heads_and_neurons import remove_heads, remove_neurons
from lit_compress.models.hf_quantizer import LitCompressConfig, LitCompressQuantizer
from lit_compress.models.pack import choose_layout
from lit_compress.models.packed import packed_linears, packed_of
from lit_compress.models.shapes import update_config
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.nn.packed import PackedLinear
from lit_compress.ops.dispatch import forced
from lit_compress.strategies import LowRankEmbedding, MagnitudePruning, QuantAwareTraining, StructuredPruning

# What docs/packing.md says of the difference of hidden states after three layers, as a fraction of their norm.
WEIGHTS_ONLY = {"int8": 0.03, "fp8": 0.1}
ROUNDED_INPUTS = {"int8": 0.04, "fp8": 0.13}
FILES = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "compression.json", "README.md"),
    ".lit_compress.json",
}


@pytest.fixture
def tokenizer(tiny_teacher):
    return AutoTokenizer.from_pretrained(tiny_teacher)


@pytest.fixture
def model(tiny_teacher):
    return AutoModelForSequenceClassification.from_pretrained(tiny_teacher)


@torch.no_grad()
def logits(model, inputs=None):
    """Of packed linears one by one, in Transformers' own code: fused layers equal that up to rounding."""
    return unfuse(model)(**(inputs or batch())).logits


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    return save_packed(pack(model), tokenizer, tmp_path / "packed")


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_outputs_are_the_folded_models_within_the_documented_error(family, dtype):
    # Weights with which every linear keeps the size of its input: smaller ones leave only what passes them by.
    size = {"dim": 64, "hidden_dim": 128} if family == "distilbert" else {"hidden_size": 64, "intermediate_size": 128}
    folded = build(family, initializer_range=64**-0.5, **size)
    packed, inputs = pack(folded, dtype=dtype), batch(rows=8) | {"output_hidden_states": True}
    with torch.no_grad():
        expected, found = folded(**inputs), packed(**inputs)
        with forced("kernel"):  # inputs are rounded too, as on a GPU
            rounded = packed(**inputs)
    for result, bound in ((found, WEIGHTS_ONLY[dtype]), (rounded, ROUNDED_INPUTS[dtype])):
        assert 0 < relative(result.hidden_states[-1], expected.hidden_states[-1]) < bound
        # Logits are few numbers, and may happen to be small beside what they are sums of.
        assert 0 < relative(result.logits, expected.logits) < 3 * bound


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_packed_saved_and_loaded(family, auto, tokenizer, tmp_path):
    if (family, auto) == ("xlnet", AutoModelForMaskedLM):
        return  # it has no such head
    model = pack(build(family, auto))
    save_packed(model, tokenizer, tmp_path / "out")
    loaded, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    assert len(packed_linears(loaded)) == len(packed_linears(model)) > 0
    # Heads, poolers and projections outside of the layers are left alone.
    assert any(isinstance(module, nn.Linear) for module in loaded.modules())


def test_a_decoder_that_is_tied_stays_tied(tokenizer, tmp_path):
    save_packed(pack(build("bert", AutoModelForMaskedLM)), tokenizer, tmp_path / "out")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "cls.predictions.decoder.weight" not in file.keys()  # noqa: SIM118 (no mapping)


def test_packing_changes_nothing_of_the_model(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    packed = pack(model)
    assert packed is not model
    assert not packed_linears(model)
    assert not hasattr(model.config, "quantization_config")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folder_is_complete(folder, model):
    assert {path.name for path in folder.iterdir()} == FILES
    entry = config(folder)["quantization_config"]
    assert set(entry) == {"quant_method", "shapes", "packed", "checksums"}
    assert entry["shapes"] == {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(entry["checksums"]) == set(file.keys())
    card = (folder / "README.md").read_text()
    assert "packed linears: 12 in int8 (12 dense)" in card
    sizes = packed_bytes(pack(model))
    assert f"{sizes['packed']:,} bytes; in fp32 {sizes['dense']:,}" in card
    assert sizes["dense"] == 2 * 4 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 32 + 64)
    assert sizes["packed"] < 0.4 * sizes["dense"]
    weights = sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())
    assert sizes["packed"] + sizes["rest"] == weights


def test_the_code_of_the_card_runs(folder, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    monkeypatch.chdir(folder)
    exec(code, names)
    assert len(packed_linears(names["model"])) == 12


def test_the_base_model_and_another_head_load(folder, model):
    base = AutoModel.from_pretrained(folder)
    expected = pack(model).bert
    with torch.no_grad():
        assert torch.equal(base(**batch()).last_hidden_state, expected(**batch()).last_hidden_state)
    five = {"id2label": {index: str(index) for index in range(5)}, "ignore_mismatched_sizes": True}
    if transformers.__version__.startswith("5.17."):  # it would continue with two labels where five are meant
        with pytest.raises(UserError, match=r"classifier\..*: its weights have the shape"):
            AutoModelForSequenceClassification.from_pretrained(folder, **five)
    else:
        assert logits(AutoModelForSequenceClassification.from_pretrained(folder, **five)).shape == (2, 5)


def test_a_plain_tensor_of_another_shape_is_refused_whatever_transformers_does(model):
    hook = LitCompressQuantizer(LitCompressConfig(shapes={}))
    hook._process_model_before_weight_loading(model)
    model.classifier.weight = nn.Parameter(torch.zeros(3, 32))
    with pytest.raises(
        UserError, match=r"classifier.weight: its weights have the shape \[3, 32\] and config.json says"
    ):
        hook.postprocess_model(model)


def test_a_folder_of_a_base_model_loads_under_a_head(model, tokenizer, tmp_path):
    save_packed(pack(model.bert), tokenizer, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert len(packed_linears(loaded)) == 12


def test_a_packed_encoder_trains_its_head_and_saves_it_again(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    before = logits(model.eval())
    loss = model.train()(**batch(), labels=torch.tensor([0, 1])).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    after = logits(model.eval())
    assert not torch.equal(before, after)
    model.save_pretrained(tmp_path / "again")
    # The checksums were those of another folder; shapes and bounds are checked all the same.
    assert "checksums" not in config(tmp_path / "again")["quantization_config"]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), after)


def test_half_precision_leaves_packed_buffers_alone(folder):
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    for linear in packed_linears(loaded).values():
        assert {linear.values.dtype, linear.w_scale.dtype, linear.bias.dtype} == {torch.int8, torch.float32}
    assert logits(loaded).dtype == torch.bfloat16


def masked(model, mask_of):
    with torch.no_grad():
        for name, linear in model.named_modules():
            if isinstance(linear, nn.Linear) and ".layer." in name:
                linear.weight *= mask_of(linear.weight)
    return model


def every(weight, block, step):
    """Of each row of blocks every ``step``-th, beginning with another one in each."""
    rows, columns = weight.shape[0] // block[0], weight.shape[1] // block[1]
    return expand_blocks((torch.arange(columns) - torch.arange(rows).unsqueeze(1)) % step == 0, block)


MASKS = {
    "tall_blocks": lambda w: every(w, (128, 32), 4),
    "blocks": lambda w: every(w, (64, 64), 4),
    "bitmap": lambda w: unstructured_mask(w.abs(), 0.8),
    "two_four": lambda w: nm_mask(w.abs(), 2, 4),
    "dense": torch.ones_like,
}


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("format", MASKS)
def test_auto_finds_the_format_and_the_file_keeps_it(format, dtype, tokenizer, tmp_path):
    size = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
    model = pack(masked(build("bert", **size), MASKS[format]), dtype=dtype)
    assert {linear.format for linear in packed_linears(model).values()} == {format}
    save_packed(model, tokenizer, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    # Saved by hand, as it runs, it is the same file.
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded), logits(model))
    assert {linear.format for linear in packed_linears(loaded).values()} == {format}
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(value.view(torch.uint8), second[name].view(torch.uint8)) for name, value in first.items())


def test_blocks_are_only_worth_it_with_enough_zeros():
    weight = torch.ones(256, 512, dtype=torch.int8)
    kept = 5 * torch.arange(32).reshape(2, 16) % 16
    for count, expected in ((14, "dense"), (8, "dense"), (4, "tall_blocks")):
        assert choose_layout(weight * expand_blocks(kept < count, (128, 32))) == expected
    # A matrix that does not fill one tile would mostly store rows that are none.
    assert choose_layout(torch.eye(16, 256, dtype=torch.int8)) == "bitmap"
    assert choose_layout(torch.eye(5, 7, dtype=torch.int8)) == "bitmap"


def test_a_format_for_all_is_taken_or_refused(model):
    assert {linear.format for linear in packed_linears(pack(model, "bitmap")).values()} == {"bitmap"}
    with pytest.raises(UserError, match=r"--layout: two_four does not fit 'bert.encoder.layer.0.attention.self.query'"):
        pack(model, "two_four")
    with pytest.raises(UserError, match="--layout: 'csr' must be one of auto, dense"):
        pack(model, "csr")
    with pytest.raises(UserError, match="--dtype: 'int4' must be one of int8, fp8"):
        pack(model, dtype="int4")
    with pytest.raises(UserError, match="packed already"):
        pack(pack(model))
    with pytest.raises(UserError, match="ranges: 'nowhere' is not a linear of this model"):
        pack(model, ranges={"nowhere": Ranges()})


CASES = {
    "int8": [QuantAwareTraining(start="0%")],
    "int4 per tensor": [QuantAwareTraining(start="0%", weight_bits=4, per_channel=False, activations="int8")],
    "frozen": [QuantAwareTraining(start="0%", freeze_observers="50%", activations="dynamic")],
    "outputs": [QuantAwareTraining(start="0%", outputs=["*.query"])],
    "pruned": [MagnitudePruning(end="50%"), QuantAwareTraining(start="50%")],
    "smaller": [StructuredPruning(heads=1, neurons=24, pruning_steps=1, end="0%"), QuantAwareTraining(start="50%")],
    "uneven": [StructuredPruning(neurons=0.3, scope="global", pruning_steps=1, end="0%")],
    "factorized": [LowRankEmbedding(rank=6), QuantAwareTraining(start="0%")],
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_form_is_packed_on_its_own_grid(case, tiny_teacher, tiny_data, tokenizer, tmp_path):
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), copy.deepcopy(CASES[case]), tmp_path / "run", max_epochs=1)
    trained = module.student.eval()
    folded, packed = fold(trained), pack(trained)
    assert len(packed_linears(packed)) == 12
    for name, linear in packed_linears(packed).items():
        weight = folded.bert.get_submodule(name).weight
        if case != "uneven":
            # The integers of the training form, to the last bit.
            assert torch.equal(linear.dequantized(), weight)
            assert linear.values.abs().max() <= (7 if case == "int4 per tensor" else 127)
        assert (linear.input_scale is None) == (case in ("frozen", "uneven"))
        assert (linear.output_scale is not None) == (case == "outputs" and name.endswith("query"))
    save_packed(packed, tokenizer, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(packed))
    if case != "uneven":
        assert relative(logits(packed), logits(folded)) < 1e-5
    assert any(isinstance(module, FactorizedEmbedding) for module in loaded.modules()) == (case == "factorized")
    assert ("neurons" in config(tmp_path / "out")["quantization_config"]["shapes"]) == (case == "uneven")


def test_uneven_heads_and_neurons_survive(tokenizer, tmp_path):
    model = build("roberta")
    remove_heads(model, 1, torch.tensor([True, False]))
    remove_neurons(model, 2, torch.arange(24) < 17)
    update_config(model)
    packed = pack(model)
    save_packed(packed, tokenizer, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(packed))
    assert relative(logits(loaded), logits(model)) < 0.02


def test_scales_of_fp8_reach_the_same_range(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [QuantAwareTraining(start="0%")], tmp_path / "run", max_epochs=1)
    int8, fp8 = (packed_linears(pack(module.student, dtype=dtype)) for dtype in ("int8", "fp8"))
    for name, linear in fp8.items():
        assert (linear.input_scale * 448).item() == pytest.approx((int8[name].input_scale * 127).item())
        # Not on the integer grid: fp8 has its own.
        assert linear.dequantized().abs().amax(1).allclose(int8[name].dequantized().abs().amax(1), rtol=0.01)


def test_an_exported_folder_packs_like_its_student(tiny_teacher, tiny_data, tokenizer, tmp_path):
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [QuantAwareTraining(start="0%")], tmp_path / "run", max_epochs=1)
    save_folder(module.student.eval(), tokenizer, tmp_path / "exported")
    write(from_source(model=str(tmp_path / "exported")), tmp_path / "packed", "packed")
    packed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    one, other = packed.state_dict(), pack(module.student).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def damaged(folder, tmp_path, change):
    copied = tmp_path / "damaged"
    shutil.copytree(folder, copied)
    change(copied)
    return copied


def rewrite_config(change):
    def apply(folder):
        text = config(folder)
        change(text["quantization_config"])
        (folder / "config.json").write_text(json.dumps(text))

    return apply


def rewrite_weights(change, forget_checksums=True):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if forget_checksums:
            rewrite_config(lambda entry: entry.pop("checksums"))(folder)

    return apply


def flip(folder, position):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(content))


QUERY = "bert.encoder.layer.0.attention.self.query"
NAME = QUERY.removeprefix("bert.")
DAMAGES = {
    "a flipped byte": (lambda f: flip(f, -1), "tensor '.*' is not what was written"),
    "a flipped byte in the middle": (lambda f: flip(f, -5000), "tensor '.*' is not what was written"),
    "a file cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "damaged or no safetensors file",
    ),
    "another head": (
        rewrite_weights(lambda t: t["classifier.bias"].add_(1), forget_checksums=False),
        "tensor 'classifier.bias' is not what was written",
    ),
    "a tensor too few": (rewrite_weights(lambda t: t.pop(f"{QUERY}.w_scale")), "w_scale is not in the weights"),
    "a wrong shape": (
        rewrite_weights(lambda t: t.update({f"{QUERY}.values": torch.zeros(32, 16, dtype=torch.int8)})),
        r"query.values is stored as I8 \[32, 16\] and config.json.* says I8 \[32, 32\]",
    ),
    "a wrong type": (
        rewrite_weights(lambda t: t.update({f"{QUERY}.values": torch.zeros(32, 32)})),
        r"query.values is stored as F32 \[32, 32\] and config.json.* says I8 \[32, 32\]",
    ),
    "minus 128": (
        rewrite_weights(lambda t: t[f"{QUERY}.values"].fill_(-128)),
        f"{NAME}: the packed weight is damaged: values hold",
    ),
    "a scale of 0": (rewrite_weights(lambda t: t[f"{QUERY}.w_scale"].zero_()), "w_scale is not above 0"),
    "an unknown name": (rewrite_config(lambda e: e["packed"].update(x={})), "packed: 'x' is not a linear of BertModel"),
    "an unknown format": (
        rewrite_config(lambda e: e["packed"][NAME].update(format="csr")),
        f"'{NAME}' is 'csr' in 'int8' and must be one of",
    ),
    "another shape": (
        rewrite_config(lambda e: e["packed"][NAME].update(shape=[32, 64])),
        rf"'{NAME}' has the shape \[32, 64\], and in this model it is \[32, 32\]",
    ),
    "a shape beyond all memory": (
        rewrite_config(lambda e: e["packed"][NAME].update(shape=[10**30, 10**30])),
        "and in this model it is",
    ),
    "no bias": (rewrite_config(lambda e: e["packed"][NAME].update(bias=False)), "with bias in one place and without"),
    "no mapping": (rewrite_config(lambda e: e.update(packed=[])), "packed: is list and must be a mapping"),
    "no checksums": (rewrite_config(lambda e: e.update(checksums=3)), "checksums: is int and must be a mapping"),
    "a checksum too few": (rewrite_config(lambda e: e["checksums"].popitem()), "has no checksum"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_refused_before_anything_runs(case, folder, tmp_path, monkeypatch):
    change, words = DAMAGES[case]
    monkeypatch.setattr(PackedLinear, "forward", lambda *_: pytest.fail("it ran"))
    with pytest.raises(UserError, match=words) as caught:
        AutoModelForSequenceClassification.from_pretrained(damaged(folder, tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format", "buffer", "change", "words"),
    [
        ("tall_blocks", "columns", lambda t: t.fill_(99), "a block that is not one of the 4"),
        ("tall_blocks", "offsets", lambda t: t.add_(1), "offsets do not divide"),
        ("bitmap", "bits", lambda t: t.zero_(), "positions and it has"),
        ("two_four", "index", lambda t: t.zero_(), "no first and second position"),
    ],
)
def test_an_index_out_of_range_is_refused(format, buffer, change, words, tokenizer, tmp_path):
    model = masked(build("bert", hidden_size=128, intermediate_size=256, num_hidden_layers=1), MASKS[format])
    folder = save_packed(pack(model, format), tokenizer, tmp_path / "packed")
    broken = damaged(folder, tmp_path, rewrite_weights(lambda t: change(t[f"{QUERY}.{buffer}"])))
    with pytest.raises(UserError, match=f"{NAME}: the packed weight is damaged: .*{words}"):
        AutoModelForSequenceClassification.from_pretrained(broken)


def test_a_packed_model_keeps_its_shape(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(UserError, match="a packed model keeps its shape"):
        drop_layers(model, [0])


def test_only_packed_models_are_saved_as_such(model, tokenizer, folder, tmp_path):
    with pytest.raises(UserError, match="no packed linear"):
        save_packed(model, tokenizer, tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite true"):
        save_packed(pack(model), tokenizer, folder)
    save_packed(pack(model), tokenizer, folder, overwrite=True)


@pytest.mark.parametrize("format", ["dense", "tall_blocks", "blocks", "bitmap", "two_four"])
def test_a_packed_folder_holds_what_its_configuration_asks_for(format, tokenizer, tmp_path):
    model = wide()
    with torch.no_grad():
        for linear in layer_linears(model).values():
            linear.weight[:, 64:128] = 0
            if format == "two_four":
                linear.weight.mul_(nm_mask(linear.weight, 2, 4))
    save_packed(pack(model, format), tokenizer, tmp_path / "out")
    loaded = load_whole_model(str(tmp_path / "out"), "--model")
    assert {linear.format for linear in packed_linears(loaded).values()} == {format}

    content = config(tmp_path / "out")
    content["intermediate_size"] = 2**20
    for description in content["quantization_config"]["packed"].values():
        description["shape"] = [2**20 if size == 256 else size for size in description["shape"]]
    (tmp_path / "out" / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^--model: .* describes a model of \d+ elements, and holds \d+"):
        load_whole_model(str(tmp_path / "out"), "--model")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"quant_method": "lit_compress", "packed": {}}, {}),
        ({"quant_method": "lit_compress", "shapes": {}}, None),
        ({"quant_method": "gptq", "packed": {}}, None),
        (None, None),
    ],
)
def test_packed_weights_are_recognised(entry, expected):
    assert packed_of(transformers.BertConfig(**({} if entry is None else {"quantization_config": entry}))) == expected


def test_a_packed_folder_is_no_source_of_another_format(model, tokenizer, tmp_path):
    save_packed(pack(model), tokenizer, tmp_path / "packed")
    with pytest.raises(UserError, match=r"^--model: .*packed already"):
        export(model=str(tmp_path / "packed"), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


_STOCK = """
import sys
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, pipeline

ways = [kind.from_pretrained for kind in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification)]
for way in (*ways, lambda folder: pipeline("text-classification", folder)):
    for folder in sys.argv[1:]:
        try:
            way(folder)
        except Exception as error:
            print("refused", "size" in str(error))
        else:
            print("loaded")
assert "lit_compress" not in sys.modules
"""


@pytest.mark.parametrize("format", ["dense", "bitmap"])
def test_transformers_alone_refuses_it_also_when_it_is_saved_again(format, model, tokenizer, tmp_path):
    folder = save_packed(pack(model, format), tokenizer, tmp_path / "first")
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    again.save_pretrained(tmp_path / "second")
    tokenizer.save_pretrained(tmp_path / "second")
    command = [sys.executable, "-c", _STOCK, str(tmp_path / "first"), str(tmp_path / "second")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused True"] * 8
    second = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    assert differences(dict(again.state_dict()), dict(second.state_dict())) == []


def test_a_folder_of_before_that_goes_on_to_load(model, tokenizer, tmp_path):
    """Earlier folders have no weight that stock Transformers refuses."""
    packed = pack(model)
    folder = save_packed(packed, tokenizer, tmp_path / "packed")
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if value.shape != (1,)}
    names = {f"bert.{name}.weight" for name in packed_linears(packed)}
    assert not names & set(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    content = config(folder)
    sums = content["quantization_config"]["checksums"]
    content["quantization_config"]["checksums"] = {name: value for name, value in sums.items() if name in tensors}
    (folder / "config.json").write_text(json.dumps(content))
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded), logits(packed))
    assert torch.equal(logits(load_whole_model(str(folder), "--model")), logits(packed))
