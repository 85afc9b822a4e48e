"""A report in TensorBoard: its figures under ``report/`` and its final metrics in the table of hyper-parameters.

The events lie in the report's folder, so that a new report replaces them. TensorBoard shows that folder as a run of its
own, ``<run>/report``; the table of hyper-parameters finds its metrics there because the fit says so in
:func:`lit_compress.report.hyperparameters.experiment`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lit_compress.report.markdown import cell
from lit_compress.report.size import sparsity_of
from lit_compress.report.summary import cautions, own_name, verdict_lines

__all__ = ["final_metrics", "write_events"]


def final_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """What the table of hyper-parameters shows of a report, by tag.

    ``report/<metric>`` of the exported folder, ``report/<metric>_dense``, ``report/encoder_sparsity`` as a fraction,
    ``report/model_megabytes`` of values and index, and ``report/latency_of_dense``, a ratio at the first batch size.
    """
    models = results["models"]
    own, dense = models[own_name(results)], models.get("dense")
    encoder, batch = own["size"]["encoder"], next(iter(own["latency_ms"]))
    values = dict(own["accuracy"])
    if dense:
        values |= {f"{name}_dense": value for name, value in dense["accuracy"].items()}
        values["latency_of_dense"] = own["latency_ms"][batch] / dense["latency_ms"][batch]
    values["encoder_sparsity"] = sparsity_of(encoder)
    values["model_megabytes"] = own["size"]["model"]["compressed_bytes"] / 1e6
    return {f"report/{name}": float(value) for name, value in values.items()}


def write_events(folder: Path, results: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
    """Write an event file with images (uint8 ``(height, width, 3)``) and final metrics."""
    with SummaryWriter(str(folder)) as writer:
        for name, image in pictures.items():
            writer.add_image(f"report/{name}", image, dataformats="HWC")
        for tag, value in final_metrics(results).items():
            writer.add_scalar(tag, value)
        if "comparison" in results:
            said = [*cautions(results), *verdict_lines(results)]
            writer.add_text("report/verdict", "\n".join(f"- {cell(line)}" for line in said))
