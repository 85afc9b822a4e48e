import copy
import io
import pickle

import pytest
import torch
from models.families import FAMILIES
from models.packing import MASKS, SERVED, build, dequantized, inputs, packed, real, relative_error, wide
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertModel

from lit_compress.errors import UserError
from lit_compress.models import layer_linears, remove_heads, remove_neurons
from lit_compress.models.attention import UNPADDED
from lit_compress.models.fused import FusedEncoder, fuse, fused_layers, unfuse, unfused_reasons
from lit_compress.models.fused_report import describe_fused
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.nn.packed import PackedLinear
from lit_compress.ops.dispatch import forced

DIFFERENT = ["bert", "mpnet", "modernbert", "deberta-v2"]  # with one of each kind of encoder
INT8 = 2e-2  # relative error of hidden states whose inputs are rounded to 8 bit in three small layers


def encoder_of(model):
    return next(module for module in model.modules() if isinstance(module, FusedEncoder))


def hidden(model, mask="right", **options):
    with torch.no_grad():
        return model(**inputs(mask), **options).last_hidden_state


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", SERVED)
def test_with_dense_products_it_is_the_dequantized_model(family, mask):
    model = packed(build(family, AutoModel, initializer_range=0.3))
    expected = hidden(dequantized(model), mask)
    got = hidden(fuse(model), mask)
    assert len(fused_layers(model)) == 3
    assert got.shape == expected.shape
    assert torch.allclose(real(got, mask), real(expected, mask), atol=1e-5)
    if MASKS[mask] is not None:
        assert not got[~torch.tensor(MASKS[mask]).bool()].any()


@pytest.mark.parametrize("choice", ["kernel", "reference"])
@pytest.mark.parametrize("family", [*DIFFERENT, "distilbert"])
def test_with_8_bit_products_it_is_that_model_but_for_rounding(family, choice):
    model = packed(build(family, AutoModel, initializer_range=0.3))
    expected = hidden(dequantized(model), "holes")
    with forced(choice):
        got = hidden(fuse(model), "holes")
    assert 0 < relative_error(real(got, "holes"), real(expected, "holes")) < INT8


def test_kernel_and_reference_are_the_same():
    model = fuse(packed(wide(auto=AutoModel)))
    with forced("kernel"):
        ours = hidden(model)
    with forced("reference"):
        assert relative_error(ours, hidden(model)) < 1e-3


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("format", ["dense", "tall_blocks"])
def test_formats_and_dtypes(format, dtype):
    model = packed(wide(auto=AutoModel), format, dtype)
    expected = hidden(dequantized(model))
    for choice, limit in (("dense", 1e-5), ("kernel", INT8 if dtype == "int8" else 0.1)):
        with forced(choice):
            assert relative_error(hidden(fuse(model)), expected * torch.tensor(MASKS["right"]).unsqueeze(2)) < limit


def with_static_scales(model):
    """Input scales of what attention and activation hand on, from what they are on the test's inputs."""
    largest = {}
    plain = dequantized(model)
    layout = layout_of(model)
    names = [name for name in layer_linears(plain) if name.endswith((layout.attention_output, layout.feed_forward_out))]
    for name in names:
        plain.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: largest.__setitem__(name, given[0].abs().amax())
        )
    hidden(plain)
    for name in names:
        linear = model.get_submodule(name)
        linear.input_scale = (largest[name] / (448 if linear.dtype.is_floating_point else 127)).reshape(1)
    return model


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_static_scales_save_launches_and_little_accuracy(dtype):
    model = with_static_scales(packed(wide(auto=AutoModel), dtype=dtype))
    expected = hidden(dequantized(model)) * torch.tensor(MASKS["right"]).unsqueeze(2)
    fuse(model)
    assert [layer["launches"] for layer in describe_fused(model, device="h200")] == [7, 7]
    for choice in ("kernel", "reference"):
        with forced(choice):
            assert 0 < relative_error(hidden(model), expected) < (INT8 if dtype == "int8" else 0.1)
    with forced("dense"):  # which rounds nothing
        assert relative_error(hidden(model), expected) < 1e-5


