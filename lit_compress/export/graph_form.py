"""A folded model as modules that are traced to the operators of an integer runtime, and compute the same in PyTorch.

What is rounded is written as ONNX's ``QuantizeLinear`` and ``DequantizeLinear``, the form (QDQ) that runtimes replace
by integer kernels; ranges that follow the data as ``DynamicQuantizeLinear`` and ``MatMulInteger``.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.export.folded import Folded, IntegerWeight, integer_weight
from lit_compress.functional.quantize import asymmetric_qparams, fake_quantize, symmetric_qparams
from lit_compress.models.layout import embedding_tables, layer_linears
from lit_compress.nn.attention import quantize_attention
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.nn.quantizers import FakeQuantizer

__all__ = ["Activations", "GraphForm", "graph_form", "has_grids", "round_weights"]

# What a linear of integers does with an input that has no grid of its own from training: leave it, or round it with the
# range of each batch.
Activations = Literal["float", "dynamic"]


class GraphForm(nn.Module):
    """A model that takes its inputs by position and gives a tuple, as tracing wants it.

    Args:
        model: Hugging Face model.
        inputs: names of its inputs in the order they are given.

    Attributes:
        outputs: names of what comes out, known after the first call.

    """

    def __init__(self, model: PreTrainedModel, inputs: list[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.outputs: list[str] = []
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Ids and masks ``(batch, length)`` to logits; without a head to hidden states."""
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        found = [name for name in result if "logits" in name]
        self.outputs = found or [name for name in ("last_hidden_state", "pooler_output") if name in result]
        return tuple(result[name] for name in self.outputs)


def graph_form(folded: Folded, inputs: list[str], activations: Activations) -> GraphForm:
    """Replace every linear, and every table and attention with a grid, in place.

    Args:
        folded: what to build; its model is used up.
        inputs: names of the model's inputs.
        activations: what becomes of the inputs that have no grid, where weights are integers.

    Raises:
        UserError: a weight that does not lie on its grid.

    """
    model, entries = folded.model, folded.entries()
    tied = _tied(model)
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            entry = entries.get(name)
            if type(module) is nn.Linear and name not in tied:
                model.set_submodule(
                    name, GraphLinear(module, integer_weight(name, module.weight, entry), entry, activations)
                )
            elif type(module) is nn.Embedding and (grid := integer_weight(name, module.weight, entry)):
                model.set_submodule(name, GraphTable(grid))
            elif isinstance(module, FactorizedEmbedding) and entry and entry.get("scales"):
                raise UserError(f"compression.json: {name!r} is factorised and cannot have scales")
    attention = {name: entry for name, entry in folded.manifest.get("attention", {}).items() if entry.get("scales")}
    if attention:
        for name, owner in quantize_attention(model, list(attention)).items():
            for slot, grid in attention[name]["scales"].items():
                setattr(owner, slot, FixedGrid(grid, attention[name][slot]["spec"]))
    return GraphForm(model, inputs)


def has_grids(folded: Folded) -> bool:
    """Whether any weight was quantized in training."""
    return any((entry.get("scales") or {}).get("weight") for entry in folded.entries().values())


@torch.no_grad()
def round_weights(folded: Folded, more: Sequence[str] = ()) -> None:
    """Put the weights of a model that was not quantized in training on 8-bit grids, in place, and note their scales.

    The linears inside the transformer layers and the embedding tables, a scale per row. Tables that a decoder shares
    stay as they are.

    Args:
        folded: model and manifest.
        more: names of further linears.

    """
    tied = {id(module.weight) for name, module in folded.model.named_modules() if name in _tied(folded.model)}  # type: ignore[arg-type]
    linears: dict[str, Any] = layer_linears(folded.model) | {name: folded.model.get_submodule(name) for name in more}
    found: dict[str, Any] = {"linears": linears, "embeddings": embedding_tables(folded.model)}
    for kind, modules in found.items():
        for name, module in modules.items():
            if id(module.weight) in tied or isinstance(module, FactorizedEmbedding):
                continue
            scale = symmetric_qparams(module.weight.abs().amax(1).float(), 127)
            module.weight.copy_((module.weight / scale[:, None]).round_().mul_(scale[:, None]))
            entry = folded.manifest.setdefault(kind, {}).setdefault(name, {"mask": False} if kind == "linears" else {})
            spec = {"out_features": len(scale), "bits": 8, "per_channel": True}
            entry["weight_quantizer"] = {
                "kind": "MinMaxWeightQuantizer",
                "spec": spec,
                "enabled": True,
                "observing": False,
            }
            entry["scales"] = {"weight": scale.tolist()}


