"""A session of ONNX Runtime that computes integers exactly, for checking exports and for running them."""

from pathlib import Path
from typing import Any

from lit_compress.export.extras import optional

__all__ = ["open_session"]


def open_session(path: Path, threads: int | None, optimization: str = "ORT_ENABLE_ALL") -> Any:
    """An ``onnxruntime.InferenceSession`` on the processor.

    Args:
        path: of the graph.
        threads: of the processor; None leaves it to the runtime.
        optimization: a ``GraphOptimizationLevel`` of the runtime.

    Raises:
        UserError: the runtime is not installed.

    """
    try:
        return _open(path, threads, optimization, precise=True)
    except Exception:  # ONNX Runtime 1.31 cannot do it for a weight that is used in several places, as ALBERT's are
        return _open(path, threads, optimization, precise=False)


def _open(path: Path, threads: int | None, optimization: str, precise: bool) -> Any:
    runtime = optional("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, optimization)
    options.log_severity_level = 4
    if threads:
        options.intra_op_num_threads = threads
    # Without it, processors that lack 8-bit dot products add pairs in 16 bits, and some overflow.
    options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
