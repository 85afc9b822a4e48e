import pytest
import torch
from contracts.training import data, fit, student
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.nn import compressible_layers
from lit_compress.strategies import PatternLock

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def one_sparse_layer(tiny_teacher, tmp_path):
    """A model whose only zeros are in one matrix."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        model.get_submodule(QUERY).weight[:, ::2] = 0
    model.save_pretrained(tmp_path / "sparse")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "sparse")
    return tmp_path / "sparse"


def test_zeros_are_locked_where_they_are(one_sparse_layer, tiny_data, tmp_path):
    module = student(one_sparse_layer)
    fit(module, data(tiny_data, one_sparse_layer), [PatternLock()], tmp_path / "run")
    for name, layer in compressible_layers(module.student):
        expected = torch.ones_like(layer.weight_mask)
        if name == QUERY:
            expected[:, ::2] = False
        assert torch.equal(layer.weight_mask, expected)
        assert torch.equal(layer.weight != 0, expected)


def test_targets_limit_what_is_locked(one_sparse_layer, tiny_data, tmp_path):
    module = student(one_sparse_layer)
    fit(module, data(tiny_data, one_sparse_layer), [PatternLock(targets=["*.query"])], tmp_path / "run")
    assert [name for name, _ in compressible_layers(module.student)] == [QUERY, QUERY.replace("0", "1")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": ["*.key"]}, ["PatternLock.targets", "zeros", "model.pretrained"]),
        ({"ignore": ["*.layer.0.*"]}, ["PatternLock.targets", "zeros"]),
        ({"targets": ["*.nothing"]}, ["PatternLock.targets", "'*.nothing'"]),
        ({"ignore": ["*.nothing"]}, ["PatternLock.ignore", "'*.nothing'"]),
        ({"targets": []}, ["PatternLock.targets"]),
    ],
)
def test_a_lock_that_locks_nothing_is_an_error(arguments, words, one_sparse_layer, tiny_data, tmp_path):
    with pytest.raises(UserError) as caught:
        fit(student(one_sparse_layer), data(tiny_data, one_sparse_layer), [PatternLock(**arguments)], tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not list((tmp_path / "run").rglob("*.ckpt"))
