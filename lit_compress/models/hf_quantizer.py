"""Lets ``from_pretrained`` rebuild models that a stock folder cannot say: uneven shapes, bitmaps, packed linears.

Such a folder has ``quantization_config = {"quant_method": "lit_compress", ...}`` in its ``config.json``, with
``shapes``, ``storage`` or ``packed``, and ``checksums``. Transformers' hook for quantizers is its public way to change
modules after a model is built and weights while they are loaded. Without ``import lit_compress`` Transformers warns
that it does not know the method and then refuses the weights, because their shapes differ.
"""

import re
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_compress.errors import UserError
from lit_compress.models.fused import fuse
from lit_compress.models.packed import check_packed, check_stored, install_packed
from lit_compress.models.shapes import METHOD, apply_shapes
from lit_compress.nn.packed import PLAIN_WEIGHT
from lit_compress.storage.file import verify_checksums, verify_header
from lit_compress.storage.parts import BITMAP, PARTS, check_parts, decode

__all__ = ["LitCompressConfig", "LitCompressQuantizer"]


@register_quantization_config(METHOD)
class LitCompressConfig(QuantizationConfigMixin):
    """The entry of ``config.json``.

    Args:
        shapes: what differs from the stock shapes, see :func:`lit_compress.models.shapes.describe_shapes`.
        storage: how the weights are stored: ``"bitmap"``, see :mod:`lit_compress.storage.parts`; None as usual.
        packed: which linears are packed, see :func:`lit_compress.models.packed.describe_packed`; None when none is.
        checksums: of every tensor in the files, see :func:`lit_compress.storage.file.checksums`. They are those of
            one folder and not kept with the model: what is trained and saved again is another.
        **unknown: left alone, for later versions.

    """

    def __init__(
        self, shapes: Any = None, storage: Any = None, packed: Any = None, checksums: Any = None, **unknown: Any
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  (an enumeration of Transformers' own methods)
        self.shapes, self.storage, self.packed, self.checksums = shapes, storage, packed, checksums


@register_quantizer(METHOD)
class LitCompressQuantizer(HfQuantizer):
    """Cuts the skeleton to shape and decodes weights on their way in.

    Afterwards the model is an ordinary one in floating point, or, when its linears are packed, a fused one.
    """

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        entry: Any = self.quantization_config
        files = checkpoint_files or []
        if entry.storage not in (None, BITMAP):
            raise UserError(
                f"config.json: quantization_config.storage is {entry.storage!r} and must be {BITMAP!r}; upgrade"
            )
        if entry.shapes is not None or entry.storage is None:
            apply_shapes(model, entry.shapes)
        if entry.packed is not None:
            install_packed(model, entry.packed)
            known = set(model._keys_to_ignore_on_load_unexpected or ())
            refusing = {rf"{re.escape(name)}\.{PLAIN_WEIGHT}$" for name in entry.packed}
            model._keys_to_ignore_on_load_unexpected = known | refusing
            if checkpoint_files is not None:
                check_stored(model, checkpoint_files)
        if entry.checksums is not None and checkpoint_files is not None:
            verify_checksums(checkpoint_files, entry.checksums, "config.json: quantization_config.checksums")
        self._expected = _shapes(model)
        if entry.storage == BITMAP:
            if len(files) != 1:
                raise UserError(f"config.json: storage {BITMAP!r} is one safetensors file and here are {len(files)}")
            if entry.checksums is None:
                verify_header(files[0])
            check_parts(files[0], self._expected)
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
        # Transformers 5.17 takes tensors of any shape once a quantizer is there; later versions refuse them themselves.
        for name, found in _shapes(model).items():
            if (expected := self._expected.get(name, found)) != found:
                raise UserError(
                    f"{name}: its weights have the shape {list(found)} and config.json says {list(expected)}; "
                    "load it as it was saved, or with a later Transformers, which can leave it out"
                )
        # Transformers would treat a quantized model differently: no .half(), no training. This one is none.
        entry: Any = self.quantization_config
        shapes = entry.shapes
        self.remove_quantization_config(model)
        if shapes is not None:
            model.config.quantization_config = {"quant_method": METHOD, "shapes": shapes}
        # Saving would undo what loading did, and this has no way back: the model is saved as any other.
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [each for each in conversions if not _decodes(each)]  # type: ignore[assignment]
        if entry.packed is not None:
            model.config.quantization_config = {"quant_method": METHOD, "shapes": shapes, "packed": entry.packed}
            check_packed(model)
            # Before 5.23 Transformers leaves what is packed in the precision of the file, norms and embeddings too.
            fuse(model.to(model.config.dtype or model.dtype))  # type: ignore[arg-type]
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


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
