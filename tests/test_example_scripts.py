"""The programs of examples/, run to their end with the demo's model and texts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs.blocks import ROOT
from transformers import AutoModelForSequenceClassification

SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def run(name: str, folder: Path) -> str:
    """What a script prints; its folders appear below ``folder``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, ROOT / "examples" / name]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_run():
    assert SCRIPTS == ["deploy.py", "first_compression.py", "new_method.py"]
    assert all(f"]({name})" in (ROOT / "examples/README.md").read_text() for name in SCRIPTS)


@pytest.mark.slow
def test_first_compression(tmp_path):
    said = run("first_compression.py", tmp_path)
    members = {name: float(times) for name, times in re.findall(r"^(\w+): ([\d.]+) times as fast", said, re.MULTILINE)}
    assert set(members) == {"int8", "3x"}
    assert min(members.values()) > 1
    # That fewer heads and neurons are faster, a busy machine may not show; they are smaller on any.
    folder = tmp_path / "runs/first_compression/exports"
    int8, smaller = (folder / name / "onnx/model_quantized.onnx" for name in ("int8", "3x"))
    assert smaller.stat().st_size < int8.stat().st_size
    assert "['sports', 'business']" in said or "No member is fast and good enough" in said
    assert (tmp_path / "runs/first_compression/report.html").exists()


@pytest.mark.slow
def test_new_method(tmp_path):
    said = run("new_method.py", tmp_path)
    rows = re.findall(r"^(dense teacher|random|magnitude|relative magnitude) +([\d.]+) +([\d.]+)$", said, re.MULTILINE)
    accuracy = {name: float(score) for name, score, _ in rows}
    assert [float(sparsity) for _, _, sparsity in rows] == pytest.approx([0.0, 0.8, 0.8, 0.8], abs=0.01)
    assert accuracy["relative magnitude"] > accuracy["random"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs/new_method/relative_magnitude")


@pytest.mark.slow
def test_deploy(tmp_path):
    said = run("deploy.py", tmp_path)
    cosines = [
        float(row) for row in re.findall(r"^(?:sentence|ONNX).*?  +([\d.]+)  +[\d.]+  +[\d.]+$", said, re.MULTILINE)
    ]
    assert len(cosines) == 3
    assert min(cosines) > 0.98
    assert "is 'Borrowing money became more expensive.'" in said
