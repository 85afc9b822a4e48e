"""A fit in TensorBoard: its row in the table of hyper-parameters, and which curves share a chart."""

from typing import Any

from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import hparams

__all__ = ["CURVES", "experiment"]

# Charts of TensorBoard's custom scalars: category to title to regular expressions of tags that share a chart.
CURVES = {
    "training": {
        "loss and its parts": ["Multiline", [r"^train/"]],
        "training and validation loss": ["Multiline", [r"^train/loss$", r"^val/loss$"]],
        "validation metrics": ["Multiline", [r"^val/(?!loss$)"]],
        "learning rate": ["Multiline", [r"^lr"]],
    },
    "compression": {
        "sparsity": ["Multiline", [r"^sparsity$"]],
        "sparsity by layer": ["Multiline", [r"^sparsity/"]],
    },
}

_GROUP = "report"  # the folder below that of the run
# Columns of :func:`lit_compress.report.tensorboard.final_metrics`, in addition to those of the metrics.
_SIZES = ("encoder_sparsity", "model_megabytes", "latency_of_dense")


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
