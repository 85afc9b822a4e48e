import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.export import fold
from lit_compress.models import drop_layers, load_classifier, load_model, remove_heads, remove_neurons
from lit_compress.models.shapes import apply_shapes, describe_shapes
from lit_compress.nn import FactorizedEmbedding
from lit_compress.tasks import make_task

WORDS = "embeddings.word_embeddings"
INPUTS = {"input_ids": torch.tensor([[2, 7, 8, 9, 3]])}


def smaller(teacher, heads=(1, 2), neurons=(5, 9), rank=6):
    """The tiny teacher with uneven layers and factors for its words."""
    model = load_classifier(str(teacher), ["0", "1"], "model.pretrained")
    for layer in range(2):
        remove_heads(model, layer, torch.arange(2) < heads[layer])
        remove_neurons(model, layer, torch.arange(64) < neurons[layer])
    words = model.get_input_embeddings()
    model.set_input_embeddings(FactorizedEmbedding.from_embedding(words, rank))
    return model


@pytest.fixture
def folder(tmp_path, tiny_teacher):
    fold(smaller(tiny_teacher)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same_weights(first, second):
    second = second.state_dict()
    return all(torch.equal(value, second.pop(name)) for name, value in first.state_dict().items()) and not second


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_shapes_are_what_a_stock_configuration_cannot_say(tiny_teacher):
    shapes = {"heads": [1, 2], "neurons": [5, 9], "ranks": {WORDS: 6}}
    assert describe_shapes(smaller(tiny_teacher)) == shapes
    assert describe_shapes(fold(smaller(tiny_teacher))) == shapes
    even = fold(smaller(tiny_teacher, (1, 1), (9, 9)))
    assert even.config.intermediate_size == 9
    assert describe_shapes(even) == {"heads": [1, 1], "ranks": {WORDS: 6}}


def test_a_stock_model_has_no_shapes(tiny_teacher):
    model = load_classifier(str(tiny_teacher), ["0", "1"], "model.pretrained")
    assert describe_shapes(model) == {}
    assert "quantization_config" not in fold(model).config.to_dict()


def test_a_folder_loads_as_the_model_it_was(folder, tiny_teacher):
    expected = smaller(tiny_teacher).eval()
    for load in (AutoModelForSequenceClassification, BertForSequenceClassification):
        model, info = load.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        assert same_weights(model, expected)
        # Odd shapes lie in memory otherwise than they did, and kernels round the last bit otherwise.
        assert torch.allclose(model(**INPUTS).logits, expected(**INPUTS).logits, atol=1e-6)
    # The encoder alone has other names.
    encoder = AutoModel.from_pretrained(folder)
    assert same_weights(encoder, expected.bert)


def test_a_loaded_model_is_an_ordinary_one(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert not getattr(model, "is_quantized", False)
    model.half().float()
    model(**INPUTS).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    copy.deepcopy(model).save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert describe_shapes(again) == describe_shapes(model)


def test_an_encoder_without_a_head_gets_a_new_one(folder, tmp_path):
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    model = load_classifier(str(tmp_path / "encoder"), ["a", "b", "c"], "model.pretrained")
    assert model.classifier.weight.shape == (3, 32)
    assert describe_shapes(model) == {"heads": [1, 2], "neurons": [5, 9], "ranks": {WORDS: 6}}


def test_a_decoder_tied_to_factors_is_refused(folder):
    with pytest.raises(UserError, match="BertForMaskedLM ties its decoder"):
        load_model(str(folder), make_task("masked_lm"), "model.pretrained")


def test_without_the_import_transformers_refuses_the_weights(folder, tmp_path, tiny_teacher):
    fold(smaller(tiny_teacher, (2, 2), (64, 64))).save_pretrained(tmp_path)  # nothing but factors
    code = (
        "import sys; from transformers import AutoModelForSequenceClassification as A\n"
        "for folder in sys.argv[1:]:\n"
        "    try: A.from_pretrained(folder)\n"
        "    except Exception as error: print('refused', type(error).__name__)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * 2
    assert done.stderr.count("lit_compress") >= 2


HOSTILE = {
    "negative": ({"heads": [-1, 2]}, r"heads of layer 0 is -1 and must be from 1 to 2"),
    "nothing left": ({"neurons": [5, 0]}, r"neurons of layer 1 is 0 and must be from 1 to 64"),
    "huge": ({"neurons": [5, 10**15]}, r"neurons of layer 1 is 1000000000000000 and must be from 1 to 64"),
    "more than stock": ({"heads": [2, 3]}, r"heads of layer 1 is 3 and must be from 1 to 2"),
    "a fraction": ({"heads": [1.5, 1]}, r"heads of layer 0 is 1.5 and must"),
    "not a number": ({"heads": [math.nan, 1]}, r"heads of layer 0 is nan and must"),
    "a truth value": ({"heads": [True, 1]}, r"heads of layer 0 is True and must"),
    "text": ({"neurons": ["5", 5]}, r"neurons of layer 0 is '5' and must"),
    "too few layers": ({"heads": [1]}, r"heads must be a list of 2 numbers"),
    "too many layers": ({"heads": [1] * 10_000}, r"heads must be a list of 2 numbers"),
    "no list": ({"neurons": 5}, r"neurons must be a list of 2 numbers"),
    "an unknown kind": ({"layers": [1]}, r"\['layers'\] is unknown"),
    "no mapping": ([1, 2], r"list is unknown"),
    "nothing": (None, r"NoneType is unknown"),
    "a rank above the width": ({"ranks": {WORDS: 33}}, r"is 33 and must be from 1 to 32"),
    "a huge rank": ({"ranks": {WORDS: 10**12}}, r"is 1000000000000 and must be from 1 to 32"),
    "a negative rank": ({"ranks": {WORDS: -4}}, r"is -4 and must be"),
    "a rank of something else": ({"ranks": {"encoder": 4}}, r"'encoder' is not an embedding of BertModel"),
    "a rank of nothing": ({"ranks": {"": 4}}, r"'' is not an embedding of BertModel"),
    "ranks that are not a mapping": ({"ranks": [4]}, r"ranks must be a mapping"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_shapes_are_one_line_errors(case, folder):
    shapes, message = HOSTILE[case]
    edit(folder, lambda config: config["quantization_config"].update(shapes=shapes))
    for load in (
        AutoModelForSequenceClassification.from_pretrained,
        lambda path: load_classifier(str(path), ["0", "1"], "model.pretrained"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [{"surplus": 1}, {"shapes": {}}, {"shapes": {"heads": [2, 2]}}])
def test_shapes_that_do_not_fit_the_weights_are_errors(entry, folder):
    edit(folder, lambda config: config.update(quantization_config={"quant_method": "lit_compress"} | entry))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_classifier(str(folder), ["0", "1"], "model.pretrained")
    assert "\n" not in str(caught.value)


def test_shapes_follow_when_layers_are_dropped(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    drop_layers(model, [1])
    assert model.config.intermediate_size == 9  # what was uneven is even now
    assert model.config.quantization_config["shapes"] == {"ranks": {WORDS: 6}}
    fold(model).save_pretrained(tmp_path / "dropped")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dropped")
    assert same_weights(again, model)
    assert torch.allclose(again(**INPUTS).logits, model(**INPUTS).logits, atol=1e-6)


def test_rosita_in_numbers():
    # Arc C: the lowest 8 of BERT-base's 12 layers, 2 heads and 512 neurons in each, rank 128.
    with torch.device("meta"):
        base = BertForSequenceClassification(BertConfig(num_labels=2))
        small = BertForSequenceClassification(BertConfig(num_labels=2, num_hidden_layers=8))
        apply_shapes(small, {"heads": [2] * 8, "neurons": [512] * 8, "ranks": {WORDS: 128}})
    before, after = (sum(p.numel() for p in model.parameters()) for model in (base, small))
    assert (before, after) == (109_483_778, 14_474_754)
    assert round(before / after, 3) == 7.564
