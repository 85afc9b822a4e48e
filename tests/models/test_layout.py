import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from lit_compress.errors import UserError
from lit_compress.models import encoder_layers

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
FAMILIES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 8},
    "mpnet": {},
    "deberta": {},
    "deberta-v2": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
    "albert": {"embedding_size": 8},
    "xlnet": {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24, "max_position_embeddings": None},
}


def build(family, auto=AutoModelForSequenceClassification):
    torch.manual_seed(0)
    settings = {name: value for name, value in (SMALL | FAMILIES[family]).items() if value is not None}
    return auto.from_config(AutoConfig.for_model(family, **settings)).eval()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "albert"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_layers_are_all_found_in_order(family, auto):
    layers = encoder_layers(build(family, auto))
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1
    assert all(
        any(isinstance(module, nn.Linear) for module in layer.modules()) or family == "xlnet" for layer in layers
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "albert"])
def test_each_layer_runs_once(family):
    model = build(family)
    ran = []
    for index, layer in enumerate(encoder_layers(model)):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(input_ids=torch.tensor([[1, 5, 6, 2]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_an_unknown_family_is_a_one_line_error(model):
    with pytest.raises(UserError, match="no layer list") as caught:
        encoder_layers(model)
    assert "\n" not in str(caught.value)


def test_layers_that_share_their_weights_are_refused():
    # ALBERT runs one group of layers again and again; there is no list with one entry per layer.
    with pytest.raises(UserError, match="no layer list"):
        encoder_layers(build("albert"))
