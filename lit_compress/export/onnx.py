"""A folded model as ONNX, in floating point or with integers, with the files that its users' libraries look for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_compress.choices import Processor
from lit_compress.console import say
from lit_compress.export.check import (
    TOLERANCE_INT8,
    CheckOptions,
    Reference,
    Run,
    check_structure,
    compare,
    first_wrong_layer,
    judge,
    reference,
    sample_inputs,
)
from lit_compress.export.graph_form import (
    Activations,
    GraphForm,
    WideWeights,
    as_trained,
    graph_form,
    graph_tables,
    is_quantized,
    round_tables,
    round_weights,
    store_wide,
)
from lit_compress.export.onnx_graph import input_names, trace, with_layers
from lit_compress.extras import optional
from lit_compress.models.folded import Folded
from lit_compress.models.hf_folder import add_to_card, write_companions, write_manifest
from lit_compress.models.model_card import FOLDER, code_of_runtime
from lit_compress.runtimes.onnx_session import DEFAULT_SESSION, adds_in_16_bits, open_session

__all__ = [
    "DEFAULTS",
    "IntegerOptions",
    "Processor",
    "advice",
    "check_predictions",
    "checked_run",
    "float_form",
    "integer_form",
    "layer_runner",
    "prepare",
    "structure",
    "write_onnx",
    "write_onnx_int8",
]


@dataclass(frozen=True, kw_only=True)
class IntegerOptions(CheckOptions):
    """How integers are written, and what is asked of the file.

    Attributes:
        processor: ``any`` computes the same everywhere; ``vnni`` leaves 8-bit weights int8, which is faster where there
            are 8-bit dot products and wrong in default sessions elsewhere.
        tables: what becomes of embedding tables without scales from training: ``int8`` (a scale per row) or ``float``.

    """

    processor: Processor = "any"
    tables: Literal["int8", "float"] = "int8"


DEFAULTS = IntegerOptions()

_WIDE: dict[WideWeights, str] = {"uint8": "as uint8", "7 bits": "without their last bit"}


def write_onnx(folded: Folded, folder: Path) -> None:
    """Write ``onnx/model.onnx`` in fp32, configuration, tokenizer, manifest and card.

    Args:
        folded: what to write; not usable afterwards.
        folder: existing and empty.

    Raises:
        UserError: a package is missing, or ONNX Runtime's outputs differ from PyTorch's.

    """
    path = prepare(folded, folder, "model.onnx", DEFAULTS)
    form = float_form(folded)
    trace(form, path, DEFAULT_SESSION)
    checked_run(form, path, structure(form), integers=False)


def write_onnx_int8(folded: Folded, folder: Path, options: IntegerOptions = DEFAULTS) -> None:
    """Write ``onnx/model_quantized.onnx`` and the rest as :func:`write_onnx`.

    What quantization-aware training put on integers stays on them. A model without any has its encoder's linears
    rounded to 7 bits (8 for ``vnni``), and ranges of activations follow each batch. Tables without scales become int8.
    """
    path = prepare(folded, folder, "model_quantized.onnx", options)
    trained = is_quantized(folded)
    form, expected = integer_form(folded, folder, "dynamic", "uint8", options)
    trace(form, path, DEFAULT_SESSION if options.processor == "any" else {})
    run = checked_run(form, path, structure(form), integers=True)
    if expected is not None:
        layers = partial(layer_runner, form, path)
        check_predictions(form, expected, folder, options, run, layers, advice(options, trained))


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
        folded: model and manifest; not usable afterwards.
        folder: whose manifest and card get what is rounded here.
        activations: see :func:`~lit_compress.export.graph_form.graph_form`.
        wide: how weights of more than 7 bits are stored for any processor.
        options: of the user.

    """
    names, examples = input_names(folded), options.examples
    rounded: list[str] = []
    if is_quantized(folded):
        form = graph_form(folded, names, activations)
        with as_trained(form):
            expected = reference(form, examples) if examples else None
    else:
        expected = reference(GraphForm(folded.model, names), examples) if examples else None
        # Only products of integers can overflow.
        bits = 7 if options.processor == "any" and activations == "dynamic" else 8
        rounded += [f"{round_weights(folded, bits)} linears to {bits} bits"]
        form = graph_form(folded, names, activations)
    if options.tables == "int8" and (tables := round_tables(folded)):
        graph_tables(folded)
        rounded += [f"{tables} embedding tables to 8 bits, a scale for each row"]
    if options.processor == "any" and (stored := store_wide(form, wide)):
        if wide == "7 bits":
            for name, scale in stored.items():
                folded.entries()[name]["scales"]["weight"] = scale.reshape(-1).tolist()
            write_manifest(folded.manifest, folder)
        line = (
            f"{len(stored)} weights use 8 bits and were written {_WIDE[wide]}, so that the file is right on every "
            "processor. Faster where there are 8-bit dot products: --processor vnni; fast and right everywhere: train "
            "with QuantAwareTraining.weight_bits 7."
        )
        say(line)
        add_to_card(folder, line)
    if rounded:
        write_manifest(folded.manifest, folder)
        add_to_card(folder, f"Rounded at export: {'; '.join(rounded)}.")
    return form, expected


