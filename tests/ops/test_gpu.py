"""Runs the cases of kernel_cases.py and encoder_cases.py on a GPU."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

if torch.cuda.is_available():
    from ops.encoder_cases import *  # noqa: F403
    from ops.kernel_cases import *  # noqa: F403