def test_launches_are_counted_as_documented():
    plain = packed(wide(auto=AutoModel))
    assert [layer["launches"] for layer in describe_fused(fuse(copy.deepcopy(plain)), device="h200")] == [9, 9]
    mixed = fuse(with_static_scales(plain))
    fused_layers(mixed)[0].steps.out.input_scale = None
    assert [layer["launches"] for layer in describe_fused(mixed, device="h200")] == [8, 7]
    # Passes of their own for two residuals and an activation.
    assert [layer["launches"] for layer in describe_fused(mixed, device="cpu")] == [10, 10]


@pytest.mark.parametrize("format", ["dense", "tall_blocks"])
def test_layers_of_different_shapes(format):
    model = wide(num_hidden_layers=3, num_attention_heads=4, auto=AutoModel)
    remove_heads(model, 0, torch.tensor([True, False, False, False]))
    remove_heads(model, 1, torch.tensor([True, True, True, False]))
    remove_neurons(model, 1, torch.arange(256) < 96)
    remove_neurons(model, 2, torch.arange(256) < 160)
    model = packed(model, format)
    expected = hidden(dequantized(model)) * torch.tensor(MASKS["right"]).unsqueeze(2)
    assert [layer.steps.heads for layer in fused_layers(fuse(model))] == [1, 3, 4]
    for choice, limit in (("dense", 1e-5), ("kernel", INT8)):
        with forced(choice):
            assert relative_error(hidden(model), expected) < limit


def test_queries_keys_and_values_in_different_formats():
    model = packed(wide(auto=AutoModel), names=[])
    for index, (name, linear) in enumerate(layer_linears(model).items()):
        model.set_submodule(name, PackedLinear.from_linear(linear, ["dense", "tall_blocks"][index % 2]))
    expected = hidden(dequantized(model)) * torch.tensor(MASKS["right"]).unsqueeze(2)
    with forced("kernel"):
        assert relative_error(hidden(fuse(model)), expected) < INT8


@pytest.mark.parametrize("family", DIFFERENT)
def test_plain_layers_between_fused_ones(family):
    dense = wide(family, num_hidden_layers=4, auto=AutoModel)
    down = layout_of(dense).feed_forward_out
    names = [name for name in layer_linears(dense) if ".1." not in name and not name.endswith(f"3.{down}")]
    model = packed(dense, names=names)
    expected = hidden(dequantized(model), "holes")
    assert [reason is None for reason in unfused_reasons(fuse(model))] == [True, False, True, False]
    query = layout_of(model).query or layout_of(model).query_key_value
    assert f"{query} is not a packed linear but a Linear" in unfused_reasons(model)[1]
    assert f"{down} is not a packed linear" in unfused_reasons(model)[3]
    assert relative_error(real(hidden(model, "holes"), "holes"), real(expected, "holes")) < INT8
    with torch.no_grad():
        states = model(**inputs(), output_hidden_states=True).hidden_states
    assert len(states) == 5


@pytest.mark.parametrize("family", [*DIFFERENT, "distilbert"])
def test_hidden_states(family):
    model = packed(build(family, AutoModel, initializer_range=0.3))
    with torch.no_grad():
        expected = dequantized(model)(**inputs(), output_hidden_states=True).hidden_states
        got = fuse(model)(**inputs(), output_hidden_states=True).hidden_states
    assert len(got) == len(expected) == 4
    assert all(torch.allclose(real(a), real(b), atol=1e-5) for a, b in zip(got, expected, strict=True))
    assert model(**inputs()).hidden_states is None


def test_heads_and_losses_are_those_of_transformers():
    model = packed(build("bert", initializer_range=0.3))
    batch = inputs() | {"labels": torch.tensor([0, 1, 1])}
    expected, got = dequantized(model)(**batch), fuse(model)(**batch)
    assert torch.allclose(got.logits, expected.logits, atol=1e-5)
    assert torch.allclose(got.loss, expected.loss, atol=1e-5)
    words = packed(build("roberta", AutoModelForMaskedLM))
    expected = dequantized(words)(**inputs()).logits
    assert torch.allclose(real(fuse(words)(**inputs()).logits), real(expected), atol=1e-5)


