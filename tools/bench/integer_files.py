"""How an integer file is stored: what it costs in accuracy and in time, in sessions that people open.

Measured, for the student of each run and each way to write it (`--processor any` and `vnni`): the time of one call for
``--tokens`` tokens, divided by that of the fp32 file in the same runtime, alternating. With the row: the score on the
validation data of the run in that runtime, PyTorch's beside it, the share of predictions that are PyTorch's, and
whether this processor adds products of bytes in 16 bits. Sessions are those of a user who sets no option; *precise* is
ONNX Runtime with ``session.x64quantprecision``.

Gate: the fp32 file predicts what PyTorch does.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from lit_compress.data.text_data import TextData
from lit_compress.export.check import Comparison, compare, reference
from lit_compress.export.examples import examples_of_data
from lit_compress.export.graph_form import graph_form, is_quantized
from lit_compress.export.onnx import IntegerOptions, write_onnx, write_onnx_int8
from lit_compress.export.onnx_graph import input_names
from lit_compress.export.openvino import runner, write_openvino, write_openvino_int8
from lit_compress.export.run_folder import run_config, validation_data
from lit_compress.export.source import from_source
from lit_compress.extras import optional
from lit_compress.runtimes.onnx_session import adds_in_16_bits, open_session
from tools.bench.measure import RESULTS, Row, interleave, milliseconds, publish

_WAYS: dict[str, tuple[Callable[..., None], str, str | None]] = {
    "onnx": (write_onnx, "onnx/model.onnx", None),
    "onnx-int8, any": (write_onnx_int8, "onnx/model_quantized.onnx", "any"),
    "onnx-int8, vnni": (write_onnx_int8, "onnx/model_quantized.onnx", "vnni"),
    "onnx-int8, vnni, precise": (write_onnx_int8, "onnx/model_quantized.onnx", "vnni"),
    "openvino": (write_openvino, "openvino/openvino_model.xml", None),
    "openvino-int8, any": (write_openvino_int8, "openvino/openvino_model_qint8_quantized.xml", "any"),
    "openvino-int8, vnni": (write_openvino_int8, "openvino/openvino_model_qint8_quantized.xml", "vnni"),
}


def integer_files(
    runs: list[str], tokens: int = 64, threads: int = 1, repetitions: int = 40, output: Path = RESULTS
) -> list[Row]:
    """Write the student of each run in each way, and put score and time beside those of fp32.

    Args:
        runs: run folders of quantization-aware training.
        tokens: of the one text of a call.
        threads: of the processor.
        repetitions: calls.
        output: CSV file to append to.

    """
    torch.set_num_threads(threads)
    rows: list[Row] = []
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            rows += _of_run(run, tokens, threads, repetitions, Path(folder))
    publish(rows, output)
    return rows


def _of_run(run: str, tokens: int, threads: int, repetitions: int, folder: Path) -> list[Row]:
    folded = from_source(run=run)
    data = validation_data(run_config(run, {})["data"], folded.model.config)
    assert isinstance(data, TextData)
    if not is_quantized(folded):
        raise SystemExit(f"integer_files: {run} was not quantized in training")
    examples = examples_of_data(data, folded.model, run, most=10**6)
    form = graph_form(folded, input_names(folded), "float")
    expected = reference(form, examples)
    ids = {name: torch.ones(1, tokens, dtype=torch.long).numpy() for name in form.inputs}
    compared: dict[str, Comparison] = {}
    calls: dict[str, Callable[[], float]] = {}
    for name, (write, file, processor) in _WAYS.items():
        place = folder / name
        place.mkdir()
        options = {} if processor is None else {"options": IntegerOptions(processor=processor)}  # type: ignore[arg-type]
        write(from_source(run=run), place, **options)
        call = _opened(place / file, threads, form.outputs, precise="precise" in name)
        compared[name] = compare(form, examples, expected, call)
        calls[name] = _timed(call, ids)
    if compared["onnx"].equal < 0.9:
        raise SystemExit(f"gate: fp32 predicts {compared['onnx'].words()}; no row was written")
    seconds = interleave(calls, repetitions)
    found = []
    for name, comparison in compared.items():
        baseline = name.partition("-")[0]
        if name != baseline:
            settings = {"run": run, "tokens": tokens, "adds_in_16_bits": adds_in_16_bits()}
            settings |= {
                "score": comparison.score,
                "equal": round(comparison.equal, 4),
                "examples": comparison.examples,
            }
            settings |= {"milliseconds": milliseconds(seconds)}
            ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds[baseline], strict=True)]
            found.append(Row(benchmark="integer_files", case=f"{Path(run).name}: {name}", baseline=f"{baseline}, fp32",
                             ratios=ratios, settings=settings))  # fmt: skip
    return found


def _opened(file: Path, threads: int, outputs: list[str], precise: bool) -> Callable[[Any], list[Any]]:
    if file.suffix == ".onnx":
        session = open_session(file, threads, precise=precise)
        return lambda inputs: session.run(outputs, inputs)
    return runner(optional("openvino", "openvino").Core(), file, outputs, threads)


def _timed(call: Callable[[Any], Any], inputs: dict[str, Any]) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        call(inputs)
        return time.perf_counter() - started

    measure()  # the first call prepares
    return measure


if __name__ == "__main__":
    auto_cli(integer_files, as_positional=False)