class GraphLinear(nn.Module):
    """``quantized(x) @ weight + bias`` with the weight as a runtime stores it: ``(in_features, out_features)``."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, linear: nn.Linear, integers: IntegerWeight | None, entry: dict[str, Any] | None, activations: Activations
    ) -> None:
        super().__init__()
        self.bias = linear.bias
        self.register_buffer("weight", (linear.weight.detach() if integers is None else integers.values).t())
        self.input_grid: FixedGrid | None = None
        self.output_grid: FixedGrid | None = None
        self.mode: Literal["float", "static", "token", "dynamic"] = "float"
        if integers is None:
            return
        scale = integers.scale.reshape(-1)
        self.register_buffer("scale", scale if len(scale) > 1 else scale.reshape(()))
        self.register_buffer("zero_point", torch.zeros_like(self.scale, dtype=torch.int8))
        grids, quantizer = (entry or {})["scales"], (entry or {}).get("input_quantizer") or {}
        if "output" in grids:
            self.output_grid = FixedGrid(grids["output"], (entry or {})["output_quantizer"]["spec"])
        if "input" in grids:
            self.mode, self.input_grid = "static", FixedGrid(grids["input"], quantizer["spec"])
        elif quantizer.get("kind") == "DynamicTokenQuantizer" and quantizer.get("enabled"):
            self.mode = "token"
            self.input_grid = FixedGrid({"scale": 1.0, "zero_point": 0}, {"bits": 8, "symmetric": True})
        else:
            self.mode = "static" if activations == "float" else "dynamic"

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        if self.mode == "dynamic":
            y = _DynamicProduct.apply(x, self.weight, self.scale)
        else:
            weight: Tensor = self.weight
            if self.mode != "float":
                weight = _Dequantize.apply(weight, self.scale, self.zero_point)
            if self.mode == "token" and self.input_grid is not None:
                # Each row is brought to the range of one grid first: a grid of its own has no operator.
                scale = symmetric_qparams(x.abs().amax(-1, keepdim=True), 127)
                y = torch.matmul(self.input_grid(x * (1.0 / scale)), weight) * scale
            else:
                y = torch.matmul(x if self.input_grid is None else self.input_grid(x), weight)
        y = y if self.bias is None else y + self.bias
        return y if self.output_grid is None else self.output_grid(y)


class GraphTable(nn.Module):
    """An embedding table of integers; only rows that are looked up become floating point."""

    values: Tensor
    scale: Tensor

    def __init__(self, integers: IntegerWeight) -> None:
        super().__init__()
        self.register_buffer("values", integers.values)
        self.register_buffer("scale", integers.scale)
        self.zero_point = integers.zero_point

    @property
    def weight(self) -> Tensor:
        """The whole table in fp32, for models that use it without looking anything up."""
        return (self.values.float() - self.zero_point) * self.scale

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``(...)`` to rows ``(..., embedding_dim)``."""
        rows = self.values[ids].float() - self.zero_point
        return rows * (self.scale[ids] if len(self.scale) > 1 else self.scale.reshape(()))


class FixedGrid(FakeQuantizer):
    """One grid that never moves, of the scale and zero point in a manifest.

    A symmetric grid is written as unsigned with its zero in the middle, because runtimes are fastest with unsigned
    inputs; it then has one step more at its lower end.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: dict[str, Any], spec: dict[str, Any]) -> None:
        super().__init__()
        if spec["bits"] != 8:
            raise UserError(f"compression.json: activations of {spec['bits']} bits have no operator; only 8 bits have")
        offset = 128 if spec["symmetric"] else 0
        self.register_buffer("scale", torch.tensor(grid["scale"], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(grid["zero_point"] + offset, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape, rounded to the grid."""
        return _QuantizeDequantize.apply(x, self.scale, self.zero_point)

    def spec(self) -> dict[str, Any]:
        return {}


class _Dequantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return scale.new_zeros(()).expand(values.shape)  # a shape will do, and the tracer keeps all it sees
        return values.float() * scale

    @staticmethod
    def symbolic(g: Any, values: Any, scale: Any, zero_point: Any) -> Any:
        return g.op("DequantizeLinear", values, scale, zero_point, axis_i=1)


class _QuantizeDequantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return fake_quantize(x, scale, zero_point.int(), 0, 255)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        return g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero_point), scale, zero_point)


class _DynamicProduct(torch.autograd.Function):
    """``x @ (weight * scale)`` with ``x`` on one unsigned grid for the whole batch, whose range is that of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return x.new_zeros(()).expand(*x.shape[:-1], weight.shape[1])  # as above
        low, high = x.aminmax()
        return torch.matmul(fake_quantize(x, *asymmetric_qparams(low, high), 0, 255), weight.float() * scale)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, scale: Any) -> Any:
        values, x_scale, x_zero = g.op("DynamicQuantizeLinear", x, outputs=3)
        product = g.op("Cast", g.op("MatMulInteger", values, weight, x_zero), to_i=1)
        return g.op("Mul", product, g.op("Mul", x_scale, scale))


def _tied(model: PreTrainedModel) -> set[str]:
    """Names of modules whose weight is that of an embedding table."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m.weight) in tables}
