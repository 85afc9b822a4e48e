import pytest
import torch
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from lit_compress.errors import UserError
from lit_compress.nn import (
    DynamicTokenQuantizer,
    MovingAverageQuantizer,
    attention_quantizers,
    compressible_layers,
    compressible_tables,
)
from lit_compress.strategies import QuantAwareTraining


class Watch(Callback):
    """Whether weights and inputs are quantized, and observed, in the forward pass of each step."""

    def __init__(self):
        self.states, self.scales = [], []

    def on_before_backward(self, run, module, loss):
        layers = [layer for _, layer in compressible_layers(module.student)]
        quantizers = [q for layer in layers for q in (layer.weight_quantizer, layer.input_quantizer) if q is not None]
        (state,) = {(q.enabled, q.observing) for q in quantizers}
        self.states.append(state)
        self.scales.append(torch.cat([layer.weight_quantizer.scale.reshape(-1).clone() for layer in layers]))


@pytest.fixture
def quantize(tiny_teacher, tiny_data, tmp_path):
    def run(**arguments):
        module, watch = student(tiny_teacher), Watch()
        fit(module, data(tiny_data, tiny_teacher), [QuantAwareTraining(**arguments), watch], tmp_path)
        return module, watch

    return run


OFF, OBSERVING, FROZEN = (False, False), (True, True), (True, False)
WINDOWS = {
    "from the start": ({"start": "0%", "freeze_observers": None}, [OBSERVING] * 8),
    "later": ({"start": "50%", "freeze_observers": None}, [OFF] * 4 + [OBSERVING] * 4),
    "frozen": ({"start": "2 steps", "freeze_observers": "5 steps"}, [OFF] * 2 + [OBSERVING] * 3 + [FROZEN] * 3),
    "epochs": ({"start": "0.5 epochs", "freeze_observers": "1 epochs"}, [OFF] * 2 + [OBSERVING] * 2 + [FROZEN] * 4),
    "other units": ({"start": "25%", "freeze_observers": "1.5 epochs"}, [OFF] * 2 + [OBSERVING] * 4 + [FROZEN] * 2),
    "frozen at the end": ({"start": "0%", "freeze_observers": "100%"}, [OBSERVING] * 8),
}


