"""Small models whose linears are packed, and the same models with the weights that packing left."""

import copy

import torch
from models import families
from torch import nn

from lit_compress.models import layer_linears
from lit_compress.nn.packed import PackedLinear
from lit_compress.storage.layouts import DTYPES

SERVED = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "modernbert", "deberta-v2"]
# As DeBERTa-v3 has it.
_SETTINGS = {"deberta-v2": {"share_att_key": True, "conv_kernel_size": 0}}
MASKS = {
    "none": None,
    "full": [[1] * 6] * 3,
    "right": [[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 1]],
    "holes": [[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]],
}


def build(family, *auto, **settings):
    """As of families.py, but such that it can be fused."""
    return families.build(family, *auto, **(_SETTINGS.get(family, {}) | settings))


def packed(model, format="dense", dtype="int8", names=None):
    """A copy with packed linears; all of the layers, or the named ones."""
    model = copy.deepcopy(model)
    for name, linear in layer_linears(model).items():
        if names is None or name in names:
            model.set_submodule(name, PackedLinear.from_linear(linear, format, DTYPES[dtype]))
    return model


def dequantized(model):
    """A copy with plain linears of the packed weights."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            with torch.no_grad():
                linear.weight.copy_(module.dequantized())
                if module.bias is not None:
                    linear.bias.copy_(module.bias)
            model.set_submodule(name, linear)
    return model


def wide(family="bert", *auto, **settings):
    """A model wide enough for tall blocks, with weights large enough that rounding them shows."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "num_hidden_layers": 2}
    return build(family, *auto, **(sizes | {"initializer_range": 0.1} | settings))


def inputs(mask="right"):
    """Three rows of six tokens."""
    ids = torch.randint(3, 30, (3, 6), generator=torch.Generator().manual_seed(1))
    given = MASKS[mask]
    return {"input_ids": ids} | ({} if given is None else {"attention_mask": torch.tensor(given)})


def real(hidden, mask="right"):
    """Hidden states ``(rows, tokens, width)`` without those of padding."""
    given = MASKS[mask]
    return hidden.flatten(0, 1) if given is None else hidden[torch.tensor(given).bool()]


def relative_error(got, expected):
    """Root of the summed squares of the difference, relative to what was expected."""
    return float((got - expected).detach().norm() / expected.detach().norm())
