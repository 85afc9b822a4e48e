"""Which linears of a model are compressed when nobody says which."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_compress.models.layout import LAYOUTS, family_of, layer_linears, layout_of
from lit_compress.nn.replace_layers import match_modules

__all__ = ["ENCODER_LINEARS", "match_linears"]

# Every linear of every transformer layer: attention and feed-forward, not embeddings, pooler or head. For models that
# are in no table; where the layers of the known families are, their layout says.
ENCODER_LINEARS = ("*.layer.*", "*.layers.*")


def match_linears(
    model: nn.Module, targets: Sequence[str] | None, ignore: Sequence[str] = (), key: str = "targets"
) -> dict[str, Any]:
    """Linears by name, in model order.

    Args:
        model: of any family.
        targets: globs or ``re:`` patterns; None takes every linear of the transformer layers.
        ignore: patterns to leave alone.
        key: config key named in errors.

    Raises:
        UserError: a pattern matches nothing, or the family computes with its weights otherwise.

    """
    if targets is not None:
        return match_modules(model, targets, ignore, key=key)
    if family_of(model) in LAYOUTS:
        layout_of(model).require("attention_masks", key)
        return match_modules(model, list(layer_linears(model)), ignore, key=key)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    stacks = [glob for glob in ENCODER_LINEARS if any(glob.strip("*") in name for name in names)]
    return match_modules(model, stacks or ENCODER_LINEARS, ignore, key=key)
