"""The figures of a deployed stage are those of its export, and the dense model's export is made once."""

import shutil
from pathlib import Path

import pytest

from tools import served as module
from tools.served import served


def test_a_stage_is_scored_and_timed_as_its_export(finished, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "_REPETITIONS", 2)
    dense = tmp_path / "teacher" / "model"
    dense.parent.mkdir()
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.copytree(run / "model", dense)
    found = served(run, dense, "accuracy", 8)
    assert 0 <= found["int8_value"] <= 1
    assert found["int8_speedup"] > 0
    file = run / "onnx-int8" / "onnx" / "model_quantized.onnx"
    assert found["int8_bytes"] >= file.stat().st_size
    made = (tmp_path / "teacher" / "onnx" / "onnx" / "model.onnx").stat().st_mtime_ns
    served(run, dense, "accuracy", 8)
    assert (tmp_path / "teacher" / "onnx" / "onnx" / "model.onnx").stat().st_mtime_ns == made
