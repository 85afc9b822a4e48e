"""A folded model as ONNX, in floating point or with integers, beside the files that its users' libraries look for."""

import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from lit_compress.errors import UserError
from lit_compress.export.check import (
    Examples,
    Reference,
    Run,
    check_structure,
    compare,
    first_wrong_layer,
    judge,
    reference,
    sample_inputs,
    sample_lengths,
)
from lit_compress.export.extras import optional
from lit_compress.export.folded import Folded
from lit_compress.export.graph_form import (
    Activations,
    GraphForm,
    WideWeights,
    graph_form,
    graph_tables,
    has_grids,
    round_tables,
    round_weights,
    store_wide,
)
from lit_compress.export.hf import add_to_card, write_beside, write_manifest
from lit_compress.export.onnx_session import DEFAULT_SESSION, adds_in_16_bits, open_session
from lit_compress.models.layout import encoder_layers
from lit_compress.models.load import first_line

__all__ = [
    "DEFAULTS",
    "IntegerOptions",
    "Processor",
    "check_predictions",
    "float_form",
    "input_names",
    "integer_form",
    "structure",
    "trace",
    "with_layers",
    "write_onnx",
    "write_onnx_int8",
]

OPSET = 17

_MOST_BYTES = 2**31 - 1  # of a protocol buffer
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# What a file of integers runs on: every processor in every session, or those with 8-bit dot products.
Processor = Literal["any", "vnni"]


@dataclass(frozen=True, kw_only=True)
class IntegerOptions:
    """How integers are written, and what is asked of the file.

    Attributes:
        processor: ``any`` computes the same everywhere; ``vnni`` leaves 8-bit weights int8, which is faster where there
            are 8-bit dot products and wrong in default sessions elsewhere.
        tables: what becomes of embedding tables without scales from training: ``int8`` (a scale per row) or ``float``.
        examples: what the file is judged on; None checks its structure alone.
        strict: refuse a file whose predictions or score are worse, instead of saying so.

    """

    processor: Processor = "any"
    tables: Literal["int8", "float"] = "int8"
    examples: Examples | None = None
    strict: bool = False


DEFAULTS = IntegerOptions()

_WIDE: dict[WideWeights, str] = {"uint8": "as uint8", "7 bits": "without their last bit"}


def write_onnx(folded: Folded, folder: Path) -> None:
    """Write ``onnx/model.onnx`` in fp32, configuration, tokenizer, manifest and card.

    Args:
        folded: what to write; used up.
        folder: existing and empty.

    Raises:
        UserError: a package is missing, or ONNX Runtime's outputs differ from PyTorch's.

    """
    path = _prepare(folded, folder, "model.onnx", DEFAULTS)
    form = float_form(folded)
    trace(form, path, DEFAULT_SESSION)
    _check(form, path, None, folder, DEFAULTS, integers=False)


def write_onnx_int8(folded: Folded, folder: Path, options: IntegerOptions = DEFAULTS) -> None:
    """Write ``onnx/model_quantized.onnx`` and the rest as :func:`write_onnx`.

    What quantization-aware training put on integers stays on them. A model without any has its encoder's linears
    rounded to 7 bits (8 for ``vnni``), and ranges of activations follow each batch. Tables without scales become int8.
    """
    path = _prepare(folded, folder, "model_quantized.onnx", options)
    form, expected = integer_form(folded, folder, "dynamic", "uint8", options)
    trace(form, path, DEFAULT_SESSION if options.processor == "any" else {})
    _check(form, path, expected, folder, options, integers=True)


def float_form(folded: Folded) -> GraphForm:
    """The form of a model whose activations are as precise as they come; weights keep the values that they have."""
    plain = Folded(model=folded.model, manifest={}, tokenizer=folded.tokenizer)
    return graph_form(plain, input_names(folded), "float")


def integer_form(
    folded: Folded, folder: Path, activations: Activations, wide: WideWeights, options: IntegerOptions
) -> tuple[GraphForm, Reference | None]:
    """The form of a model on integers, and what PyTorch gives for the examples.

    The latter is computed as training did, before anything is rounded here; in floating point for a model that was not
    quantized in training.

    Args:
        folded: model and manifest; used up.
        folder: whose manifest and card get what is rounded here.
        activations: see :func:`~lit_compress.export.graph_form.graph_form`.
        wide: how weights of more than 7 bits are stored for any processor.
        options: of the user.

    """
    names, examples = input_names(folded), options.examples
    rounded: list[str] = []
    if has_grids(folded):
        form = graph_form(folded, names, activations)
        expected = reference(form, examples) if examples else None
    else:
        expected = reference(GraphForm(folded.model, names), examples) if examples else None
        bits = 7 if options.processor == "any" else 8
        rounded += [f"{round_weights(folded, bits)} linears to {bits} bits"]
        form = graph_form(folded, names, activations)
    if options.tables == "int8" and (tables := round_tables(folded)):
        graph_tables(folded)
        rounded += [f"{tables} embedding tables to 8 bits, a scale for each row"]
    if options.processor == "any" and (count := store_wide(form, wide)):
        line = (
            f"{count} weights use 8 bits and were written {_WIDE[wide]}, so that the file is right on every processor. "
            "Faster where there are 8-bit dot products: --processor vnni; fast and right everywhere: train with "
            "QuantAwareTraining.weight_bits 7."
        )
        Console(soft_wrap=True).print(line, markup=False, highlight=False)
        add_to_card(folder, line)
    if rounded:
        write_manifest(folded.manifest, folder)
        add_to_card(folder, f"Rounded at export: {'; '.join(rounded)}.")
    return form, expected


