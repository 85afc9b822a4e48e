"""Lets ``from_pretrained`` rebuild models that a stock configuration cannot describe: uneven shapes, packed linears.

Such a folder has ``quantization_config = {"quant_method": "lit_compress", "shapes": {...}}`` in its ``config.json``,
and a packed one also ``"packed"`` and ``"checksums"``. Transformers' hook for quantizers is its public way to change
modules after a model is built and before its weights are loaded. Without ``import lit_compress`` Transformers warns
that it does not know the method and then refuses the weights, because their shapes differ.
"""

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_compress.errors import UserError
from lit_compress.models.checksums import verify_checksums
from lit_compress.models.fused import fuse
from lit_compress.models.packed import check_packed, check_stored, install_packed
from lit_compress.models.shapes import METHOD, apply_shapes

__all__ = ["SmallerConfig", "SmallerModel"]


@register_quantization_config(METHOD)
class SmallerConfig(QuantizationConfigMixin):
    """The entry of ``config.json``.

    Args:
        shapes: what differs from the stock shapes, see :func:`lit_compress.models.shapes.describe_shapes`.
        packed: which linears are packed, see :func:`lit_compress.models.packed.describe_packed`; None when none is.
        checksums: of every tensor in the files, see :func:`lit_compress.models.checksums.checksums`. They are those of
            one folder and not kept with the model: what is trained and saved again is another.
        **unknown: left alone, for later versions.

    """

    def __init__(self, shapes: Any = None, packed: Any = None, checksums: Any = None, **unknown: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  (an enumeration of Transformers' own methods)
        self.shapes, self.packed, self.checksums = shapes, packed, checksums


@register_quantizer(METHOD)
class SmallerModel(HfQuantizer):
    """Cuts the skeleton to shape before the weights come; afterwards the model is an ordinary one, or a fused one."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        entry: Any = self.quantization_config
        apply_shapes(model, entry.shapes)
        if entry.packed is not None:
            install_packed(model, entry.packed)
            if checkpoint_files is not None:
                check_stored(model, checkpoint_files)
                if entry.checksums is not None:
                    verify_checksums(checkpoint_files, entry.checksums, "config.json: quantization_config.checksums")
        self._expected = _shapes(model)
        return model

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Transformers 5.17 takes tensors of any shape once a quantizer is there; later versions refuse them themselves.
        for name, found in _shapes(model).items():
            if (expected := self._expected.get(name, found)) != found:
                raise UserError(
                    f"{name}: its weights have the shape {list(found)} and config.json says {list(expected)}; "
                    "load it as it was saved, or with a later Transformers, which can leave it out"
                )
        # Transformers would treat a quantized model differently: no .half(), no training. This one is none.
        self.remove_quantization_config(model)
        entry: Any = self.quantization_config
        model.config.quantization_config = {"quant_method": METHOD, "shapes": entry.shapes}
        if entry.packed is not None:
            model.config.quantization_config["packed"] = entry.packed
            check_packed(model)
            # Before 5.23 Transformers leaves what is packed in the precision of the file, norms and embeddings too.
            fuse(model.to(model.config.dtype or model.dtype))  # type: ignore[arg-type]
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
