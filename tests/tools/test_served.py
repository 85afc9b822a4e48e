"""The figures of a deployed stage are those of its export, and nothing is written outside its run."""

import shutil
from pathlib import Path

import pytest

from tools import served as module
from tools.served import served


def test_a_stage_is_scored_and_timed_as_its_export(finished, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="a stage is deployed on ONNX Runtime: pip install 'lit_compress[onnx]'")
    monkeypatch.setattr(module, "_REPETITIONS", 2)
    run, dense = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "teacher" / "model"
    shutil.copytree(run / "model", dense)
    found = served(run, dense, "accuracy", 8)
    assert 0 <= found["int8_value"] <= 1
    assert found["int8_speedup"] > 0
    assert found["int8_bytes"] >= (run / "onnx-int8" / "onnx" / "model_quantized.onnx").stat().st_size
    assert (run / "dense-onnx" / "onnx" / "model.onnx").is_file()
    assert [path.name for path in dense.parent.iterdir()] == ["model"]
