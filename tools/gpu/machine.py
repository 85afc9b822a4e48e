"""``python -m tools.gpu.machine FILE``: what is on this machine, as JSON."""

import importlib.util
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# Everything that lit_compress, its kernels' tests and its benchmarks import.
WANTED = (
    *("torch", "triton", "transformers", "lightning", "torchmetrics", "tensorboard", "numpy", "scipy", "pandas"),
    *("pyarrow", "datasets", "jsonargparse", "rich", "matplotlib", "jinja2", "yaml", "filelock", "tokenizers"),
    *("safetensors", "accelerate", "torchao", "pytest"),
)


def look() -> dict[str, object]:
    """Device, versions, and what is missing."""
    here = torch.cuda.is_available()
    found = {name for name in WANTED if importlib.util.find_spec(name) is not None}
    return {
        "device": torch.cuda.get_device_name() if here else "no GPU",
        "capability": torch.cuda.get_device_capability() if here else None,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in WANTED if name in found},
        "missing": [name for name in WANTED if name not in found],
    }


def _version(name: str) -> str:
    try:
        return version({"yaml": "PyYAML"}.get(name, name))
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    text = json.dumps(look(), indent=1)
    Path(sys.argv[1]).write_text(text)
    print(text)
