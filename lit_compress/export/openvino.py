"""A folded model as OpenVINO's IR, in floating point or with integers, under the names that Optimum looks for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lit_compress.export.check import Reference, Run, check_structure
from lit_compress.export.graph_form import GraphForm, is_quantized
from lit_compress.export.onnx import (
    DEFAULTS,
    IntegerOptions,
    advice,
    check_predictions,
    float_form,
    integer_form,
    structure,
)
from lit_compress.export.onnx_graph import trace, with_layers
from lit_compress.extras import optional
from lit_compress.models.folded import Folded
from lit_compress.models.hf_folder import write_companions
from lit_compress.models.model_card import FOLDER, code_of_runtime

__all__ = ["runner", "write_openvino", "write_openvino_int8"]

_FOLDER = "openvino"


def write_openvino(folded: Folded, folder: Path) -> None:
    """Write ``openvino/openvino_model.xml`` and ``.bin`` in fp32, configuration, tokenizer, manifest and card.

    Args:
        folded: what to write; not usable afterwards.
        folder: existing and empty.

    Raises:
        UserError: a package is missing, or OpenVINO's outputs differ from PyTorch's.

    """
    path = _prepare(folded, folder, "openvino_model")
    _write(float_form(folded), path, None, folder, DEFAULTS)


def write_openvino_int8(folded: Folded, folder: Path, options: IntegerOptions = DEFAULTS) -> None:
    """Write ``openvino/openvino_model_qint8_quantized.xml`` and ``.bin``, and the rest as :func:`write_openvino`.

    What quantization-aware training put on integers stays on them; for any processor, rows of weights that need 8 bits
    lose the last one. A model without any has its encoder's linears and its tables rounded to 8 bits on every
    processor: its inputs are in floating point, and OpenVINO itself rounds them, in groups of 32, only where there are
    8-bit dot products. Ranges of activations need a calibration, and that is another package's work (nncf).
    """
    path = _prepare(folded, folder, "openvino_model_qint8_quantized")
    what_else = advice(options, is_quantized(folded))
    form, expected = integer_form(folded, folder, "float", "7 bits", options)
    _write(form, path, expected, folder, options, what_else)


def _prepare(folded: Folded, folder: Path, name: str) -> Path:
    optional("openvino", "openvino")  # before minutes of work
    model = folded.model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_companions(model, folded.tokenizer, folded.manifest, folder, usage=_usage(model, name))
    path = folder / _FOLDER / f"{name}.xml"
    path.parent.mkdir()
    return path


def _write(
    form: GraphForm,
    path: Path,
    expected: Reference | None,
    folder: Path,
    options: IntegerOptions,
    what_else: str | None = None,
) -> None:
    """Write a form; of integers there is something else to try when it is worse."""
    openvino = optional("openvino", "openvino")
    graph = path.with_suffix(".onnx")
    trace(form, graph, {})
    outputs = structure(form)
    form.to("meta")  # gives its memory back before the runtime takes as much
    core = openvino.Core()
    # Read by the runtime itself: its converter for PyTorch modules reports its use over the network.
    converted = core.read_model(graph)
    openvino.save_model(converted, path, compress_to_fp16=False)
    del converted
    run = runner(core, path, form.outputs)
    check_structure(form, outputs, run, integers=what_else is not None)
    if expected is not None and what_else is not None:
        layers = _layer_runner(core, form, graph)
        check_predictions(form, expected, folder, options, run, layers, what_else)
    graph.unlink()


def runner(core: Any, path: Path, names: list[str], threads: int | None = None) -> Run:
    """Inputs by name to the outputs of a file, in the order of their names.

    Args:
        core: an ``openvino.Core``.
        path: of the file, OpenVINO's or ONNX.
        names: of the outputs.
        threads: None are as many as PyTorch has.

    """
    # fp32 also where the processor has bfloat16, so that the comparison is about the file.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
    request = core.compile_model(path, "CPU", settings).create_infer_request()

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        results = request.infer(inputs)
        return [results[name].copy() for name in names]

    return run


def _layer_runner(core: Any, form: GraphForm, graph: Path) -> Callable[[], Run]:
    def layers() -> Run:
        target = graph.with_suffix(".layers.onnx")
        names = with_layers(form, graph, target)
        run = runner(core, target, names)
        target.unlink()
        return run

    return layers


def _usage(model: PreTrainedModel, name: str) -> list[str]:
    return [
        "import openvino",
        "from transformers import AutoTokenizer",
        "",
        FOLDER,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'model = openvino.Core().compile_model(f"{{folder}}/{_FOLDER}/{name}.xml", "CPU")',
        "names = [each.get_any_name() for each in model.inputs]",
        *code_of_runtime(model, "model({name: inputs[name] for name in names})"),
    ]
