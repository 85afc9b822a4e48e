"""What a figure was measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["machine"]


def machine() -> dict[str, str]:
    """Processor or GPU, threads, and the versions that matter."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = {name: version(name) for name in ("lit_compress", "torch", "transformers", "lightning")}
    return {
        "device": device,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "python": platform.python_version(),
    } | packages


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
