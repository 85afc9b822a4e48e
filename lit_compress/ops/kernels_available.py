"""Whether a Triton kernel can run: asked by every operator, without importing Triton before one does."""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

__all__ = ["INTERPRETED", "serves"]

# Triton reads the same variable when a kernel is defined. Then kernels run on the CPU, slowly, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def serves(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether kernels run where ``tensor`` is.

    Args:
        tensor: an input.
        dtype: 8-bit type that the kernel multiplies; None when it multiplies none. fp8 needs compute capability 8.9,
            int8 8.0.

    """
    if not _installed():
        return False
    if tensor.device.type == "cpu":
        return INTERPRETED
    if tensor.device.type != "cuda":
        return False
    return _capability(tensor.device.index or 0) >= ((8, 9) if dtype == torch.float8_e4m3fn else (8, 0))


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
