"""What runs in each layer of an encoder, and why, for a device and a number of tokens."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lit_compress.models.fused import FusedLayer, unfused_reasons
from lit_compress.models.fused_layer import PRODUCTS, LayerSteps, density, launches, precision
from lit_compress.models.layout import encoder_layers
from lit_compress.nn.packed import PackedLinear
from lit_compress.ops.dispatch import Problem, decide

__all__ = ["describe_fused"]


def describe_fused(model: PreTrainedModel, tokens: int = 4096, device: str = "cpu") -> list[dict[str, Any]]:
    """One entry of JSON types per layer.

    ``{"layer": 0, "fused": True, "reason": None, "launches": 7, "products": [...]}``; a layer that stays plain has the
    reason and neither launches nor products. Each product has its shape, format, dtype, density, bytes and tile, what
    computes it (``choice``), why (``reason``), where that comes from (``source``), and microseconds.

    Args:
        model: fused or not.
        tokens: of a batch, without padding.
        device: ``"cpu"``, the name of a GPU, or a short one: see :data:`lit_compress.ops.product_times.DEVICES`.

    """
    layers, reasons = encoder_layers(model), unfused_reasons(model)
    return [
        {"layer": index} | _entry(layer, reason, tokens, device)
        for index, (layer, reason) in enumerate(zip(layers, reasons, strict=True))
    ]


def _entry(layer: nn.Module, reason: str | None, tokens: int, device: str) -> dict[str, Any]:
    if not isinstance(layer, FusedLayer):
        return {"fused": False, "reason": reason, "launches": None, "products": []}
    steps: LayerSteps = layer.steps
    products = [_product(name, getattr(steps, name), tokens, device) for name in PRODUCTS]
    choices = {product["name"]: product["choice"] for product in products}
    return {"fused": True, "reason": None, "launches": launches(steps, choices), "products": products}


def _product(name: str, linear: PackedLinear, tokens: int, device: str) -> dict[str, Any]:
    problem = Problem(
        outputs=linear.out_features,
        inputs=linear.in_features,
        format=linear.format,
        dtype=precision(linear),
        density=density(linear),
        device=device,
    )
    decision = decide(tokens, problem)
    buffers = (linear.values, linear.w_scale, linear.columns, linear.offsets, linear.bias)
    return {
        "name": name,
        "outputs": problem.outputs,
        "inputs": problem.inputs,
        "format": problem.format,
        "dtype": problem.dtype,
        "density": round(problem.density, 4),
        "bytes": sum(buffer.nbytes for buffer in buffers if buffer is not None),
        "tile": _tile(linear),
        "static_input": linear.input_scale is not None,
        "choice": decision.choice,
        "reason": decision.reason,
        "source": decision.source,
        "kernel_us": decision.kernel_us,
        "dense_us": decision.dense_us,
    }


def _tile(linear: PackedLinear) -> str | None:
    """Outputs and inputs of a block that is stored or left out as a whole."""
    if linear.columns is None:
        return None
    _, rows, chunk = linear.values.shape
    return f"{rows} x {chunk // linear.columns.shape[1]}"
