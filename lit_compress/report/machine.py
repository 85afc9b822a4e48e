"""What a figure was measured on, and by which command."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from lit_compress.version import __version__

__all__ = ["command_line", "machine"]


def machine() -> dict[str, str]:
    """Processor or GPU, threads, and the versions that matter."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = {"lit_compress": __version__} | {name: version(name) for name in ("torch", "transformers", "lightning")}
    return {
        "device": device,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "python": platform.python_version(),
    } | packages


def command_line() -> str:
    """What was typed to make a report: `lit_compress ...`, or the script that called it."""
    program = Path(sys.argv[0])
    ours = "lit_compress" in (program.stem, program.parent.name)  # the command, or `python -m lit_compress`
    return shlex.join([*(["lit_compress"] if ours else ["python", program.name]), *sys.argv[1:]])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