def test_embeddings_can_be_given():
    model = fuse(packed(build("bert", AutoModel)))
    given = inputs()
    embedded = model.embeddings.word_embeddings(given.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embedded, **given).last_hidden_state, model(**inputs()).last_hidden_state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, r"output_attentions: .*unfuse"),
        ({"attention_mask": torch.ones(3, 1, 6, 6)}, r"attention_mask: shape \(3, 1, 6, 6\)"),
        ({"attention_mask": torch.ones(3, 6, 6)}, r"attention_mask: shape \(3, 6, 6\)"),
        ({"encoder_hidden_states": torch.ones(3, 6, 16)}, "encoder_hidden_states: a fused encoder has neither"),
    ],
)
def test_what_is_refused(options, message):
    model = fuse(packed(build("bert", AutoModel)))
    with pytest.raises(UserError, match=message):
        model(**(inputs("none") | options))


def test_attentions_asked_for_by_the_configuration_are_refused():
    model = packed(build("distilbert", AutoModel, attn_implementation="eager"))
    model.config.output_attentions = True
    fuse(model)
    with pytest.raises(UserError, match="output_attentions"):
        model(**inputs())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SERVED])
def test_other_families_stay_plain_and_say_why(family):
    model = fuse(build(family, AutoModel))
    assert not fused_layers(model)
    reasons = unfused_reasons(model)
    assert len(reasons) == len(encoder_layers(model))
    assert set(reasons) == {layout_of(model).unsupported["fused"]}
    assert model.config._attn_implementation != UNPADDED


@pytest.mark.parametrize(
    ("settings", "reason"), [({"is_decoder": True}, "a decoder"), ({"hidden_act": "silu"}, "activation 'silu'")]
)
def test_other_models_stay_plain_and_say_why(settings, reason):
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    config.update(settings)
    model = fuse(packed(BertModel(config)))
    assert not fused_layers(model)
    assert reason in unfused_reasons(model)[0]


def test_names_and_values_stay():
    model = packed(wide())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    after = fuse(model).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in model.named_modules()] == modules


def shared(model):
    """Whether every layer's joined values are those of its linears, and not a second time in memory."""
    for layer in fused_layers(model):
        owner = layer.steps.qkv.values.untyped_storage().data_ptr()
        if {linear.values.untyped_storage().data_ptr() for linear in layer.projections} != {owner}:
            return False
    return bool(fused_layers(model))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_weights_are_in_memory_once(family):
    model = fuse(packed(wide(family), "dense"))
    assert shared(model)
    copied = copy.deepcopy(model).to(torch.float64)
    assert shared(copied)
    for layer in fused_layers(copied):
        assert layer.steps.qkv.values.dtype == torch.int8
        assert layer.steps.qkv.w_scale.dtype == torch.float32


