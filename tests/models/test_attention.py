import pytest
import torch
from contracts.waits import noted
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
)

from lit_compress.errors import UserError
from lit_compress.export import fold
from lit_compress.models import attention, attention_modules
from lit_compress.models.attention import knows_padding, never_ask_for_padding, visible_attention
from lit_compress.nn import MovingAverageQuantizer, attention_quantizers, describe, rebuild
from lit_compress.nn.attention import ATTENTION_SLOTS, quantize_attention

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
WITH_INTERFACE = {
    "bert": (BertConfig(**SMALL), "bert.encoder.layer.{}.attention.self"),
    "roberta": (RobertaConfig(**SMALL), "roberta.encoder.layer.{}.attention.self"),
    "electra": (ElectraConfig(embedding_size=16, **SMALL), "electra.encoder.layer.{}.attention.self"),
    "distilbert": (
        DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=40),
        "distilbert.transformer.layer.{}.attention",
    ),
    "mobilebert": (
        MobileBertConfig(embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32, **SMALL),
        "mobilebert.encoder.layer.{}.attention.self",
    ),
    "modernbert": (ModernBertConfig(pad_token_id=0, reference_compile=False, **SMALL), "model.layers.{}.attn"),
    "albert": (
        AlbertConfig(embedding_size=16, **SMALL),
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention",
    ),
}
# A window of 4 tokens: its masks are the family's own.
WINDOW = ModernBertConfig(
    **SMALL, pad_token_id=0, local_attention=4, global_attn_every_n_layers=2, attention_dropout=0.1
)
WITHOUT = {
    "mpnet": MPNetConfig(**SMALL),
    "xlnet": XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=2, d_inner=64),
    "deberta": DebertaV2Config(**SMALL),
}


def model_of(config, implementation="sdpa"):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation).eval()


def quantized(model):
    names = list(attention_modules(model, "key"))
    for owner in quantize_attention(model, names).values():
        for slot in ATTENTION_SLOTS:
            setattr(owner, slot, MovingAverageQuantizer(symmetric=slot in ("key", "value")))
    return model


@pytest.fixture
def batch():
    ids = torch.randint(5, 40, (3, 8))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", WITH_INTERFACE)
def test_families_with_the_interface(family, implementation, batch):
    config, pattern = WITH_INTERFACE[family]
    model = model_of(config, implementation)
    with torch.no_grad():
        plain = model(**batch).logits
        quantized(model)
        assert [name for name, _ in attention_quantizers(model)] == sorted({pattern.format(i) for i in range(2)})
        modules = [q for _, owner in attention_quantizers(model) for q in owner.children()]
        for quantizer in modules:
            quantizer.enabled = False
        # Switched off it is what it was, to the last bit.
        assert torch.equal(model(**batch).logits, plain)
        for quantizer in modules:
            quantizer.enabled = True
        for owner in (owner for _, owner in attention_quantizers(model)):
            owner.train()
        rounded = model(**batch).logits
    assert all(quantizer.low.isfinite() for quantizer in modules)
    assert not torch.equal(rounded, plain)
    assert torch.allclose(rounded, plain, atol=0.05)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_does_not_change_the_others(implementation, batch):
    model = quantized(model_of(BertConfig(**SMALL), implementation))
    with torch.no_grad():
        for owner in (owner for _, owner in attention_quantizers(model)):
            owner.train()
        model(**batch)
        model.eval()
        alone = model(input_ids=batch["input_ids"][:1, :5], attention_mask=batch["attention_mask"][:1, :5]).logits
        # Without a mask the padding would be attended to.
        assert torch.allclose(model(**batch).logits[:1], alone, atol=1e-5)


@pytest.mark.parametrize("family", WITHOUT)
def test_families_without_it_are_refused(family):
    model = model_of(WITHOUT[family], "eager")
    for ask in (attention_modules, visible_attention):
        with pytest.raises(
            UserError, match=rf"key: {type(model).__name__}.* of its own.*attention interface"
        ) as caught:
            ask(model, "key")
        assert "\n" not in str(caught.value)


def test_another_implementation_is_refused():
    model = model_of(BertConfig(**SMALL))
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match=r"key: .*'flex_attention'.*sdpa or eager"):
        attention_modules(model, "key")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_folding_restores_the_implementation_and_leaves_the_original_alone(implementation, batch):
    plain = model_of(BertConfig(**SMALL), implementation)
    model = quantized(model_of(BertConfig(**SMALL), implementation))
    folded = fold(model)
    assert folded.config._attn_implementation == implementation
    assert model.config._attn_implementation == f"lit_compress_{implementation}"
    assert folded.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(folded(**batch).logits, plain(**batch).logits)


