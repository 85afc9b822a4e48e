import subprocess
import sys

import pytest
import torch

from lit_compress.errors import UserError
from lit_compress.ops.dispatch import ROW_BUCKETS, Problem, choose, decide, forced, row_bucket
from lit_compress.ops.product_times import DEVICES, device_named, product_us


def problem(**changed):
    given = {"outputs": 768, "inputs": 3072, "format": "tall_blocks", "dtype": "int8", "density": 0.25}
    return Problem(**(given | {"device": "h200"} | changed))


def test_a_cpu_multiplies_dense():
    assert choose(100, 768, 768, "dense", "int8", 1.0, torch.device("cpu")) == "dense"
    assert decide(100, problem(device="cpu")).source == "fixed"


def test_no_figure_is_derived_from_a_measurement_and_the_words_say_so():
    decision = decide(4096, problem())
    assert decision.source == "derived"
    assert "derived, not measured" in decision.reason
    assert decision.choice == "kernel"
    assert decision.kernel_us < decision.dense_us


@pytest.mark.parametrize(
    ("changed", "device", "choice"),
    [({"dtype": "fp8"}, "a100", "dense"), ({}, "a100", "kernel"), ({"format": "of tomorrow"}, "h200", "dense")],
)
def test_what_a_device_cannot_do(changed, device, choice):
    assert decide(4096, problem(device=device, **changed)).choice == choice


def test_a_gpu_without_figures_runs_kernels():
    decision = decide(4096, problem(device="NVIDIA of tomorrow"))
    assert (decision.choice, decision.source) == ("kernel", "fixed")


def test_forced_wins_over_everything():
    with forced("dense"):
        assert decide(4096, problem()).choice == "dense"
    with forced("kernel"):
        assert decide(4096, problem(device="cpu")).choice == "kernel"
        assert choose(1, 8, 8, "dense", "int8", 1.0, torch.device("cpu")) == "kernel"
        with forced("reference"):
            assert choose(1, 8, 8, "dense", "int8", 1.0, torch.device("cpu")) == "reference"
        with forced(None):
            assert decide(4096, problem()).source == "derived"
    assert decide(4096, problem()).choice == "kernel"


def test_a_wrong_choice_is_refused():
    with forced("fast"), pytest.raises(UserError, match="LIT_COMPRESS_DISPATCH: 'fast' is not one of kernel, dense"):
        choose(1, 8, 8, "dense", "int8", 1.0, torch.device("cpu"))


def test_the_variable_is_read(tmp_path):
    code = "from lit_compress.ops.dispatch import *; import torch;"
    code += "print(choose(1, 8, 8, 'dense', 'int8', 1.0, torch.device('cpu')))"
    environment = {"LIT_COMPRESS_DISPATCH": "reference", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reference"


def test_buckets():
    assert [row_bucket(rows) for rows in (1, 16, 17, 4096, 4097, 10**9)] == [16, 16, 32, 4096, 8192, ROW_BUCKETS[-1]]


def test_choices_are_constants_of_a_compiled_graph():
    def add(x):
        return x + 1 if choose(x.shape[0], 8, 8, "dense", "int8", 1.0, x.device) == "dense" else x - 1

    compiled = torch.compile(add, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(20)).sum() == 20
    with forced("kernel"):  # traced again
        assert compiled(torch.zeros(20)).sum() == -20
    assert compiled(torch.zeros(20)).sum() == 20


def test_devices_by_name():
    assert device_named("NVIDIA A100-SXM4-40GB") is DEVICES["a100"]
    assert device_named("H100") is DEVICES["h100"]
    with pytest.raises(UserError, match="'NVIDIA L40' is not one of"):
        device_named("NVIDIA L40")


# Medians of an H100, in us (docs/kernels.md): product, rows, format, dtype, density.
MEASURED = [
    ("up", 32768, None, "", 1.0, 222), ("down", 32768, None, "", 1.0, 206),
    ("up", 4096, None, "", 1.0, 32.2), ("down", 4096, None, "", 1.0, 28.0),
    ("up", 32768, "dense", "fp8", 1.0, 199.8), ("down", 32768, "dense", "fp8", 1.0, 133.6),
    ("up", 32768, "dense", "int8", 1.0, 239.2), ("down", 32768, "dense", "int8", 1.0, 162.9),
    ("up", 4096, "dense", "int8", 1.0, 37.1), ("down", 4096, "dense", "int8", 1.0, 31.6),
    ("up", 32768, "tall_blocks", "fp8", 0.5, 223.0), ("down", 32768, "tall_blocks", "int8", 0.17, 97.0),
    ("up", 4096, "tall_blocks", "int8", 0.5, 33.2), ("down", 4096, "tall_blocks", "int8", 0.33, 22.6),
    ("up", 32768, "blocks", "int8", 0.5, 192.7), ("down", 32768, "blocks", "fp8", 0.17, 76.3),
    ("up", 4096, "blocks", "int8", 0.33, 23.2), ("down", 4096, "blocks", "int8", 0.17, 12.2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "format", "dtype", "density", "us"), MEASURED)
def test_estimates_are_near_what_an_h100_took(name, rows, format, dtype, density, us):
    shape = {"up": (3072, 768), "down": (768, 3072)}[name]
    estimate = product_us(DEVICES["h100"], rows, *shape, format, dtype, density)
    assert estimate == pytest.approx(us, rel=0.28 if format in ("tall_blocks", "blocks") else 0.13)


def test_zeros_save_the_loop_and_not_what_follows_it():
    h100 = DEVICES["h100"]
    dense, half, empty = (product_us(h100, 32768, 3072, 768, "tall_blocks", "fp8", part) for part in (1.0, 0.5, 0.0))
    assert dense - half == pytest.approx(half - empty)
    assert empty > 0.5 * half


def test_other_gpus_differ_by_their_data_sheets():
    def long(name):
        return product_us(DEVICES[name], 65536, 768, 3072, "dense", "int8")

    assert long("h200") < long("h100") < long("a100") < long("l4")
