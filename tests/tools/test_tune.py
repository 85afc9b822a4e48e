"""The tuner, as far as a machine without a GPU can tell: its candidates, what compiling rules out, and its files."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from lit_compress.ops import launch, measured
from tools.bench.measure import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture
def tune():
    from tools.bench import tune

    return tune


SHAPE = measured.Shape("a GPU", "dense", "int8", 3072, 768, 32768)


@pytest.mark.parametrize("format", launch.FORMATS.values())
def test_candidates_are_launches_that_a_format_can_have(format, tune):
    found = list(tune.candidates(format, (9, 0)))
    height, chunk, _ = tune.TILES[format]
    assert 4 <= len(found) <= 40
    for shape in found:
        assert shape.shared_bytes <= launch.SHARED_MEMORY[9, 0]
        assert not chunk or shape.block_k == chunk
        assert not height or height % shape.block_n == 0


def test_the_fastest_that_was_measured_is_a_candidate(tune):
    for row in measured.launch_rows():
        shape = launch.Product(**{key: row[key] for key in measured.SETTINGS})
        assert shape in set(tune.candidates(row["format"], tuple(row["capability"])))


def test_without_a_gpu_it_says_so(tune, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        tune.tune(output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_are_written_one_by_one_and_replaced(tune, tmp_path, monkeypatch):
    path = tmp_path / measured.TIMES
    row = SHAPE._asdict() | {"density": 1.0, "dense_us": 30.0, "source": "a test"}
    assert not tune.is_known(tmp_path, SHAPE)
    tune.write(path, row | {"kernel_us": 50.0})
    tune.write(path, row | {"kernel_us": 20.0})
    tune.write(path, row | {"outputs": 768, "kernel_us": 10.0})
    assert tune.is_known(tmp_path, SHAPE)
    assert not tune.is_known(tmp_path, SHAPE._replace(rows=128))
    assert [row["kernel_us"] for row in json.loads(path.read_text())] == [20.0, 10.0]
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    for cached in (measured._rows, measured._times):
        cached.cache_clear()
    assert measured.times(SHAPE, 1.0) == measured.Times(20.0, 30.0, "a test")
    monkeypatch.undo()
    for cached in (measured._rows, measured._times):
        cached.cache_clear()


def test_compiling_rules_out_what_spills(tune):
    """256 sums for each thread do not fit its registers; 128 do."""
    code = (
        "from tools.bench.tune import *; from tools.aot import disassembles\n"
        f"shape = measured.{SHAPE}\n"
        "few, many = launch.Product(128, 128, 64, 4, 5), launch.Product(256, 128, 64, 4, 3)\n"
        "print(disassembles(), is_fitting(shape, (9, 0), few), is_fitting(shape, (9, 0), many))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    disassembles, few, many = run.stdout.split()
    assert few == "True"
    assert many == "False" or disassembles == "False"


@pytest.mark.slow
def test_a_dry_run_compiles(tmp_path):
    options = ["--dtypes", '["fp8"]', "--formats", '["blocks"]', "--shapes", '["up"]', "--rows", "[4096]"]
    command = [sys.executable, "-m", "tools.bench.tune", "--dry_run", "true", "--output", str(tmp_path), *options]
    run = subprocess.run([*command, "--limit", "2"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fp8 blocks up 4096: 2 of 2 candidates fit" in run.stdout


def test_a_product_is_measured_and_written(tmp_path):
    """In Triton's interpreter, with the times of a CPU: everything but CUDA graphs."""
    shapes = {"GELU and rounding": (256, 128), "residual": (128, 256)}
    code = (
        "from lit_compress.ops.kernels import quantize_rows, quantized_linear\n"
        "import os, pathlib, tools.bench.tune as tune\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"  # tools.aot, which compiles, takes it away
        "found = [tune.launch.Product(16, 64, 64, 4, 2), tune.launch.Product(32, 64, 64, 4, 3)]\n"
        f"for name, sizes in {shapes}.items():\n"
        f"    folder = pathlib.Path({str(tmp_path)!r}, name)\n"
        "    folder.mkdir()\n"
        "    shape = tune.measured.Shape('a GPU', 'blocks', 'int8', *sizes, 16)\n"
        "    tune.measure(folder, shape, found, (9, 0), 1)\n"
        "    assert tune.is_known(folder, shape)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for name in shapes:
        (launched,) = json.loads((tmp_path / name / measured.LAUNCHES).read_text())
        times = json.loads((tmp_path / name / measured.TIMES).read_text())
        assert (launched["block_m"], launched["stages"]) in {(16, 2), (32, 3)}
        assert launched["source"].startswith("a GPU, 20")
        assert {row["density"] for row in times} == {0.17, 0.33, 0.5}
        assert all(row["kernel_us"] > 0 and row["dense_us"] > 0 for row in times)
