"""A folded model as ONNX, in floating point or with integers, beside the files that its users' libraries look for."""

import inspect
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.export.extras import optional
from lit_compress.export.folded import Folded
from lit_compress.export.graph_form import Activations, GraphForm, graph_form, has_grids, round_weights
from lit_compress.export.hf import write_beside
from lit_compress.export.onnx_session import open_session

__all__ = [
    "TOLERANCE",
    "TOLERANCE_INT8",
    "TOLERANCE_KERNELS",
    "check_outputs",
    "graph_and_plain",
    "input_names",
    "reference",
    "sample_inputs",
    "trace",
    "write_onnx",
    "write_onnx_int8",
]

OPSET = 17
# Difference from PyTorch, as a share of the largest output: of the median row, and of the worst. Floating point differs
# by the order of sums. In an integer model that moves a value between two grid points to the other one once in a while,
# and what follows is computed from another number: such a row is off by a part of what rounding costs, all others by
# nothing. Integer kernels round differently again, so a model is compared twice: as the file says it, and as it is run.
# Over many layers such values meet, and two runtimes are then as far apart as two roundings of the same numbers: where
# rounding the activations costs more than these, twice that cost is allowed, and never more than half of the output.
TOLERANCE = (1e-3, 1e-3)
TOLERANCE_INT8 = (1e-2, 1e-1)
TOLERANCE_KERNELS = (1e-1, 1e-1)
MOST_ROUNDING = 0.5

_MOST_BYTES = 2**31 - 1  # of a protocol buffer
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def write_onnx(folded: Folded, folder: Path) -> None:
    """Write ``onnx/model.onnx`` in fp32, configuration, tokenizer, manifest and card.

    Args:
        folded: what to write; used up.
        folder: existing and empty.

    Raises:
        UserError: a package is missing, or ONNX Runtime's outputs differ from PyTorch's.

    """
    # The grids of weights stay, as values; activations are as precise as they come.
    plain = Folded(model=folded.model, manifest={}, tokenizer=folded.tokenizer)
    _write(plain, folder, "model.onnx", "float", TOLERANCE, folded)


def write_onnx_int8(folded: Folded, folder: Path) -> None:
    """Write ``onnx/model_quantized.onnx`` and the rest as :func:`write_onnx`.

    What quantization-aware training put on grids stays on them. A model without any has its encoder's linears and its
    tables rounded to 8 bits, and ranges of activations follow each batch.
    """
    if not has_grids(folded):
        round_weights(folded)
    _write(folded, folder, "model_quantized.onnx", "dynamic", TOLERANCE_INT8, folded)


def _write(
    source: Folded, folder: Path, name: str, activations: Activations, tolerance: tuple[float, float], described: Folded
) -> None:
    optional("onnxruntime", "onnx")  # before minutes of work
    model = source.model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_beside(model, described.tokenizer, described.manifest, folder, usage=_usage(name))
    form, plain = graph_and_plain(source, activations)
    path = folder / "onnx" / name
    path.parent.mkdir()
    trace(form, path)
    expected = reference(form)
    form.to("meta")  # gives its memory back before the runtime takes as much
    session = open_session(path, torch.get_num_threads(), "ORT_ENABLE_BASIC")
    check_outputs(form, expected, lambda inputs: session.run(form.outputs, inputs), tolerance, plain)
    del session
    session = open_session(path, torch.get_num_threads())
    check_outputs(form, expected, lambda inputs: session.run(form.outputs, inputs), TOLERANCE_KERNELS, plain)


def graph_and_plain(source: Folded, activations: Activations) -> tuple[GraphForm, list[tuple[Tensor, ...]] | None]:
    """The form that is traced, and what the model gave for :func:`sample_inputs` before its activations were rounded.

    The latter is None for a model without grids, of which nothing is rounded.

    Args:
        source: model and manifest; used up.
        activations: see :func:`~lit_compress.export.graph_form.graph_form`.

    """
    names = input_names(source)
    plain = reference(GraphForm(source.model, names)) if has_grids(source) else None
    return graph_form(source, names, activations), plain


def input_names(folded: Folded) -> list[str]:
    """Inputs that the tokenizer makes and the model takes."""
    made = folded.tokenizer.model_input_names
    taken = inspect.signature(folded.model.forward).parameters
    types = getattr(folded.model.config, "type_vocab_size", 1) != 0  # XLNet has none and counts differently
    names = [name for name in _INPUTS if name in made and (name != "token_type_ids" or types)]
    return [name for name in names if name in taken]


