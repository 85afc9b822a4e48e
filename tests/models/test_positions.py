"""How many tokens each family takes, tried on the model itself."""

import pytest
import torch
from contracts.errors import error_of
from models.families import FAMILIES, SMALL, batch, build
from transformers import AutoConfig, AutoModel

from lit_compress.models.positions import check_length, longest_input

# With 20 positions in the configuration.
LONGEST = dict.fromkeys(FAMILIES, 20) | {
    **dict.fromkeys(["roberta", "xlm-roberta", "camembert"], 19),  # the padding index is 0
    "mpnet": 18,  # and here always 1
    "xlnet": None,
}
# Others, whose layers strategies find as well.
OTHERS = {
    "longformer": ({"attention_window": 4, "pad_token_id": 1}, 18),
    "big_bird": ({"attention_type": "original_full"}, 20),
}


def takes(model, length):
    try:
        with torch.no_grad():
            model(**batch(1, length))
    except (IndexError, RuntimeError):
        return False
    return True


def other(family, settings):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(family, **SMALL | settings)).eval()


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_longest_input_is_what_the_model_takes(family):
    settings, longest = OTHERS[family] if family in OTHERS else ({}, LONGEST[family])
    model = other(family, settings) if family in OTHERS else build(family)
    assert longest_input(model.config) == longest
    assert takes(model, longest or 100)
    if longest is None or family == "modernbert":  # it rotates by position, and was trained on no more
        return
    assert not takes(model, longest + 1)


def test_relative_positions_have_no_end():
    config = build("deberta-v2", position_biased_input=False).config
    assert longest_input(config) is None
    assert takes(build("deberta-v2", position_biased_input=False), 200)
    check_length(config, 10_000, "m")


def test_a_roberta_of_the_usual_size():
    config = AutoConfig.for_model("roberta", max_position_embeddings=514, pad_token_id=1)
    check_length(config, 512, "m")
    message = error_of(check_length, config, 513, "model.teacher 'm'")
    assert message == "data.max_length: 513 is above 512, the longest input of model.teacher 'm'"


def test_a_configuration_that_describes_no_model():
    config = AutoConfig.for_model("bert", hidden_size=33, num_attention_heads=2)
    assert error_of(longest_input, config).startswith("config.json of 'bert' describes no model: ")
