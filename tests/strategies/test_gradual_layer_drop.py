import pytest
import torch
from contracts.training import STEPS, data, fit, student
from lightning.pytorch import Callback
from models.families import build
from transformers import AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.export import fold, load_checkpoint, save_folder
from lit_compress.models import encoder_layers
from lit_compress.nn.gates import gated_layers, layer_gate
from lit_compress.strategies import GradualLayerDropping


class Watch(Callback):
    """How many layers are open when a step begins, and how far the layers have moved."""

    def __init__(self):
        self.open = []

    def on_train_batch_start(self, run, module, batch, batch_idx):
        gates = [layer_gate(layer) for layer in encoder_layers(module.student)]
        self.open.append([gate is None or bool(gate) for gate in gates])


@pytest.fixture
def folder(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    build("bert", num_hidden_layers=6, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"drop": 4, "end": "100%"}, [6, 6, 5, 5, 4, 4, 3, 3]),
        ({"drop": 2, "start": "2 steps", "end": "50%"}, [6, 6, 6, 5, 4, 4, 4, 4]),
        ({"drop": 5, "start": "0%", "end": "0%"}, [1] * 8),
        ({"drop": 1, "end": "1 epochs"}, [6, 6, 6, 6, 5, 5, 5, 5]),
        ({"drop": 3, "start": "5 steps", "end": "5 steps"}, [6, 6, 6, 6, 6, 3, 3, 3]),
    ],
)
def test_layers_close_from_the_top(options, left, folder, tiny_data, tmp_path):
    watch, module = Watch(), student(folder, folder)
    fit(module, data(tiny_data, folder), [GradualLayerDropping(**options), watch], tmp_path / "run")
    assert watch.open == [[True] * count + [False] * (6 - count) for count in left]
    assert len(list(gated_layers(module.student))) == options["drop"]
    assert fold(module.student).config.num_hidden_layers == 6 - options["drop"]


def test_a_closed_layer_learns_nothing_more(folder, tiny_data, tmp_path):
    module = student(folder)
    fit(module, data(tiny_data, folder), [GradualLayerDropping(drop=1, end="0%")], tmp_path / "run")
    states = [load_checkpoint(tmp_path / "run" / f"step={step}.ckpt")["state_dict"] for step in (1, STEPS)]
    name = "student.bert.encoder.layer.{}.output.dense.bias"  # which has no decay
    assert torch.equal(states[0][name.format(5)], states[1][name.format(5)])
    assert not torch.equal(states[0][name.format(4)], states[1][name.format(4)])


def test_the_folder_says_what_is_left(folder, tiny_data, tmp_path):
    module, datamodule = student(folder), data(tiny_data, folder)
    fit(module, datamodule, [GradualLayerDropping(drop=4)], tmp_path / "run")
    saved = save_folder(module.student, datamodule.tokenizer, tmp_path / "model")
    again = student(saved)
    assert len(encoder_layers(again.student)) == 2
    # The next stage closes layers of its own.
    fit(again, datamodule, [GradualLayerDropping(drop=1)], tmp_path / "next")
    assert fold(again.student).config.num_hidden_layers == 1


def test_gates_count_optimizer_steps(folder, tiny_data, tmp_path):
    watch, module = Watch(), student(folder)
    datamodule = data(tiny_data, folder, batch_size=4)
    strategies = [GradualLayerDropping(drop=2, end="50%"), watch]
    fit(module, datamodule, strategies, tmp_path / "run", accumulate_grad_batches=4)
    assert [sum(gates) for gates in watch.open[::4]] == [6, 6, 5, 5, 4, 4, 4, 4]


def test_a_fraction_of_the_layers_closes(folder, tiny_data, tmp_path):
    watch, module = Watch(), student(folder)
    fit(module, data(tiny_data, folder), [GradualLayerDropping(drop=0.3333, end="50%"), watch], tmp_path / "run")
    assert sum(watch.open[-1]) == 4
    assert fold(module.student).config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 0}, "drop: 0 must be a whole number of 1 or more, or a fraction"),
        ({"drop": 1, "end": "soon"}, "end: 'soon' is not a duration"),
        ({"drop": 1, "start": "50%", "end": "40%"}, "end: '40%' comes before start '50%'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=rf"^GradualLayerDropping\.{message}"):
        GradualLayerDropping(**options)
