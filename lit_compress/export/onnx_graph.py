"""A model as one ONNX graph: traced without its weights, and written with them one after the other."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError, first_line
from lit_compress.export.check import sample_inputs, sample_lengths
from lit_compress.export.graph_form import GraphForm
from lit_compress.extras import optional
from lit_compress.models.folded import Folded
from lit_compress.models.input_names import model_inputs
from lit_compress.models.layout import encoder_layers

__all__ = ["input_names", "trace", "with_layers"]

OPSET = 17

_MOST_BYTES = 2**31 - 1  # of a protocol buffer


def input_names(folded: Folded) -> list[str]:
    """Inputs that the tokenizer makes and the model takes."""
    made = folded.tokenizer.model_input_names
    return [name for name in model_inputs(folded.model) if name in made]


@torch.no_grad()
def trace(form: GraphForm, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the graph of a model with its weights into one file, at most one weight at a time in memory twice.

    Args:
        form: the model.
        path: of the file.
        metadata: entries of the file.

    Raises:
        UserError: the file would be too large for ONNX, or the graph of this family depends on the length.

    """
    onnx = optional("onnx", "onnx")
    short, *_, longest = sample_lengths(form)
    axes = _dynamic_axes(form)
    proto = _traced(form, short, axes)
    # BigBird's model stays dense after the first short text.
    sparse = getattr(form.model.config, "attention_type", None) == "block_sparse"
    if sparse or _operators(_traced(form, longest, axes)) != _operators(proto):
        raise UserError(
            f"export: a {type(form.model).__name__} computes {short} and {longest} tokens in different ways, and an "
            "ONNX graph has one for all lengths; export to hf, packed or sparse"
        )
    state = dict(form.named_parameters(remove_duplicate=False)) | dict(form.named_buffers(remove_duplicate=False))
    names = [entry.name for entry in proto.graph.input if entry.name not in form.inputs]
    del proto.graph.input[len(form.inputs) :]
    proto.producer_name, proto.producer_version = "lit_compress", ""
    onnx.helper.set_model_props(proto, dict(metadata))
    _write_proto(onnx, proto, {name: state[name].detach() for name in names}, path)


def _dynamic_axes(form: GraphForm) -> dict[str, dict[int, str]]:
    """The axes of inputs and outputs that are a batch's and a text's."""
    shapes = [
        [tuple(output.shape) for output in form(*next(sample_inputs(form, [n])))] for n in sample_lengths(form)[:2]
    ]
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in form.inputs}
    for name, first, second in zip(form.outputs, *shapes, strict=True):
        axes[name] = {0: "batch"} | {n: "length" for n in range(1, len(first)) if first[n] != second[n]}
    return axes


def _traced(form: GraphForm, length: int, axes: dict[str, dict[int, str]]) -> Any:
    """The graph without its weights, from inputs of some length.

    Raises:
        UserError: the model cannot be traced.

    """
    onnx = optional("onnx", "onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that are constant for a model
        try:
            torch.onnx.export(
                form,
                next(sample_inputs(form, [length, length + 1])),
                buffer,  # type: ignore[arg-type]  (only the newer exporter needs a path)
                input_names=form.inputs,
                output_names=form.outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,  # the newer exporter takes twenty times as long for the same graph
                export_params=False,
                do_constant_folding=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"export: a {type(form.model).__name__} of Transformers cannot be traced to ONNX: {first_line(error)}; "
                "export to hf, packed or sparse"
            ) from error
    return onnx.load_from_string(buffer.getvalue())


def _operators(proto: Any) -> list[bytes]:
    """The nodes of a graph with their constants."""
    return [node.SerializeToString() for node in proto.graph.node]


def _write_proto(onnx: Any, proto: Any, weights: dict[str, Tensor], path: Path) -> None:
    """Serialize by hand: a message with all weights inside would be in memory three times."""
    types = {torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int32: 6, torch.int64: 7, torch.bool: 9}
    types[torch.float16] = 10
    heads = []
    for name, weight in weights.items():
        head = onnx.TensorProto(name=name, dims=weight.shape, data_type=types[weight.dtype]).SerializeToString()
        bytes_ = weight.numel() * weight.element_size()
        head += _tag(9) + _varint(bytes_)  # raw_data
        heads.append(_tag(5) + _varint(len(head) + bytes_) + head)  # graph.initializer
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    start = proto.SerializeToString()
    size = len(graph) + sum(map(len, heads)) + sum(w.numel() * w.element_size() for w in weights.values())
    if size + len(start) > _MOST_BYTES:
        raise UserError(f"export: the model takes {size} bytes and one ONNX file holds {_MOST_BYTES}")
    with path.open("wb") as file:
        file.write(start + _tag(7) + _varint(size) + graph)
        for head, weight in zip(heads, weights.values(), strict=True):
            file.write(head)
            file.write(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | 2)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def with_layers(form: GraphForm, path: Path, target: Path) -> list[str]:
    """Copy a graph to one whose outputs are those of each layer, and give their names."""
    onnx = optional("onnx", "onnx")
    proto = onnx.load(path)
    ids = {id(layer) for layer in encoder_layers(form.model)}
    scopes = [f"/{name.replace('.', '/')}/" for name, module in form.named_modules() if id(module) in ids]
    # Node names have the path of a module with points where a module list or a sequence is entered.
    names = [name for scope in scopes if (name := _last_output(proto, scope))]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(proto, target)
    return names


def _last_output(proto: Any, scope: str) -> str | None:
    inside = [node for node in proto.graph.node if f"{node.name.replace('.', '/')}/".startswith(scope)]
    return inside[-1].output[0] if inside else None
