"""Pure functions on tensors: the mathematics of every method, without Lightning or Transformers."""

from lit_compress.functional.distill import hidden_mse, logit_kl
from lit_compress.functional.importance import head_scores, magnitude, neuron_scores, taylor
from lit_compress.functional.low_rank import truncated_svd
from lit_compress.functional.masks import (
    block_mask,
    global_group_masks,
    global_masks,
    group_mask,
    nm_mask,
    sparsity,
    unstructured_mask,
)
from lit_compress.functional.quantize import (
    asymmetric_qparams,
    dequantize,
    fake_quantize,
    quantize,
    symmetric_qparams,
)
from lit_compress.functional.schedules import Constant, Cosine, Cubic, Duration, Linear, pruning_steps, width_after

__all__ = [
    "Constant",
    "Cosine",
    "Cubic",
    "Duration",
    "Linear",
    "asymmetric_qparams",
    "block_mask",
    "dequantize",
    "fake_quantize",
    "global_group_masks",
    "global_masks",
    "group_mask",
    "head_scores",
    "hidden_mse",
    "logit_kl",
    "magnitude",
    "neuron_scores",
    "nm_mask",
    "pruning_steps",
    "quantize",
    "sparsity",
    "symmetric_qparams",
    "taylor",
    "truncated_svd",
    "unstructured_mask",
    "width_after",
]