def prepare(folded: Folded, folder: Path, name: str, options: IntegerOptions) -> Path:
    """Write the files that go with a graph, and return the graph's path; the packages are installed."""
    optional("onnxruntime", "onnx")  # before minutes of work
    optional("onnx", "onnx")
    model = folded.model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_companions(model, folded.tokenizer, folded.manifest, folder, usage=_usage(model, name, options.processor))
    path = folder / "onnx" / name
    path.parent.mkdir()
    return path


def checked_run(
    form: GraphForm,
    path: Path,
    outputs: list[tuple[Tensor, ...]],
    integers: bool,
    most: float = TOLERANCE_INT8,
) -> Run:
    """Open a file, compare it with PyTorch on random ids, and give inputs by name to its outputs.

    Args:
        form: what the file was made of; moved to the device ``meta``.
        path: of the file.
        outputs: of :func:`structure`.
        integers: as in :func:`~lit_compress.export.check.check_structure`.
        most: see :func:`~lit_compress.export.check.check_structure`.

    Raises:
        UserError: see :func:`~lit_compress.export.check.check_structure`.

    """
    form.to("meta")  # gives its memory back before the runtime takes as much
    for optimization in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):  # as the file says it, and as it is run
        session = open_session(path, torch.get_num_threads(), optimization)
        run: Run = partial(session.run, form.outputs)
        check_structure(form, outputs, run, integers, most)
    return run


def structure(form: GraphForm) -> list[tuple[Tensor, ...]]:
    """What PyTorch gives for :func:`~lit_compress.export.check.sample_inputs`."""
    with torch.no_grad():
        return [form(*inputs) for inputs in sample_inputs(form)]


def check_predictions(
    form: GraphForm,
    expected: Reference,
    folder: Path,
    options: CheckOptions,
    run: Run,
    layers: Callable[[], Run],
    advice: str,
) -> None:
    """Judge a file on examples, say how it compares, and note it on the folder's card.

    Args:
        form: the model.
        expected: of :func:`~lit_compress.export.check.reference`.
        folder: that has the file.
        options: of the user, with the examples.
        run: inputs by name, as NumPy arrays, to the outputs in the order of the model's.
        layers: opens the file so that it gives what each layer does.
        advice: what to try when it is worse.

    Raises:
        UserError: too many predictions are other ones.

    """
    examples = options.examples
    assert examples is not None
    comparison = compare(form, examples, expected, run)
    said = judge(comparison, options.strict, lambda: first_wrong_layer(form, examples, expected, layers()), advice)
    say(f"{said} Examples: {examples.origin}.")
    add_to_card(folder, f"{comparison.words()} ({examples.origin}).")


def advice(options: IntegerOptions, trained: bool) -> str:
    """What to try when a file of integers is worse.

    Args:
        options: of the user.
        trained: whether the model was quantized in training.

    """
    if options.processor == "vnni" and adds_in_16_bits():
        return "this processor adds 8-bit products in 16 bits, where some overflow: give --processor any"
    ways = ["try --tables float"] if options.tables == "int8" else []
    ways.append("train longer with QuantAwareTraining" if trained else "train with QuantAwareTraining")
    return f"{', '.join(ways)}, or export in floating point"


def layer_runner(form: GraphForm, path: Path) -> Run:
    """Inputs by name to what each layer gives; the file is read once more."""
    target = path.with_suffix(".layers.onnx")
    names = with_layers(form, path, target)
    session = open_session(target, torch.get_num_threads())
    target.unlink()
    return lambda inputs: session.run(names, inputs)


def _usage(model: PreTrainedModel, name: str, processor: Processor) -> list[str]:
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
        FOLDER,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'session = onnxruntime.InferenceSession(f"{{folder}}/onnx/{name}"{given})',
        "names = [each.name for each in session.get_inputs()]",
        *code_of_runtime(model, "session.run(None, {name: inputs[name] for name in names})"),
    ]