@pytest.mark.parametrize(("arguments", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_switches_follow_the_step(arguments, expected, quantize):
    _, watch = quantize(**arguments)
    assert watch.states == expected


def test_scales_follow_the_weights_until_they_are_frozen(quantize):
    _, watch = quantize(start="2 steps", freeze_observers="5 steps")
    assert not watch.scales[1].any()
    moved = [not torch.equal(watch.scales[step - 1], watch.scales[step]) for step in range(1, STEPS)]
    assert moved == [False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("activations", "kind", "symmetric"),
    [
        ("uint8", MovingAverageQuantizer, False),
        ("int8", MovingAverageQuantizer, True),
        ("dynamic", DynamicTokenQuantizer, None),
        ("none", type(None), None),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_arguments_choose_the_quantizers(activations, kind, symmetric, per_channel, quantize):
    module, _ = quantize(start="0%", activations=activations, per_channel=per_channel, weight_bits=4, momentum=0.5)
    for _, layer in compressible_layers(module.student):
        spec = {"out_features": layer.out_features, "bits": 4, "per_channel": per_channel}
        assert layer.weight_quantizer.spec() == spec
        assert type(layer.input_quantizer) is kind
        if symmetric is not None:
            assert layer.input_quantizer.spec() == {"bits": 8, "symmetric": symmetric, "momentum": 0.5}


WRONG = {
    "frozen before it starts": (
        {"start": "50%", "freeze_observers": "20%"},
        ["QuantAwareTraining.freeze_observers", "'20%'", "'50%'"],
    ),
    "no unit": ({"start": "5"}, ["QuantAwareTraining.start", "'5'", "steps"]),
    "no unit to freeze": ({"freeze_observers": "90"}, ["QuantAwareTraining.freeze_observers", "'90'"]),
    "one bit": ({"weight_bits": 1}, ["QuantAwareTraining.weight_bits", "1"]),
    "sixteen bits": ({"weight_bits": 16}, ["QuantAwareTraining.weight_bits", "16", "8"]),
    "no momentum": ({"momentum": 0.0}, ["QuantAwareTraining.momentum", "0.0"]),
    "momentum above one": ({"momentum": 1.5}, ["QuantAwareTraining.momentum", "1.5"]),
    "unknown embeddings": ({"embeddings": True}, ["QuantAwareTraining.embeddings", "True", "uint8"]),
    "unknown attention": ({"attention": "outputs"}, ["QuantAwareTraining.attention", "'outputs'", "inputs"]),
    "tables of nothing": ({"embedding_targets": ["*word*"]}, ["QuantAwareTraining.embedding_targets", "no effect"]),
    "unknown activations": ({"activations": "int4"}, ["QuantAwareTraining.activations", "'int4'", "uint8"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        QuantAwareTraining(**arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


WRONG_IN_A_RUN = {
    "starts at the end": ({"start": "100%", "freeze_observers": None}, ["QuantAwareTraining.start", "step 8"]),
    "starts after it": ({"start": "3 epochs", "freeze_observers": None}, ["QuantAwareTraining.start", "step 12"]),
    "frozen at once": ({"start": "2 steps", "freeze_observers": "2 steps"}, ["freeze_observers", "step 2"]),
    "frozen after the end": ({"freeze_observers": "9000 steps"}, ["freeze_observers", "9000", "step 8"]),
    "frozen before it starts": ({"start": "6 steps", "freeze_observers": "1 epochs"}, ["step 4", "step 6"]),
    "no output": ({"outputs": ["*.pooler.dense"]}, ["QuantAwareTraining.outputs", "'*.pooler.dense'", "targets"]),
    "no table": (
        {"embeddings": "uint8", "embedding_targets": ["*.nothing"]},
        ["QuantAwareTraining.embedding_targets", "'*.nothing'", "word_embeddings"],
    ),
    "no target": ({"targets": ["*.nothing"]}, ["QuantAwareTraining.targets", "'*.nothing'"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_IN_A_RUN.values(), ids=WRONG_IN_A_RUN)
def test_what_does_not_fit_the_run_is_an_error_before_the_first_step(arguments, words, quantize, tmp_path):
    with pytest.raises(UserError) as caught:
        quantize(**arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not list(tmp_path.rglob("*.ckpt"))


def test_default_targets_of_tables_and_attention(quantize):
    module, _ = quantize(start="2 steps", embeddings="uint8", attention="inputs")
    tables = dict(compressible_tables(module.student))
    kinds = ("word", "position", "token_type")
    assert set(tables) == {f"bert.embeddings.{kind}_embeddings" for kind in kinds}
    assert all(table.weight_quantizer.enabled and table.weight_quantizer.scale > 0 for table in tables.values())
    attention = dict(attention_quantizers(module.student))
    assert list(attention) == [f"bert.encoder.layer.{layer}.attention.self" for layer in range(2)]
    for owner in attention.values():
        sides = {"query": False, "key": True, "probabilities": False, "value": True}
        assert {name: q.symmetric for name, q in owner.named_children()} == sides
        assert all(quantizer.low.isfinite() for quantizer in owner.children())


def test_tables_can_be_chosen(quantize):
    module, _ = quantize(start="0%", embeddings="int8", embedding_targets=["*.position_embeddings"])
    assert [name for name, _ in compressible_tables(module.student)] == ["bert.embeddings.position_embeddings"]


def test_outputs_as_in_prune_once_for_all(quantize):
    module, _ = quantize(start="0%", per_channel=False, outputs=["*.query", "*.key", "*.intermediate.dense"])
    requantized = {n.rpartition("layer.")[2][2:] for n, m in compressible_layers(module.student) if m.output_quantizer}
    assert requantized == {"attention.self.query", "attention.self.key", "intermediate.dense"}
    layers = [layer for _, layer in compressible_layers(module.student) if layer.output_quantizer]
    assert all(layer.output_quantizer.low.isfinite() and not layer.output_quantizer.symmetric for layer in layers)


def test_a_family_without_the_attention_interface_is_refused(tiny_teacher, tiny_data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    config = MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    MPNetModel(config).save_pretrained(tmp_path / "mpnet")
    tokenizer.save_pretrained(tmp_path / "mpnet")
    module = student(tmp_path / "mpnet")
    with pytest.raises(UserError, match=r"QuantAwareTraining\.attention: MPNet.*attention interface"):
        fit(module, data(tiny_data, tiny_teacher), [QuantAwareTraining(attention="inputs")], tmp_path / "run")


def test_a_table_tied_to_a_decoder_is_refused(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    table = module.student.get_input_embeddings()
    module.student.decoder = torch.nn.Linear(32, table.num_embeddings, bias=False)
    module.student.decoder.weight = table.weight
    with pytest.raises(UserError, match=r"embedding_targets: .*word_embeddings' shares its weight with 'decoder'"):
        fit(module, data(tiny_data, tiny_teacher), [QuantAwareTraining(embeddings="uint8")], tmp_path)


def test_names_are_matched_once_per_fit(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    counted = []
    match = QuantAwareTraining._match
    monkeypatch.setattr(QuantAwareTraining, "_match", lambda *given: counted.append(1) or match(*given))
    fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [QuantAwareTraining(start="0%")], tmp_path)
    assert len(counted) < STEPS


def test_two_of_a_kind_on_the_same_layers_are_an_error(tiny_teacher, tiny_data, tmp_path):
    """The second would do nothing, or undo what the first does."""
    strategies = [QuantAwareTraining(start="0%", weight_bits=4), QuantAwareTraining(start="50%", weight_bits=8)]
    with pytest.raises(UserError, match="QuantAwareTraining"):
        fit(student(tiny_teacher), data(tiny_data, tiny_teacher), strategies, tmp_path)


def test_two_of_a_kind_on_different_layers(tiny_teacher, tiny_data, tmp_path):
    module = student(tiny_teacher)
    strategies = [
        QuantAwareTraining(start="0%", weight_bits=4, activations="none", targets=["*.attention.*"]),
        QuantAwareTraining(start="50%", freeze_observers=None, ignore=["*.attention.*"]),
    ]
    fit(module, data(tiny_data, tiny_teacher), strategies, tmp_path)
    bits = {name: layer.weight_quantizer.bits for name, layer in compressible_layers(module.student)}
    assert all(width == (4 if ".attention." in name else 8) for name, width in bits.items())
    assert set(bits.values()) == {4, 8}
