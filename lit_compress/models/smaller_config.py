"""Lets ``from_pretrained`` rebuild models with shapes that a stock configuration cannot say.

Such a folder has ``quantization_config = {"quant_method": "lit_compress", "shapes": {...}}`` in its ``config.json``.
Transformers' hook for quantizers is its public way to change modules after a model is built and before its weights are
loaded; nothing is quantized here. Without ``import lit_compress`` Transformers warns that it does not know the method
and then refuses the weights, because their shapes differ.
"""

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_compress.models.shapes import METHOD, apply_shapes

__all__ = ["SmallerConfig", "SmallerModel"]


@register_quantization_config(METHOD)
class SmallerConfig(QuantizationConfigMixin):
    """The entry of ``config.json``.

    Args:
        shapes: what differs from the stock shapes, see :func:`lit_compress.models.shapes.describe_shapes`.
        **unknown: refused by :func:`lit_compress.models.shapes.apply_shapes`, with the model at hand.

    """

    def __init__(self, shapes: Any = None, **unknown: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  (an enumeration of Transformers' own methods)
        self.shapes = shapes


@register_quantizer(METHOD)
class SmallerModel(HfQuantizer):
    """Cuts the skeleton to shape before the weights come; afterwards the model is an ordinary one."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        apply_shapes(model, self.quantization_config.shapes)  # type: ignore[attr-defined]
        return model

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Transformers would treat a quantized model differently: no .half(), no training. This one is none.
        self.remove_quantization_config(model)
        model.config.quantization_config = {"quant_method": METHOD, "shapes": self.quantization_config.shapes}  # type: ignore[attr-defined]
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
