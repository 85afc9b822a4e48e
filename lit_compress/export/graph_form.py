"""A folded model as modules that are traced to the operators of an integer runtime, and compute the same in PyTorch.

What is rounded is written as ONNX's ``QuantizeLinear`` and ``DequantizeLinear``, the form (QDQ) that runtimes replace
by integer kernels; ranges that follow the data as ``DynamicQuantizeLinear`` and ``MatMulInteger``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.functional.quantize import asymmetric_qparams, fake_quantize, symmetric_qparams
from lit_compress.models.folded import Folded
from lit_compress.models.layout import embedding_tables, layer_linears
from lit_compress.models.manifest_file import weight_scales
from lit_compress.nn.attention import quantize_attention
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.storage.weight import QuantizedWeight, round_weight

__all__ = [
    "Activations",
    "GraphForm",
    "WideWeights",
    "as_trained",
    "graph_form",
    "graph_tables",
    "is_quantized",
    "round_tables",
    "round_weights",
    "store_wide",
]

# What a linear of integers does with an input that has no scale from training: leave it, or round it with the range of
# each batch.
Activations = Literal["float", "dynamic"]

# x86 processors without 8-bit dot products (AVX-512 VNNI, AVX-VNNI) multiply unsigned inputs by signed weights and add
# pairs of products in 16 bits. Weights of up to 64 in magnitude fit, 2 * 255 * 64 < 2**15; of wider ones some overflow.
NARROW = 64
# What becomes of wider weights whose input is quantized: uint8 with zero point 128, whose products are added in 32
# bits; or int8 without their last bit, in the rows that have a wide one.
WideWeights = Literal["uint8", "7 bits"]
_MIDDLE = 128  # zero point of a symmetric range in uint8


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
        """Ids and masks ``(batch, length)`` to logits, fp32; without a head to hidden states."""
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        found = [name for name in result if "logits" in name]
        # Of sentence embeddings nobody reads the pooler, and sentence-transformers pools hidden states itself.
        second = "sentence_embedding" if "sentence_embedding" in result else "pooler_output"
        self.outputs = found or [name for name in ("last_hidden_state", second) if name in result]
        values = (result[name] for name in self.outputs)
        # What reads them need not know in which dtype a model computes; fp32 gets no operator in its graph.
        return tuple(value if value.dtype == torch.float32 else value.float() for value in values)


def graph_form(folded: Folded, inputs: list[str], activations: Activations) -> GraphForm:
    """Replace every linear, and every table and attention with scales, in place.

    Args:
        folded: what to build; its model is not usable afterwards.
        inputs: names of the model's inputs.
        activations: what becomes of the inputs that have no scale, where weights are integers.

    Raises:
        UserError: a weight that its scale and zero point do not give back.

    """
    model, entries = folded.model, folded.entries()
    tied = _tied(model)
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            entry = entries.get(name)
            if type(module) is nn.Linear and name not in tied:
                model.set_submodule(name, GraphLinear(module, folded.take(name), entry, activations))
            elif isinstance(module, FactorizedEmbedding) and entry and entry.get("scales"):
                raise UserError(f"compression.json: {name!r} is factorised and cannot have scales")
    graph_tables(folded)
    attention = {name: entry for name, entry in folded.manifest.get("attention", {}).items() if entry.get("scales")}
    if attention:
        for name, owner in quantize_attention(model, list(attention)).items():
            for slot, known in attention[name]["scales"].items():
                setattr(owner, slot, FixedQuantizer(known, attention[name][slot]["spec"]))
    return GraphForm(model, inputs)


@contextmanager
def as_trained(form: GraphForm) -> Iterator[None]:
    """Let a form compute as training did: inputs that only the file rounds, with the range of a batch, stay floats."""
    dynamic = [each for each in form.modules() if isinstance(each, GraphLinear) and each.mode == "dynamic"]
    for linear in dynamic:
        linear.mode = "static"  # without a quantizer of its input
    try:
        yield
    finally:
        for linear in dynamic:
            linear.mode = "dynamic"


@torch.no_grad()
def graph_tables(folded: Folded) -> None:
    """Replace every embedding table that has scales, in place.

    Raises:
        UserError: a weight that its scale and zero point do not give back.

    """
    for name, module in list(folded.model.named_modules()):
        if type(module) is nn.Embedding and (weight := folded.take(name)) is not None:
            folded.model.set_submodule(name, GraphTable(weight))


def store_wide(form: GraphForm, wide: WideWeights) -> dict[str, Tensor]:
    """Store the weights of more than 64 in magnitude, whose inputs are integers, in another way, in place.

    ``7 bits`` changes their values and scales.

    Returns:
        Their scales, by the name of the linear.

    """
    found = {
        name: module
        for name, module in form.model.named_modules()
        if isinstance(module, GraphLinear)
        and (module.mode == "dynamic" or module.input_quantizer is not None)
        and int(module.weight.to(torch.int16).abs().max()) > NARROW
    }
    for module in found.values():
        module.weight, module.scale = _stored(module.weight, module.scale, wide)
    return {name: module.scale for name, module in found.items()}


def is_quantized(folded: Folded) -> bool:
    """Whether any weight was quantized in training."""
    return any((entry.get("scales") or {}).get("weight") for entry in folded.entries().values())


@torch.no_grad()
def round_weights(folded: Folded, bits: int = 8, more: Sequence[str] = ()) -> int:
    """Round the linears of the layers of a model that was not quantized in training, in place, and note their scales.

    Each row has a scale of its own.

    Args:
        folded: model and manifest.
        bits: width of the integers.
        more: names of further linears.

    Returns:
        How many.

    """
    entries = folded.manifest.setdefault("linears", {})
    names = [*layer_linears(folded.model), *more]
    for name in names:
        _round(folded, name, entries.setdefault(name, {"mask": False}), bits)
    return len(names)


@torch.no_grad()
def round_tables(folded: Folded) -> int:
    """Round the embedding tables that have no scales yet to 8 bits, in place, and note their scales, one for a row.

    Tables that a decoder shares and factorised ones stay as they are.

    Args:
        folded: model and manifest.

    Returns:
        How many were rounded.

    """
    tied = {id(module.weight) for module in folded.model.modules() if isinstance(module, nn.Linear)}
    entries = folded.manifest.get("embeddings", {})
    found = {
        name: table
        for name, table in embedding_tables(folded.model).items()
        if type(table) is nn.Embedding and id(table.weight) not in tied and not entries.get(name, {}).get("scales")
    }
    for name in found:
        _round(folded, name, folded.manifest.setdefault("embeddings", {}).setdefault(name, {}), 8)
    return len(found)


def _round(folded: Folded, name: str, entry: dict[str, Any], bits: int) -> None:
    parameter = folded.model.get_parameter(f"{name}.weight")
    weight = folded.weights[name] = round_weight(parameter, bits=bits, name=name)
    parameter.copy_(weight.weight())
    spec = {"out_features": len(weight.values), "bits": bits, "per_channel": True}
    entry["weight_quantizer"] = {
        "kind": "MinMaxWeightQuantizer",
        "spec": spec,
        "enabled": True,
        "observing": False,
    }
    entry["scales"] = weight_scales(weight)


class GraphLinear(nn.Module):
    """``quantized(x) @ weight + bias`` with the weight as a runtime stores it: ``(in_features, out_features)``."""

    weight: Tensor
    scale: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        weight: QuantizedWeight | None,
        entry: dict[str, Any] | None,
        activations: Activations,
    ) -> None:
        super().__init__()
        self.bias = linear.bias
        self.input_quantizer: FixedQuantizer | None = None
        self.output_quantizer: FixedQuantizer | None = None
        self.mode: Literal["float", "static", "token", "dynamic"] = "float"
        if weight is None:
            self.register_buffer("weight", linear.weight.detach().t())
            return
        scales, quantizer = (entry or {})["scales"], (entry or {}).get("input_quantizer") or {}
        if "output" in scales:
            self.output_quantizer = FixedQuantizer(scales["output"], (entry or {})["output_quantizer"]["spec"])
        if "input" in scales:
            self.mode, self.input_quantizer = "static", FixedQuantizer(scales["input"], quantizer["spec"])
        elif quantizer.get("kind") == "DynamicTokenQuantizer" and quantizer.get("enabled"):
            self.mode = "token"
            self.input_quantizer = FixedQuantizer({"scale": 1.0, "zero_point": 0}, {"bits": 8, "symmetric": True})
        else:
            self.mode = "static" if activations == "float" else "dynamic"
        scale = weight.scale.reshape(-1)
        self.register_buffer("weight", weight.values.t())
        self.register_buffer("scale", scale if len(scale) > 1 else scale.reshape(()))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        if self.mode == "dynamic":
            y = _DynamicProduct.apply(x, self.weight, self.scale)
        else:
            weight: Tensor = self.weight
            if self.mode != "float":
                weight = _Dequantize.apply(weight, self.scale)
            if self.mode == "token" and self.input_quantizer is not None:
                # Each row is brought to the range of one scale first: a scale of its own has no operator.
                scale = symmetric_qparams(x.abs().amax(-1, keepdim=True), 127)
                y = torch.matmul(self.input_quantizer(x * (1.0 / scale)), weight) * scale
            else:
                y = torch.matmul(x if self.input_quantizer is None else self.input_quantizer(x), weight)
        y = y if self.bias is None else y + self.bias
        return y if self.output_quantizer is None else self.output_quantizer(y)


def _stored(values: Tensor, scale: Tensor, wide: WideWeights) -> tuple[Tensor, Tensor]:
    """Integers ``(in_features, out_features)`` and scales, one for all or for each column, as :data:`WideWeights`."""
    if wide == "uint8":
        return (values.to(torch.int16) + _MIDDLE).to(torch.uint8), scale
    halved = (values.to(torch.int16).abs().amax(0) > NARROW) | (scale.ndim == 0)
    values = torch.where(halved, (values / 2).round().to(torch.int8), values)
    return values, scale * (2 if scale.ndim == 0 else 1 + halved)


class GraphTable(nn.Module):
    """An embedding table of integers; only rows that are looked up become floating point."""

    values: Tensor
    scale: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.register_buffer("values", weight.values)
        self.register_buffer("scale", weight.scale)
        self.zero_point = weight.zero_point

    @property
    def weight(self) -> Tensor:
        """The whole table in fp32, for models that use it without looking anything up."""
        return (self.values.float() - self.zero_point) * self.scale

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``(...)`` to rows ``(..., embedding_dim)``."""
        rows = self.values[ids].float() - self.zero_point
        return rows * (self.scale[ids] if len(self.scale) > 1 else self.scale.reshape(()))


