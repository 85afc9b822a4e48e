import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from lit_compress.errors import UserError
from lit_compress.models.attention_maps import visible_attention

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = [
    BertConfig(**SIZES),
    RobertaConfig(**SIZES),
    DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    ElectraConfig(**SIZES, embedding_size=16),
    AlbertConfig(**SIZES, embedding_size=16),
    # A window of 4 tokens: its masks are the family's own.
    ModernBertConfig(**SIZES, **TOKENS, local_attention=4, global_attn_every_n_layers=2, attention_dropout=0.1),
]


@pytest.fixture
def inputs():
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(5, 40, (2, 9)), "attention_mask": mask}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_every_family_answers_as_before_and_shows_its_probabilities(config, inputs):
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        before = model(**inputs).logits
        visible_attention(model, "model.pretrained")
        output = model(**inputs, output_attentions=True)
        assert torch.allclose(output.logits, before, atol=1e-5)
        shown = model.train()(**inputs, output_attentions=True).attentions
    for maps in (output.attentions, shown):
        assert [tuple(one.shape) for one in maps] == [(2, 2, 9, 9)] * 2
        for one in maps:
            assert torch.allclose(one[0].sum(-1), torch.ones(()), atol=1e-5)
            assert not one[1, :, :4, 4:].any()


def test_dropout_still_acts_on_what_the_model_computes(inputs):
    config = BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5, classifier_dropout=0.0)
    model = AutoModelForSequenceClassification.from_config(config).train()
    visible_attention(model, "model.pretrained")
    first, second = (model(**inputs, output_attentions=True) for _ in range(2))
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.attentions[0], second.attentions[0])


def test_a_family_with_an_attention_of_its_own(inputs):
    model = AutoModelForSequenceClassification.from_config(DebertaV2Config(**SIZES))
    with pytest.raises(UserError, match=r"model\.teacher: DebertaV2.* of its own") as caught:
        visible_attention(model, "model.teacher")
    assert "\n" not in str(caught.value)
