"""Where the parts of an encoder are."""

from torch import nn

from lit_compress.errors import UserError

__all__ = ["encoder_layers"]

# The dotted path of the layer list inside `model.base_model`, by family.
_LAYER_LISTS = ("encoder.layer", "transformer.layer", "layers", "layer")


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of transformer layers of a Hugging Face encoder with any head.

    Raises:
        UserError: the family keeps its layers somewhere unknown.

    """
    base = getattr(model, "base_model", model)
    modules = dict(base.named_modules())
    for path in _LAYER_LISTS:
        layers = modules.get(path)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise UserError(f"model.pretrained: {type(base).__name__} has no layer list at any of {', '.join(_LAYER_LISTS)}")