@pytest.mark.parametrize("family", [*DIFFERENT, "distilbert"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_pickled_models_are_fused_ones(family, auto):
    model = fuse(packed(build(family, auto, initializer_range=0.3)))
    expected = model(**inputs())[0]
    kept = io.BytesIO()
    torch.save(model, kept)
    for other in (pickle.loads(pickle.dumps(model)), torch.load(io.BytesIO(kept.getvalue()), weights_only=False)):
        assert shared(other)
        assert type(other) is type(model)
        assert torch.equal(other(**inputs())[0], expected)
        plain = unfuse(other)
        assert not fused_layers(plain)
        assert torch.allclose(real(plain(**inputs())[0]), real(expected), atol=1e-4)


@pytest.mark.parametrize("family", [*DIFFERENT, "distilbert"])
def test_fusing_twice_changes_nothing_and_unfusing_undoes_it(family):
    plain = packed(build(family))
    model = fuse(fuse(copy.deepcopy(plain)))
    assert len(fused_layers(model)) == 3
    unfuse(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in plain.named_buffers()]
    assert model.config._attn_implementation == plain.config._attn_implementation
    with torch.no_grad():
        expected = plain(**inputs(), output_hidden_states=True)
        got = model(**inputs(), output_hidden_states=True)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(fuse(model)(**inputs()).logits, fuse(plain)(**inputs()).logits)


def test_loading_weights_changes_what_runs():
    model, other = fuse(packed(wide())), fuse(packed(wide(initializer_range=0.2)))
    model(**inputs())  # keeps dequantized weights
    model.load_state_dict(other.state_dict())
    for choice in ("kernel", "dense"):
        with forced(choice):
            assert torch.equal(model(**inputs()).logits, other(**inputs()).logits)


def test_a_copy_is_independent():
    model = fuse(packed(wide()))
    copied = copy.deepcopy(model)
    expected = model(**inputs()).logits
    with torch.no_grad():
        for layer in fused_layers(copied):
            layer.steps.qkv.w_scale.zero_()
    assert torch.equal(model(**inputs()).logits, expected)
    with forced("kernel"):
        assert not torch.equal(copied(**inputs()).logits, model(**inputs()).logits)


@pytest.mark.parametrize("family", DIFFERENT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, family):
    model = fuse(packed(wide(family, auto=AutoModel)))
    expected = hidden(model)
    got = hidden(model.to(dtype))
    assert got.dtype == dtype
    assert relative_error(got.float(), expected) < 0.05


@pytest.mark.parametrize("family", DIFFERENT)
def test_training_takes_the_path_with_gradients_and_dropout(family):
    dropout = {"mlp_dropout": 0.3} if family == "modernbert" else {}
    model = fuse(packed(build(family, initializer_range=0.3, **dropout)))
    table = model.get_input_embeddings().weight
    model.train()
    assert not torch.equal(model(**inputs()).logits, model(**inputs()).logits)
    model(**inputs(), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert table.grad.abs().sum() > 0
    model.eval()
    assert len(fused_layers(model)) == 3


@pytest.mark.parametrize("family", DIFFERENT)
def test_a_token_that_is_no_number_spoils_its_sequence_only(family):
    model = fuse(packed(wide(family, auto=AutoModel)))
    embedded = model.get_input_embeddings()(inputs()["input_ids"]).detach().clone()
    clean = model(inputs_embeds=embedded, attention_mask=inputs()["attention_mask"]).last_hidden_state
    embedded[1, 0] = float("nan")
    for choice in ("dense", "kernel"):
        with forced(choice):
            got = model(inputs_embeds=embedded, attention_mask=inputs()["attention_mask"]).last_hidden_state
        assert got[1, :3].isnan().all()
        assert got[[0, 2]].isfinite().all()
    assert torch.allclose(clean[[0, 2]], got[[0, 2]], atol=0.5)


@pytest.mark.parametrize("choice", ["kernel", "reference"])
def test_with_static_scales_a_token_that_is_no_number_spoils_itself_only(choice):
    model = fuse(with_static_scales(packed(wide(auto=AutoModel))))
    embedded = model.get_input_embeddings()(inputs()["input_ids"]).detach().clone()
    embedded[1, 0] = float("nan")
    with forced(choice):
        got = model(inputs_embeds=embedded, attention_mask=inputs()["attention_mask"]).last_hidden_state
    spoilt = got.isnan()
    assert spoilt[1, 0].all()
    spoilt[1, 0] = False
    assert not spoilt.any()


@pytest.mark.parametrize("family", DIFFERENT)
@pytest.mark.parametrize(("choice", "mask"), [("dense", "none"), ("dense", "holes"), ("kernel", "right")])
def test_a_compiled_graph_is_whole(choice, mask, family):
    torch.compiler.reset()
    model = fuse(packed(build(family, AutoModel, num_hidden_layers=2, initializer_range=0.3)))
    with forced(choice):
        expected = hidden(model, mask)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(hidden(compiled, mask), expected, atol=1e-4)


@pytest.mark.parametrize("family", DIFFERENT)
def test_a_graph_with_a_token_budget(family):
    torch.compiler.reset()
    model = fuse(packed(build(family, AutoModel, num_hidden_layers=1, initializer_range=0.3)))
    expected = hidden(model)  # ten tokens that are not padding
    for budget, fits in ((10, True), (9, False)):
        encoder_of(model).token_budget = budget
        got = hidden(torch.compile(model, fullgraph=True, backend="aot_eager"))
        assert torch.allclose(got, expected, atol=1e-4) if fits else got.isnan().all()


def test_the_old_name_of_a_token_budget_still_works():
    encoder = encoder_of(fuse(packed(build("bert", AutoModel, num_hidden_layers=1))))
    encoder.row_budget = 12
    assert (encoder.token_budget, encoder.row_budget) == (12, 12)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_under_autocast_what_goes_from_layer_to_layer_stays_in_fp32(family):
    model = packed(build(family, AutoModel))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(**inputs()).last_hidden_state
        fused = fuse(model)(**inputs()).last_hidden_state
    assert fused.dtype == plain.dtype == torch.float32