class FixedQuantizer(FakeQuantizer):
    """A quantizer whose scale and zero point, those in a manifest, never change.

    A symmetric one is written as unsigned with zero point 128, because runtimes are fastest with unsigned inputs; its
    range then has one step more at its lower end.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, known: dict[str, Any], spec: dict[str, Any]) -> None:
        super().__init__()
        if spec["bits"] != 8:
            raise UserError(f"compression.json: activations of {spec['bits']} bits have no operator; only 8 bits have")
        offset = _MIDDLE if spec["symmetric"] else 0
        self.register_buffer("scale", torch.tensor(known["scale"], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(known["zero_point"] + offset, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape, quantized and dequantized."""
        return _QuantizeDequantize.apply(x, self.scale, self.zero_point)

    def spec(self) -> dict[str, Any]:
        return {}


class _Dequantize(torch.autograd.Function):
    """``weight * scale`` of int8, or of uint8 with its zero in the middle."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return scale.new_zeros(()).expand(values.shape)  # a shape will do, and the tracer keeps all it sees
        return _signed(values) * scale

    @staticmethod
    def symbolic(g: Any, values: Any, scale: Any) -> Any:
        if values.type().dtype() == torch.int8:
            # Without a zero point, which is 0 then: one tensor for several weights is more than ONNX Runtime 1.31 can
            # change when it is asked for exact products, and equal tensors are stored once.
            return g.op("DequantizeLinear", values, scale, axis_i=1)
        sizes = scale.type().sizes()
        zero_point = g.op("Constant", value_t=torch.full(sizes, _MIDDLE, dtype=torch.uint8))
        return g.op("DequantizeLinear", values, scale, zero_point, axis_i=1)


class _QuantizeDequantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return fake_quantize(x, scale, zero_point.int(), 0, 255)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        return g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero_point), scale, zero_point)


class _DynamicProduct(torch.autograd.Function):
    """``x @ (weight * scale)`` with ``x`` in uint8, whose scale and zero point follow from the range of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return x.new_zeros(()).expand(*x.shape[:-1], weight.shape[1])  # as above
        low, high = x.aminmax()
        return torch.matmul(fake_quantize(x, *asymmetric_qparams(low, high), 0, 255), _signed(weight) * scale)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, scale: Any) -> Any:
        values, x_scale, x_zero = g.op("DynamicQuantizeLinear", x, outputs=3)
        operands = [values, weight, x_zero]
        if weight.type().dtype() == torch.uint8:
            operands.append(g.op("Constant", value_t=torch.tensor(_MIDDLE, dtype=torch.uint8)))
        product = g.op("Cast", g.op("MatMulInteger", *operands), to_i=1)
        return g.op("Mul", product, g.op("Mul", x_scale, scale))


def _signed(values: Tensor) -> Tensor:
    """Integers of a weight in fp32."""
    return values.float() - (_MIDDLE if values.dtype == torch.uint8 else 0)


def _tied(model: PreTrainedModel) -> set[str]:
    """Names of modules whose weight is that of an embedding table."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m.weight) in tables}