def test_no_file_ever_names_it(tmp_path):
    model = quantized(model_of(BertConfig(**SMALL)))
    assert "lit_compress_" not in model.config.to_json_string(use_diff=False)
    model.config.save_pretrained(tmp_path)
    assert "lit_compress_" not in (tmp_path / "config.json").read_text()


def test_rebuilt_from_the_manifest(batch):
    model = quantized(model_of(BertConfig(**SMALL)))
    with torch.no_grad():
        for owner in (owner for _, owner in attention_quantizers(model)):
            owner.train()
            owner.scores = None
        model(**batch)
        model.eval()
        twin = model_of(BertConfig(**SMALL))
        for _ in range(2):
            rebuild(twin, describe(model))
        twin.load_state_dict(model.state_dict(), strict=True)
        assert describe(twin) == describe(model)
        assert torch.equal(twin(**batch).logits, model(**batch).logits)


def test_a_manifest_of_another_model_is_refused():
    manifest = describe(quantized(model_of(BertConfig(**SMALL))))
    with pytest.raises(UserError, match=r"checkpoint: .*bert\.encoder.*attention"):
        rebuild(model_of(WITH_INTERFACE["distilbert"][0]), manifest)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "config", [*(config for config, _ in WITH_INTERFACE.values()), WINDOW], ids=lambda config: config.model_type
)
def test_every_family_answers_as_before_and_shows_its_probabilities(config, implementation, batch):
    model = model_of(config, implementation)
    with torch.no_grad():
        before = model(**batch).logits
        visible_attention(model, "model.pretrained")
        assert torch.equal(model(**batch).logits, before)
        output = model(**batch, output_attentions=True)
        assert torch.allclose(output.logits, before, atol=1e-5)
        shown = model.train()(**batch, output_attentions=True).attentions
    heads = config.num_attention_heads
    for maps in (output.attentions, shown):
        assert [tuple(one.shape) for one in maps] == [(3, heads, 8, 8)] * 2
        for one in maps:
            assert torch.allclose(one[1].sum(-1), torch.ones(()), atol=1e-5)
            assert not one[0, :, :5, 5:].any()


def test_dropout_still_acts_on_what_the_model_computes(batch):
    config = BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5, classifier_dropout=0.0)
    model = AutoModelForSequenceClassification.from_config(config).train()
    visible_attention(model, "model.pretrained")
    first, second = (model(**batch, output_attentions=True) for _ in range(2))
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.attentions[0], second.attentions[0])


def test_probabilities_are_shown_before_their_own_grid(batch):
    """Quantized, some become 0, whose divergence from the teacher's would be infinite."""
    model = quantized(model_of(BertConfig(**SMALL)))
    visible_attention(model, "model.pretrained")
    with torch.no_grad():
        for owner in (owner for _, owner in attention_quantizers(model)):
            owner.probabilities = MovingAverageQuantizer(bits=2)
            owner.train()
        rounded = model(**batch).logits
        model.eval()
        output = model(**batch, output_attentions=True)
    assert torch.allclose(output.logits, rounded, atol=1e-2)
    assert torch.allclose(output.attentions[0][1].sum(-1), torch.ones(()), atol=1e-6)
    assert output.attentions[0].unique().numel() > 4  # more than 2 bits hold


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*WITH_INTERFACE, "window"])
def test_a_gpu_is_not_asked_for_padding(name, implementation, batch, monkeypatch):
    model = model_of(WINDOW if name == "window" else WITH_INTERFACE[name][0], implementation)
    whole = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    with torch.no_grad():
        padded, unpadded = model(**batch).logits, model(**whole).logits
        monkeypatch.setattr(attention, "waited_for", lambda device: True)
        with noted() as found:
            model(**batch)
        assert found
        never_ask_for_padding(model)
        assert knows_padding(model)
        with noted() as found:
            got, without = model(**batch).logits, model(input_ids=batch["input_ids"]).logits
        assert found == []
    assert torch.equal(got, padded)
    assert torch.equal(without, unpadded)


def test_a_family_with_its_own_attention_stays_as_it_is(batch):
    for config in WITHOUT.values():
        model = model_of(config, "eager")
        never_ask_for_padding(model)
        assert not knows_padding(model)
