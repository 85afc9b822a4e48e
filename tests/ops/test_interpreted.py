"""Runs the cases of kernel_cases.py and encoder_cases.py in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def release(package):
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_the_interpreter():
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 needs NumPy below 2.4: pip install 'numpy<2.4'")
    # In a process of its own: Triton decides when a kernel is defined whether it is interpreted.
    cases = [str(Path(__file__).with_name(name)) for name in ("kernel_cases.py", "encoder_cases.py")]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *cases]
    environment = os.environ | {"TRITON_INTERPRET": "1"}

    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
