"""What a figure was measured on, and by which command."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from lit_compress.version import __version__

__all__ = ["command_line", "instruction_sets", "machine", "processor"]


def machine() -> dict[str, str]:
    """Processor or GPU, threads, versions, and what the processor has for 8-bit integers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    packages = {"lit_compress": __version__} | {name: version(name) for name in ("torch", "transformers", "lightning")}
    return (
        {
            "device": device,
            "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
            "python": platform.python_version(),
        }
        | packages
        | ({"processor": sets} if (sets := instruction_sets()) else {})
    )


def command_line() -> str:
    """What was typed to make a report: `lit_compress ...`, or the script that called it."""
    program = Path(sys.argv[0])
    ours = "lit_compress" in (program.stem, program.parent.name)  # the command, or `python -m lit_compress`
    return shlex.join([*(["lit_compress"] if ours else ["python", program.name]), *sys.argv[1:]])


def processor() -> str:
    """Name of the processor, as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> str:
    """What the processor has for wide vectors and 8-bit integers; empty where the system does not say."""
    sets = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"}
    return " ".join(sorted(sets & set(_cpuinfo("flags").split())))


def _cpuinfo(name: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
