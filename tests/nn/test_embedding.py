import pytest
import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.functional import asymmetric_qparams, dequantize, quantize
from lit_compress.nn import CompressibleEmbedding, TableQuantizer, compressible_tables, make_tables_compressible


def table(per_row=None, **options):
    layer = CompressibleEmbedding.from_embedding(nn.Embedding(7, 4, **options))
    if per_row is not None:
        layer.weight_quantizer = TableQuantizer(7, per_row)
    return layer


def test_takes_over_the_same_parameter_name_and_options():
    plain = nn.Embedding(7, 4, padding_idx=2).eval()
    layer = CompressibleEmbedding.from_embedding(plain)
    assert layer.weight is plain.weight
    assert list(layer.state_dict()) == ["weight"]
    assert (layer.padding_idx, layer.training) == (2, False)
    ids = torch.tensor([[0, 6], [2, 2]])
    assert torch.equal(layer(ids), plain(ids))


@pytest.mark.parametrize("per_row", [False, True])
def test_rows_are_those_of_the_folded_table(per_row):
    layer, ids = table(per_row), torch.tensor([[0, 6, 6], [2, 1, 3]])
    folded = layer.to_embedding()
    assert type(folded) is nn.Embedding
    assert torch.equal(layer(ids), folded(ids))
    assert not torch.equal(folded.weight, layer.weight)


def test_one_affine_grid_for_a_table():
    layer = table(per_row=False)
    weight = layer.weight.detach()
    scale, zero_point = asymmetric_qparams(weight.min(), weight.max())
    expected = dequantize(quantize(weight, scale, zero_point, 0, 255), scale, zero_point)
    assert torch.equal(layer.effective_weight(), expected)
    assert layer.effective_weight().unique().numel() <= 256


def test_a_symmetric_grid_per_row():
    layer = table(per_row=True)
    with torch.no_grad():
        layer.weight[3] *= 1000
    scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    assert torch.allclose(layer.effective_weight(), (layer.weight / scale).round() * scale)
    assert (layer.effective_weight() - layer.weight).abs()[[0, 1, 2]].max() < 0.02


@pytest.mark.parametrize("per_row", [False, True])
def test_zero_stays_zero(per_row):
    layer = table(per_row)
    with torch.no_grad():
        layer.weight[2] = 0
        layer.weight[:, 1] = 0
    assert not layer.effective_weight()[2].any()
    assert not layer(torch.arange(7))[:, 1].any()


@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_reach_the_rows_that_were_looked_up_and_not_the_padding(per_row):
    layer = table(per_row, padding_idx=2)
    layer(torch.tensor([[1, 5, 2]])).sum().backward()
    reached = [row for row in range(7) if layer.weight.grad[row].any()]
    assert reached == [1, 5]
    assert (layer.weight.grad[[1, 5]] == 1).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_the_grid_follows_the_table_until_it_is_frozen(per_row):
    layer, ids = table(per_row), torch.arange(7)
    layer(torch.tensor([0]))  # the range is that of the whole table, whatever is looked up
    first = layer.weight_quantizer.scale.clone()
    assert (first > 0).all()
    with torch.no_grad():
        layer.weight.mul_(2)
    layer(ids)
    assert torch.allclose(layer.weight_quantizer.scale, 2 * first)
    layer.weight_quantizer.observing = False
    with torch.no_grad():
        layer.weight.mul_(2)
    assert layer(ids).abs().max() <= layer.weight.abs().max() / 2 * 1.01  # clamped to what was seen
    assert torch.allclose(layer.weight_quantizer.scale, 2 * first)


@pytest.mark.parametrize("per_row", [False, True])
def test_switched_off_or_never_observed_it_changes_nothing(per_row):
    layer, ids = table(per_row), torch.arange(7)
    layer.weight_quantizer.observing = False
    assert torch.equal(layer(ids), layer.weight)
    layer.weight_quantizer.enabled = False
    layer.weight_quantizer.observing = True
    assert torch.equal(layer(ids), layer.weight)
    assert not layer.weight_quantizer.scale.any()


@pytest.mark.parametrize("per_row", [False, True])
def test_a_frozen_grid_comes_back_with_the_state(per_row):
    layer = table(per_row)
    layer(torch.arange(7))
    twin = table(per_row)
    twin.load_state_dict(layer.state_dict(), strict=True)
    with torch.no_grad():
        twin.weight.add_(0.3)
        layer.weight.add_(0.3)
    twin.weight_quantizer.observing = layer.weight_quantizer.observing = False
    assert torch.equal(twin(torch.arange(7)), layer(torch.arange(7)))


def test_half_precision_keeps_its_dtype():
    layer = table(per_row=True).to(torch.bfloat16)
    assert layer(torch.arange(7)).dtype == torch.bfloat16


def test_tables_are_replaced_once():
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    first = make_tables_compressible(model, ["0"], "key")
    again = make_tables_compressible(model, ["0"], "key")
    assert model[0] is first["0"] is again["0"]
    assert [name for name, _ in compressible_tables(model)] == ["0"]


def test_a_tied_table_is_refused():
    model = nn.ModuleDict({"words": nn.Embedding(3, 2), "decoder": nn.Linear(2, 3, bias=False)})
    model["decoder"].weight = model["words"].weight
    with pytest.raises(UserError, match=r"key: 'words' shares its weight with 'decoder'") as caught:
        make_tables_compressible(model, ["words"], "key")
    assert "\n" not in str(caught.value)
    assert type(model["words"]) is nn.Embedding


def test_a_table_with_a_lookup_of_its_own_is_refused():
    class Offset(nn.Embedding):
        def forward(self, input):
            return super().forward(input + 2)

    with pytest.raises(UserError, match=r"key: '0' is a Offset"):
        make_tables_compressible(nn.Sequential(Offset(5, 2)), ["0"], "key")
