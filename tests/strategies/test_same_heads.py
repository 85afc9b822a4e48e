"""Heads of MPNet, whose layers share one table of relative positions and lose the same heads."""

import json

import pytest
import torch
from contracts.errors import error_of
from contracts.training import data, fit, student
from models.families import build
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, MPNetConfig, MPNetModel

from lit_compress.export import fold, from_student, save_folder, write
from lit_compress.functional import head_scores
from lit_compress.models.fused import fused_layers
from lit_compress.nn import compressible_layers
from lit_compress.nn.factorized import factorized_embeddings
from lit_compress.runtimes.engines import open_engine, variants
from lit_compress.runtimes.torch_engine import answers
from lit_compress.strategies import (
    LayerDropping,
    LowRankEmbedding,
    Pruning,
    QuantAwareTraining,
    StructuredPruning,
)

OUTPUT = "mpnet.encoder.layer.{}.attention.attn.o"
TABLE = "mpnet.encoder.relative_attention_bias"


@pytest.fixture
def mpnet(tmp_path, tiny_teacher):
    """The folder of a model of three layers of four heads."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    config = MPNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    MPNetModel(config).save_pretrained(tmp_path / "mpnet")
    tokenizer.save_pretrained(tmp_path / "mpnet")
    return tmp_path / "mpnet"


def pruned(folder, tiny_data, tmp_path, *strategies, **options):
    module = student(folder, **options)
    fit(module, datamodule := data(tiny_data, folder), list(strategies), tmp_path / "fit")
    return module.student.eval(), datamodule


def kept(model):
    return {name: layer.kept_groups for name, layer in compressible_layers(model) if layer.kept_groups is not None}


def inputs():
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model):
    return model(**inputs()).logits


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_the_same_heads_go_from_all_layers(criterion, mpnet, tiny_data, tmp_path):
    strategy = StructuredPruning(heads=2, pruning_steps=2, end="50%", criterion=criterion)
    model, _ = pruned(mpnet, tiny_data, tmp_path, strategy)
    marks = kept(model)
    assert set(marks) == {OUTPUT.format(layer) for layer in range(3)}
    assert len({tuple(mark.tolist()) for mark in marks.values()}) == 1
    assert int(marks[OUTPUT.format(0)].sum()) == 2


def test_the_sum_over_the_layers_says_which(mpnet, tiny_data, tmp_path):
    weights = student(mpnet).student.state_dict()
    strategy = StructuredPruning(heads=1, pruning_steps=1, end="0%", criterion="magnitude")
    model, _ = pruned(mpnet, tiny_data, tmp_path, strategy)
    scores = [head_scores(weights[f"{OUTPUT.format(layer)}.weight"].abs(), 4) for layer in range(3)]
    assert len({int(score.argmax()) for score in scores}) > 1  # or any of them would do
    for mark in kept(model).values():
        assert mark.nonzero().flatten().tolist() == [int(sum(scores).argmax())]


def test_what_is_cut_out_computes_what_was_masked(mpnet, tiny_data, tmp_path):
    model, datamodule = pruned(mpnet, tiny_data, tmp_path, StructuredPruning(heads=2, neurons=16, pruning_steps=2))
    folded = fold(model)
    assert torch.allclose(logits(folded), logits(model), atol=1e-5)
    (mark, *_) = kept(model).values()
    table = model.get_submodule(TABLE).weight
    assert torch.equal(folded.get_submodule(TABLE).weight, table[:, mark])
    folder = save_folder(model, datamodule.tokenizer, tmp_path / "saved")
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["shapes"] == {"heads": [2, 2, 2]}
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(folded))
    # And is where the next training begins.
    again, _ = pruned(folder, tiny_data, tmp_path / "again", StructuredPruning(heads=1, pruning_steps=1, end="0%"))
    assert torch.allclose(logits(fold(again)), logits(again), atol=1e-5)
    assert fold(again).get_submodule(TABLE).embedding_dim == 1


@pytest.mark.parametrize("importance", ["Magnitude", "Fisher"])
def test_other_importances_of_heads(importance, mpnet, tiny_data, tmp_path):
    from lit_compress.strategies import importance as importances

    made = getattr(importances, importance)(**({"gradients": 4} if importance == "Fisher" else {}))
    model, _ = pruned(mpnet, tiny_data, tmp_path, Pruning(made, "heads", sparsity=0.5, schedule="constant"))
    assert len({tuple(mark.tolist()) for mark in kept(model).values()}) == 1
    assert torch.allclose(logits(fold(model)), logits(model), atol=1e-5)


def test_rosita_and_integers(mpnet, tiny_data, tmp_path):
    strategies = [
        LayerDropping(keep=[0, 2]),
        StructuredPruning(heads=2, neurons=0.25, pruning_steps=2, end="50%"),
        LowRankEmbedding(rank=8),
        QuantAwareTraining(start="50%", embeddings="uint8", embedding_targets=[TABLE]),
    ]
    model, datamodule = pruned(mpnet, tiny_data, tmp_path, *strategies, teacher=mpnet)
    folded = fold(model)
    assert [len(mark) for mark in kept(model).values()] == [4, 64, 4, 64]
    assert folded.get_submodule(TABLE).weight.shape == (32, 2)
    assert [table.rank for _, table in factorized_embeddings(folded)] == [8]
    loaded = AutoModelForSequenceClassification.from_pretrained(
        save_folder(model, datamodule.tokenizer, tmp_path / "saved")
    )
    assert torch.equal(logits(loaded), logits(folded))


@pytest.mark.parametrize("to", ["onnx", "onnx-int8", "packed", "sparse"])
def test_every_format_holds_fewer_heads(to, mpnet, tiny_data, tmp_path):
    model, datamodule = pruned(mpnet, tiny_data, tmp_path, StructuredPruning(heads=2, neurons=16, pruning_steps=2))
    folded = fold(model)
    write(from_student(folded, datamodule.tokenizer), tmp_path / "out", to)
    found = answers(open_engine(variants(tmp_path / "out", packed=to == "packed")[0]))(inputs()).logits
    tolerance = 0.2 if to in ("packed", "onnx-int8") else 1e-4
    expected = logits(folded)
    assert (torch.as_tensor(found) - expected).abs().max() < tolerance * expected.abs().max()
    if to == "packed":
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert len(fused_layers(loaded)) == 3


REFUSED = {
    "numbers that differ": (
        {"heads": [2, 1, 2]},
        "StructuredPruning.heads: [2, 1, 2] says different numbers: MPNet adds",
    ),
    "some layers": (
        {"heads": 2, "ignore": ["*.layer.1.*"]},
        "StructuredPruning.targets: ['*.layer.1.*'] leave out layers: MPNet adds",
    ),
    "of all layers": (
        {"heads": 2, "scope": "global"},
        "StructuredPruning.scope: global has no effect on heads: MPNet adds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_heads_in_other_layers_are_refused(case):
    arguments, said = REFUSED[case]
    module = nn.Module()
    module.student = build("mpnet", num_attention_heads=4)
    message = error_of(lambda: StructuredPruning(**arguments).setup(None, module, "validate"))
    assert message.startswith(said)
    assert message.endswith("they can only lose the same heads")


def test_a_list_of_equal_numbers_and_a_global_scope_of_neurons(mpnet, tiny_data, tmp_path):
    options = {"pruning_steps": 1, "end": "0%", "criterion": "magnitude"}
    model, _ = pruned(mpnet, tiny_data, tmp_path / "1", StructuredPruning(heads=[1, 1, 1], **options))
    assert {int(mark.sum()) for mark in kept(model).values()} == {1}
    both = StructuredPruning(heads=0.5, neurons=0.5, scope="global", pruning_steps=1)
    model, _ = pruned(mpnet, tiny_data, tmp_path / "2", both)
    marks = kept(model)
    assert {int(marks[OUTPUT.format(layer)].sum()) for layer in range(3)} == {2}
    assert len({int(mark.sum()) for mark in marks.values() if len(mark) == 64}) > 1
