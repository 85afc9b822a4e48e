"""Speed without a GPU: every shipped configuration is compiled for sm_90 and sm_80, and its code looked at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
EXPECTED = {(90, "i8"): ".s32.s8.s8", (90, "fp8e4nv"): ".f32.e4m3.e4m3", (80, "i8"): ".s32.s8.s8.s32"}
MOST_SHARED = {90: 232448, 80: 166912}


def compiled(folder, epilogues):
    output = folder / "aot.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # In a process of its own: this one may interpret kernels.
    command = [sys.executable, "-m", "tools.aot", "--epilogues", epilogues, "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(output.read_text())["kernels"]


@pytest.fixture(
    scope="module", params=["one", pytest.param("all", marks=pytest.mark.slow)], ids=lambda name: f"{name} epilogues"
)
def kernels(request, tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("aot"), request.param)


@pytest.fixture
def products(kernels):
    return [kernel for kernel in kernels if kernel["name"].startswith("quantized_linear")]


def failing(kernels, right):
    return [f"{kernel['name']} sm_{kernel['target']} {kernel['dtype']}" for kernel in kernels if not right(kernel)]


def test_every_format_is_compiled_for_every_target(products):
    seen = {(kernel["name"].split()[1], kernel["target"], kernel["dtype"]) for kernel in products}

    assert seen == {(name, *target) for name in ("dense", "tall_blocks", "blocks") for target in EXPECTED}
    for target in EXPECTED:
        assert any("swapped" in kernel["name"] for kernel in products if (kernel["target"], kernel["dtype"]) == target)


def test_main_loops_multiply_8_bit_numbers_on_tensor_cores(products):
    def right(kernel):
        ending = EXPECTED[kernel["target"], kernel["dtype"]]
        start = "wgmma.mma_async" if kernel["target"] == 90 else "mma.sync"
        found = kernel["tensor_core"]
        return len(found) == 1 and found[0].startswith(start) and found[0].endswith(ending)

    assert not failing(products, right)


def test_no_kernel_falls_back_to_older_instructions(kernels):
    kernels = [kernel for kernel in kernels if kernel["name"] != "unusual product of 100 inputs"]
    assert not failing(kernels, lambda kernel: kernel["target"] != 90 or kernel["fallbacks"] == 0)


def test_operands_are_copied_16_bytes_at_a_time_behind_the_loop(products):
    assert not failing(products, lambda kernel: kernel["copy_bytes"] == [16] and kernel["loop_copies"] > 0)


def test_nothing_is_copied_by_threads_in_the_main_loop(products):
    def right(kernel):
        # The index of a block, one chunk ahead, is the one number that a loop over tiles loads itself.
        loads = [] if " dense " in kernel["name"] else ["b32"]
        return kernel["loop_loads"] == loads and not kernel["loop_shared_stores"]

    assert not failing(products, right)
    assert not failing(products, lambda kernel: kernel["loop_shared_loads"] == 0 and kernel["loop_barriers"] <= 2)


def test_as_many_steps_are_under_way_as_was_asked_for(products):
    def right(kernel):
        # Before sm_90 operands leave their buffer for registers, so that one buffer fewer is needed.
        buffers = kernel["stages"] if kernel["target"] == 90 else kernel["stages"] - 1
        # Two copies a step; all but the one that is needed next may be on their way.
        return int(kernel["buffers"]) == buffers and kernel["in_flight"] >= 2 * (kernel["stages"] - 2)

    assert not failing(products, right)
    assert not failing(products, lambda kernel: kernel["stages"] >= 3)


def test_shared_memory_and_registers_suffice(kernels):
    assert not failing(kernels, lambda kernel: kernel["shared"] <= MOST_SHARED[kernel["target"]])
    seen = [kernel for kernel in kernels if kernel["registers"] is not None]
    if not seen:
        pytest.skip("this wheel of Triton has no disassembler: registers and spills are not looked at")
    assert not failing(seen, lambda kernel: kernel["spills"] == 0)
    assert not failing(seen, lambda kernel: kernel["registers"] * 32 * kernel["warps"] <= 65536)


def test_inputs_that_fill_no_step_are_copied_16_bytes_at_a_time(kernels):
    ragged = [kernel for kernel in kernels if kernel["name"] == "unusual product of 240 inputs"]

    assert len(ragged) == len(EXPECTED)
    assert not failing(ragged, lambda kernel: kernel["copy_bytes"] == [16] and not kernel["loop_shared_stores"])


def test_attention_runs_on_tensor_cores(kernels):
    attention = [kernel for kernel in kernels if kernel["name"].startswith("attention")]
    start = {90: "wgmma", 80: "mma.sync"}

    assert attention
    assert not failing(
        attention,
        lambda kernel: (
            kernel["tensor_core"]
            and all(name.startswith(start[kernel["target"]]) for name in kernel["tensor_core"])
            # Positions are single numbers beside the keys.
            and kernel["copy_bytes"] == ([4, 16] if kernel["name"].endswith(("bias", "window")) else [16])
        ),
    )


def test_every_kernel_has_its_own_name_in_a_profile(kernels):
    operators = {"quantized_linear", "quantize_rows", "layernorm_quantize", "attention_varlen", "gather_rows"}
    operators |= {"gate_quantize", "rotate_rows"}

    assert {kernel["symbol"] for kernel in kernels} == {f"{operator}_kernel" for operator in operators}
    named = [kernel for kernel in kernels if not kernel["name"].startswith("unusual")]
    assert not failing(named, lambda kernel: kernel["symbol"] == f"{kernel['name'].split()[0]}_kernel")
