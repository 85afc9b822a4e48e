"""Sessions of ONNX Runtime whose integer products are exact, for checking exports and for running them."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lit_compress.errors import first_line
from lit_compress.extras import optional

__all__ = ["DEFAULT_SESSION", "adds_in_16_bits", "open_session"]

# What a file's metadata says when every session computes it exactly, on every processor.
DEFAULT_SESSION = {"lit_compress.session": "default"}


def open_session(
    path: Path, threads: int | None, optimization: str = "ORT_ENABLE_ALL", precise: bool | None = None
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the processor.

    Args:
        path: of the graph.
        threads: of the processor; None leaves it to the runtime.
        optimization: a ``GraphOptimizationLevel`` of the runtime.
        precise: add integer products in 32 bits. None does so where the processor would add them in 16, unless the
            file says that none of its products overflow; where ONNX Runtime cannot open the file in this way, it is
            opened without, with a warning.

    Raises:
        UserError: the runtime is not installed.

    """
    if precise is not None:
        return _open(path, threads, optimization, precise)
    session = _open(path, threads, optimization, precise=False)
    says = session.get_modelmeta().custom_metadata_map
    if DEFAULT_SESSION.items() <= says.items() or not adds_in_16_bits():
        return session
    errors = optional("onnxruntime.capi.onnxruntime_pybind11_state", "onnx")
    try:
        return _open(path, threads, optimization, precise=True)
    except (errors.Fail, errors.RuntimeException, errors.NotImplemented, errors.InvalidGraph) as error:
        # ONNX Runtime 1.31 cannot do it for a tensor that is used in several places.
        reason = first_line(error)
        warnings.warn(
            f"{str(path)!r} runs with integer products added in 16 bits on this processor, where some overflow: ONNX "
            f"Runtime does not open it with session.x64quantprecision=1 ({reason}); export it again",
            stacklevel=2,
        )
        return session


@cache
def adds_in_16_bits() -> bool:
    """Whether pairs of products of unsigned and signed bytes overflow, as on x86 processors before VNNI."""
    onnx = optional("onnx", "onnx")
    size = 64
    values = {"weight": np.full((size, size), 127, np.int8)}
    nodes = [onnx.helper.make_node("MatMulInteger", ["input", "weight"], ["output"])]
    inputs = [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, [size, size])]
    outputs = [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.INT32, [size, size])]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "probe", inputs, outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = _open(model.SerializeToString(), 1, "ORT_ENABLE_ALL", precise=False)
    (found,) = session.run(None, {"input": np.full((size, size), 255, np.uint8)})
    return bool((found != 255 * 127 * size).any())


def _open(path: Path | bytes, threads: int | None, optimization: str, precise: bool) -> Any:
    runtime = optional("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, optimization)
    options.log_severity_level = 4
    if threads:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
    source = path if isinstance(path, bytes) else str(path)
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