def sample_inputs(form: GraphForm) -> Iterator[tuple[Tensor, ...]]:
    """Batches of several sizes and lengths, the same every time, some with padding."""
    config: Any = form.model.config
    limit = min(getattr(config, "max_position_embeddings", None) or 64, 64) - 4
    for rows, length in ((2, 7), (1, 3), (3, limit)):
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(0, config.vocab_size, (rows, max(1, min(length, limit))), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:, max(1, ids.shape[1] // 2) :] = 0
        types = torch.zeros_like(ids)
        if getattr(config, "type_vocab_size", 2) > 1:
            types[:, ids.shape[1] // 3 :] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        yield tuple(given[name] for name in form.inputs)


@torch.no_grad()
def reference(form: GraphForm) -> list[tuple[Tensor, ...]]:
    """What PyTorch gives for :func:`sample_inputs`."""
    return [form(*inputs) for inputs in sample_inputs(form)]


def check_outputs(
    form: GraphForm,
    expected: list[tuple[Tensor, ...]],
    run: Any,
    tolerance: tuple[float, float],
    plain: list[tuple[Tensor, ...]] | None = None,
) -> None:
    """Compare a runtime with PyTorch on :func:`sample_inputs`.

    Args:
        form: the model.
        expected: outputs of :func:`reference`.
        run: inputs by name, as NumPy arrays, to the outputs in the order of the model's.
        tolerance: largest difference of the median row and of any row, as shares of the largest output of its batch.
        plain: outputs before activations were rounded; twice the difference that rounding makes is allowed as well.

    Raises:
        UserError: an output differs by more.

    """
    results = [
        run({name: tensor.numpy() for name, tensor in zip(form.inputs, inputs, strict=True)})
        for inputs in sample_inputs(form)
    ]
    for index, name in enumerate(form.outputs):
        found = _median_and_worst(expected, results, index)
        rounding = (0.0, 0.0) if plain is None else _median_and_worst(expected, plain, index)
        for which, difference, most, cost in zip(("most rows", "a row"), found, tolerance, rounding, strict=True):
            most = max(most, min(2 * cost, MOST_ROUNDING))
            if not difference <= most:  # also for NaN
                raise UserError(
                    f"export: {name} of {which} differs from PyTorch in the runtime by {difference:.2g} of its size, "
                    f"and may by {most:.2g}; nothing was written"
                )


def _median_and_worst(expected: list[tuple[Tensor, ...]], found: list[Any], index: int) -> tuple[float, float]:
    """Differences of one of the outputs over all rows, as shares of the largest output of a batch."""
    rows: list[Tensor] = []
    for ours, theirs in zip(expected, found, strict=True):
        largest = ours[index].abs().max().clamp_min(1e-6)
        rows.append((ours[index] - torch.as_tensor(theirs[index])).abs().flatten(1).amax(1) / largest)
    every = torch.cat(rows)
    return float(every.median()), float(every.max())  # NaN when there is one


@torch.no_grad()
def trace(form: GraphForm, path: Path) -> None:
    """Write the graph of a model with its weights into one file, at most one weight at a time in memory twice.

    Raises:
        UserError: the file would be too large for ONNX.

    """
    onnx = optional("onnx", "onnx")
    inputs = next(sample_inputs(form))
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in form.inputs}
    shapes = [[tuple(output.shape) for output in form(*given)] for given in list(sample_inputs(form))[:2]]
    for name, first, second in zip(form.outputs, *shapes, strict=True):
        differing = [axis for axis in range(len(first)) if first[axis] != second[axis]]
        axes[name] = {axis: "batch" if axis == 0 else "length" for axis in differing}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that are constant for a model
        torch.onnx.export(
            form,
            inputs,
            buffer,  # type: ignore[arg-type]  (only the newer exporter needs a path)
            input_names=form.inputs,
            output_names=form.outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # the newer exporter takes twenty times as long for the same graph
            export_params=False,
            do_constant_folding=False,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    state = dict(form.named_parameters(remove_duplicate=False)) | dict(form.named_buffers(remove_duplicate=False))
    names = [entry.name for entry in proto.graph.input if entry.name not in form.inputs]
    del proto.graph.input[len(form.inputs) :]
    proto.producer_name, proto.producer_version = "lit_compress", ""
    _write_proto(onnx, proto, {name: state[name].detach() for name in names}, path)


def _write_proto(onnx: Any, proto: Any, weights: dict[str, Tensor], path: Path) -> None:
    """Serialize by hand: a message with all weights inside would be in memory three times."""
    types = {torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int64: 7, torch.bool: 9, torch.int32: 6}
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


def _usage(name: str) -> list[str]:
    return [
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
        f'session = onnxruntime.InferenceSession("<this folder>/onnx/{name}")',
        "names = [each.name for each in session.get_inputs()]",
        'inputs = tokenizer(["a text"], return_tensors="np")',
        "outputs = session.run(None, {name: inputs[name] for name in names})",
    ]
