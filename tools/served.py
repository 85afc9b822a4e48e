"""A trained stage as it is deployed: int8 on ONNX Runtime, its score there, and its speed to the dense model in fp32.

Eager PyTorch computes zeros and simulated integers like any other number, so its speed says little about a pruned or
quantized model; the dense model on ONNX Runtime is the strongest baseline of a processor.
"""

from pathlib import Path
from typing import Any

import torch

from lit_compress.commands import export_model
from lit_compress.export.run_folder import run_config, task_of, validation_data
from lit_compress.models.load import load_config
from lit_compress.report.formats import evaluate_cases
from lit_compress.report.timing import cases_of, measure, opened

__all__ = ["served"]

ENGINE, DENSE_FORMAT, OWN_FORMAT = "onnxruntime", "onnx", "onnx-int8"
_REPETITIONS, _WARMUP = 15, 3


def served(run: Path, dense: Path, metric: str, tokens: int) -> dict[str, Any]:
    """Columns of a row of results.csv.

    Args:
        run: folder of the finished training.
        dense: folder of the dense model, which the training was compared with; its export is kept in the run.
        metric: name of the score.
        tokens: length of the one example whose speed is measured.

    Returns:
        ``int8_value``, ``int8_speedup`` (times dense fp32 on the same engine) and ``int8_bytes`` of the model's file.

    """
    # In the run's own folder: the dense model may be somebody else's.
    reference, own = run / f"dense-{DENSE_FORMAT}", run / OWN_FORMAT
    export_model(model=str(dense), to=DENSE_FORMAT, output=str(reference), overwrite=True)
    export_model(run=str(run), to=OWN_FORMAT, output=str(own), overwrite=True)
    cases = cases_of([f"dense={reference}", f"int8={own}"], [ENGINE])
    validation = validation_data(run_config(str(run), {})["data"], load_config(str(own), "--run"))
    with opened(cases, torch.get_num_threads(), "cpu") as asks:
        measure(cases, asks, [(1, tokens)], _WARMUP, _REPETITIONS)
        evaluate_cases(cases[1:], asks[1:], validation, task_of(validation))
    dense_ms, own_ms = (case.results["times"][f"1x{tokens}"]["median_ms"] for case in cases)
    return {
        "int8_value": round(cases[1].results["metrics"][metric], 5),
        "int8_speedup": round(dense_ms / own_ms, 2),
        "int8_bytes": cases[1].variant.bytes,
    }
