"""A folded model as OpenVINO's IR, in floating point or with integers, under the names that Optimum looks for."""

from pathlib import Path

import torch

from lit_compress.export.extras import optional
from lit_compress.export.folded import Folded
from lit_compress.export.graph_form import Activations, has_grids, round_weights
from lit_compress.export.hf import write_beside
from lit_compress.export.onnx import TOLERANCE, TOLERANCE_KERNELS, check_outputs, graph_and_plain, reference, trace

__all__ = ["write_openvino", "write_openvino_int8"]

_FOLDER = "openvino"


def write_openvino(folded: Folded, folder: Path) -> None:
    """Write ``openvino/openvino_model.xml`` and ``.bin`` in fp32, configuration, tokenizer, manifest and card.

    Args:
        folded: what to write; used up.
        folder: existing and empty.

    Raises:
        UserError: a package is missing, or OpenVINO's outputs differ from PyTorch's.

    """
    plain = Folded(model=folded.model, manifest={}, tokenizer=folded.tokenizer)
    _write(plain, folder, "openvino_model", "float", TOLERANCE, folded)


def write_openvino_int8(folded: Folded, folder: Path) -> None:
    """Write ``openvino/openvino_model_qint8_quantized.xml`` and ``.bin``, and the rest as :func:`write_openvino`.

    What quantization-aware training put on grids stays on them. A model without any has its encoder's linears and its
    tables rounded to 8 bits, and computes with what they stand for: ranges of activations need a calibration, and that
    is another package's work (nncf).
    """
    if not has_grids(folded):
        round_weights(folded)
    name = "openvino_model_qint8_quantized"
    _write(folded, folder, name, "float", TOLERANCE_KERNELS, folded)


def _write(
    source: Folded, folder: Path, name: str, activations: Activations, tolerance: tuple[float, float], described: Folded
) -> None:
    openvino = optional("openvino", "openvino")
    model = source.model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_beside(model, described.tokenizer, described.manifest, folder, usage=_usage(name))
    form, plain = graph_and_plain(source, activations)
    path = folder / _FOLDER / f"{name}.xml"
    path.parent.mkdir()
    graph = path.with_suffix(".onnx")
    trace(form, graph)
    expected = reference(form)
    form.to("meta")  # gives its memory back before the runtime takes as much
    core = openvino.Core()
    # Read by the runtime itself: its converter for PyTorch modules reports its use over the network.
    converted = core.read_model(graph)
    openvino.save_model(converted, path, compress_to_fp16=False)
    del converted
    graph.unlink()
    # fp32 also where the processor has bfloat16, so that the comparison is about the file.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(path, "CPU", settings).create_infer_request()

    def run(inputs: dict) -> list:
        results = request.infer(inputs)
        return [results[name].copy() for name in form.outputs]

    check_outputs(form, expected, run, tolerance, plain)


def _usage(name: str) -> list[str]:
    return [
        "import openvino",
        "from transformers import AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
        f'model = openvino.Core().compile_model("<this folder>/{_FOLDER}/{name}.xml", "CPU")',
        "names = [each.get_any_name() for each in model.inputs]",
        'inputs = tokenizer(["a text"], return_tensors="np")',
        "outputs = model({name: inputs[name] for name in names})",
    ]
