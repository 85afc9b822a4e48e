"""Lets ``from_pretrained`` rebuild models with shapes or weights that a stock folder cannot say.

Such a folder has ``quantization_config = {"quant_method": "lit_compress", ...}`` in its ``config.json``, with
``shapes``, ``storage`` or both. Transformers' hook for quantizers is its public way to change modules after a model is
built and weights while they are loaded; the model that comes out is an ordinary one in floating point. Without
``import lit_compress`` Transformers warns that it does not know the method and then refuses the weights, because their
shapes differ.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_compress.errors import UserError
from lit_compress.models.shapes import METHOD, apply_shapes
from lit_compress.models.sparse_weights import BITMAP, PARTS, check_file, decode

__all__ = ["SmallerConfig", "SmallerModel"]


@register_quantization_config(METHOD)
class SmallerConfig(QuantizationConfigMixin):
    """The entry of ``config.json``.

    Args:
        shapes: what differs from the stock shapes, see :func:`lit_compress.models.shapes.describe_shapes`.
        storage: how the weights are stored: ``"bitmap"``, see :mod:`lit_compress.models.sparse_weights`; None as usual.
        **unknown: refused by :func:`lit_compress.models.shapes.apply_shapes`, with the model at hand.

    """

    def __init__(self, shapes: Any = None, storage: Any = None, **unknown: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  (an enumeration of Transformers' own methods)
        self.shapes = shapes
        if storage is not None:
            self.storage = storage


@register_quantizer(METHOD)
class SmallerModel(HfQuantizer):
    """Cuts the skeleton to shape and decodes the weights on their way in; afterwards the model is an ordinary one."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        config: Any = self.quantization_config
        storage = getattr(config, "storage", None)
        if storage not in (None, BITMAP):
            raise UserError(f"config.json: quantization_config.storage is {storage!r} and must be {BITMAP!r}; upgrade")
        if config.shapes is not None or storage is None:
            apply_shapes(model, config.shapes)
        if storage == BITMAP:
            files = kwargs.get("checkpoint_files") or []
            if len(files) != 1:
                raise UserError(f"config.json: storage {BITMAP!r} is one safetensors file and here are {len(files)}")
            check_file(files[0], {name: tuple(value.shape) for name, value in model.state_dict().items()})
        return model

    def get_weight_conversions(self) -> list[Any]:
        if getattr(self.quantization_config, "storage", None) != BITMAP:
            return []
        # Every end of a name must be given before the name itself: it is looked for in this order.
        sources = [*(f"weight{end}$" for end in PARTS), "weight$"]
        return [WeightConverter(sources, "weight", operations=[DecodeWeight(self)])]

    def update_weight_conversions(self, weight_conversions: list[Any], *args: Any) -> list[Any]:
        return [*weight_conversions, *self.get_weight_conversions()]

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Transformers would treat a quantized model differently: no .half(), no training. This one is none.
        shapes = self.quantization_config.shapes  # type: ignore[attr-defined]
        self.remove_quantization_config(model)
        if shapes is not None:
            model.config.quantization_config = {"quant_method": METHOD, "shapes": shapes}
        # Saving would undo what loading did, and this has no way back: the model is saved as any other.
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [each for each in conversions if not _decodes(each)]  # type: ignore[assignment]
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class DecodeWeight(ConversionOps):
    """The parts of a weight to the weight, in the type that the model was asked for."""

    def __init__(self, hf_quantizer: HfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer  # Transformers then leaves the types of the parts alone

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecodeWeight":
        return self

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        model, name = kwargs["model"], kwargs["full_layer_name"]
        found = {pattern.removesuffix("$"): value for pattern, value in input_dict.items()}
        parts = {key.removeprefix("weight"): v[0] if isinstance(v, list) else v for key, v in found.items()}
        # Older versions of Transformers cast to the type of the model first.
        parts = {end: part.float() if part.is_floating_point() else part for end, part in parts.items()}
        expected = model.get_parameter_or_buffer(name)
        stored = parts[""]
        if list(parts) != [""] or stored.shape != expected.shape:
            stored = decode(parts, tuple(expected.shape))
        return {"weight": stored.to(expected.dtype)}


def _decodes(conversion: Any) -> bool:
    return any(isinstance(operation, DecodeWeight) for operation in getattr(conversion, "operations", ()))
