"""Pure functions on tensors: the mathematics of every method, without Lightning or Transformers."""

from lit_compress.functional.distill import (
    attention_kl,
    attention_mse,
    hidden_mse,
    logit_kl,
    mean_logits,
    relation_kl,
    soft_cross_entropy,
)
from lit_compress.functional.entities import entities, write_tags
from lit_compress.functional.importance import head_scores, magnitude, neuron_scores, taylor, wanda
from lit_compress.functional.layer_maps import drop_multiples_map, last_map, skip_map, uniform_map
from lit_compress.functional.layer_selection import keep_by_position, keep_dissimilar, keep_highest, weight_score
from lit_compress.functional.low_rank import truncated_svd
from lit_compress.functional.masks import (
    balanced_block_mask,
    block_mask,
    global_group_masks,
    global_masks,
    group_mask,
    nm_mask,
    sparsity,
    unstructured_mask,
)
from lit_compress.functional.patterns import Pattern, parse_pattern
from lit_compress.functional.quantize import (
    asymmetric_qparams,
    dequantize,
    fake_quantize,
    quantize,
    symmetric_qparams,
)
from lit_compress.functional.schedules import (
    Constant,
    Cosine,
    Cubic,
    Duration,
    EqualParts,
    Linear,
    Updates,
    width_at,
)
from lit_compress.functional.spans import best_spans

__all__ = [
    "Constant",
    "Cosine",
    "Cubic",
    "Duration",
    "EqualParts",
    "Linear",
    "Pattern",
    "Updates",
    "asymmetric_qparams",
    "attention_kl",
    "attention_mse",
    "balanced_block_mask",
    "best_spans",
    "block_mask",
    "dequantize",
    "drop_multiples_map",
    "entities",
    "fake_quantize",
    "global_group_masks",
    "global_masks",
    "group_mask",
    "head_scores",
    "hidden_mse",
    "keep_by_position",
    "keep_dissimilar",
    "keep_highest",
    "last_map",
    "logit_kl",
    "magnitude",
    "mean_logits",
    "neuron_scores",
    "nm_mask",
    "parse_pattern",
    "quantize",
    "relation_kl",
    "skip_map",
    "soft_cross_entropy",
    "sparsity",
    "symmetric_qparams",
    "taylor",
    "truncated_svd",
    "uniform_map",
    "unstructured_mask",
    "wanda",
    "weight_score",
    "width_at",
    "write_tags",
]
