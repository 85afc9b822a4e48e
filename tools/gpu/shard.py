"""A plugin of pytest that runs one of several equal parts of the cases: ``SHARD=2/8 pytest -p tools.gpu.shard``.

Eight processes of it share a GPU where pytest-xdist is not installed, and without the conftest of all tests, which
imports more than kernels need.
"""

import os
from typing import Any

import pytest
import torch

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_setup"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep every n-th case."""
    part, parts = (int(number) for number in os.environ["SHARD"].split("/"))
    items[:] = items[part - 1 :: parts]


def pytest_runtest_setup(item: Any) -> None:
    """As the conftest does it."""
    torch.manual_seed(0)