def _prepare(folded: Folded, folder: Path, name: str, options: IntegerOptions) -> Path:
    """Write what lies beside a graph, and give the graph's path; the packages are there."""
    optional("onnxruntime", "onnx")  # before minutes of work
    optional("onnx", "onnx")
    model = folded.model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_beside(model, folded.tokenizer, folded.manifest, folder, usage=_usage(name, options.processor))
    path = folder / "onnx" / name
    path.parent.mkdir()
    return path


def _check(
    form: GraphForm, path: Path, expected: Reference | None, folder: Path, options: IntegerOptions, integers: bool
) -> None:
    outputs = structure(form)
    form.to("meta")  # gives its memory back before the runtime takes as much
    for optimization in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):  # as the file says it, and as it is run
        run = runner(form, open_session(path, torch.get_num_threads(), optimization))
        check_structure(form, outputs, run, integers)
    if expected is not None:
        check_predictions(form, expected, folder, options, run, lambda: _layer_runner(form, path))


def structure(form: GraphForm) -> list[tuple[Tensor, ...]]:
    """What PyTorch gives for :func:`~lit_compress.export.check.sample_inputs`."""
    with torch.no_grad():
        return [form(*inputs) for inputs in sample_inputs(form)]


def check_predictions(
    form: GraphForm,
    expected: Reference,
    folder: Path,
    options: IntegerOptions,
    run: Run,
    layers: Callable[[], Run],
) -> None:
    """Judge a file on examples, say how it compares, and note it on the folder's card.

    Args:
        form: the model.
        expected: of :func:`~lit_compress.export.check.reference`.
        folder: that has the file.
        options: of the user, with the examples.
        run: inputs by name, as NumPy arrays, to the outputs in the order of the model's.
        layers: opens the file so that it gives what each layer does.

    Raises:
        UserError: too many predictions are other ones.

    """
    examples = options.examples
    assert examples is not None
    comparison = compare(form, examples, expected, run)
    said = judge(
        comparison, options.strict, lambda: first_wrong_layer(form, examples, expected, layers()), _advice(options)
    )
    Console(soft_wrap=True).print(f"{said} Examples: {examples.origin}.", markup=False, highlight=False)
    add_to_card(folder, f"{comparison.words()} ({examples.origin}).")


def _advice(options: IntegerOptions) -> str:
    if options.processor == "vnni" and adds_in_16_bits():
        return "this processor adds 8-bit products in 16 bits, where some overflow: give --processor any"
    if options.tables == "int8":
        return "try --tables float, train with QuantAwareTraining, or export in floating point"
    return "train with QuantAwareTraining, or export in floating point"


def runner(form: GraphForm, session: Any) -> Run:
    """Inputs by name to the outputs of a session of ONNX Runtime, in the order of the model's."""
    return lambda inputs: session.run(form.outputs, inputs)


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


def _layer_runner(form: GraphForm, path: Path) -> Run:
    target = path.with_suffix(".layers.onnx")
    names = with_layers(form, path, target)
    session = open_session(target, torch.get_num_threads())
    target.unlink()
    return lambda inputs: session.run(names, inputs)


def input_names(folded: Folded) -> list[str]:
    """Inputs that the tokenizer makes and the model takes."""
    made = folded.tokenizer.model_input_names
    taken = inspect.signature(folded.model.forward).parameters
    types = getattr(folded.model.config, "type_vocab_size", 1) != 0  # XLNet has none and counts differently
    names = [name for name in _INPUTS if name in made and (name != "token_type_ids" or types)]
    return [name for name in names if name in taken]


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
    proto = _traced(form, short)
    # BigBird's model stays dense after the first short text.
    sparse = getattr(form.model.config, "attention_type", None) == "block_sparse"
    if sparse or _operators(_traced(form, longest)) != _operators(proto):
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


def _traced(form: GraphForm, length: int) -> Any:
    """The graph without its weights, from inputs of some length.

    Raises:
        UserError: the model cannot be traced.

    """
    onnx = optional("onnx", "onnx")
    lengths = sample_lengths(form)
    shapes = [[tuple(output.shape) for output in form(*next(sample_inputs(form, [n])))] for n in lengths[:2]]
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in form.inputs}
    for name, first, second in zip(form.outputs, *shapes, strict=True):
        axes[name] = {0: "batch"} | {n: "length" for n in range(1, len(first)) if first[n] != second[n]}
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


def _usage(name: str, processor: Processor) -> list[str]:
    options = [
        "options = onnxruntime.SessionOptions()",
        "# Without it, processors that lack 8-bit dot products add pairs of products in 16 bits, where some overflow.",
        'options.add_session_config_entry("session.x64quantprecision", "1")',
    ]
    given = ", options" if processor == "vnni" else ""
    return [
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        *(options if processor == "vnni" else []),
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
        f'session = onnxruntime.InferenceSession("<this folder>/onnx/{name}"{given})',
        "names = [each.name for each in session.get_inputs()]",
        'inputs = tokenizer(["a text"], return_tensors="np")',
        "outputs = session.run(None, {name: inputs[name] for name in names})",
    ]
