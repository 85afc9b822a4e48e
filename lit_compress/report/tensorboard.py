"""A report in TensorBoard: its figures under ``report/`` and its final metrics beside the hyper-parameters.

The events lie in the report's folder, so that a new report replaces them. TensorBoard shows that folder as a run of its
own, ``<run>/report``; the table of hyper-parameters finds its metrics there because the fit says so in
:func:`experiment`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lit_compress.report.card import cell
from lit_compress.report.sections import cautions, own_name, verdict_lines
from lit_compress.report.size import sparsity_of

__all__ = ["experiment", "final_metrics", "write_events"]

_GROUP = "report"  # the folder below that of the run
_SIZES = ("encoder_sparsity", "model_megabytes", "latency_of_dense")


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


def experiment(settings: dict[str, Any], metrics: dict[str, float]) -> list[Any]:
    """Summaries that put a fit into the table of hyper-parameters, with columns for the report that may follow.

    Args:
        settings: name to scalar.
        metrics: final ones of the fit, ``val/<metric>``.

    """
    described, start, end = hparams(settings, metrics)
    # The classes of these messages are made at run time, so no checker knows them.
    messages: Any = api_pb2
    data: Any = plugin_data_pb2
    content = metadata.parse_experiment_plugin_data(described.value[0].metadata.plugin_data.content)
    names = [name.partition("/")[2] for name in metrics if name != "val/loss"]
    for name in (*(f"{name}{which}" for name in names for which in ("", "_dense")), *_SIZES):
        content.metric_infos.append(
            messages.MetricInfo(
                name=messages.MetricName(group=_GROUP, tag=f"report/{name}"), display_name=f"report/{name}"
            )
        )
    described.value[0].metadata.plugin_data.content = data.HParamsPluginData(
        experiment=content, version=metadata.PLUGIN_DATA_VERSION
    ).SerializeToString()
    return [described, start, end]


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
