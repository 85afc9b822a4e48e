"""Physically smaller linears and tables: some of their outputs or inputs are kept, the rest is gone."""

import torch
from torch import Tensor, nn

from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.quantizers import FakeQuantizer

__all__ = ["keep_columns", "keep_inputs", "keep_outputs"]


@torch.no_grad()
def keep_outputs(linear: nn.Linear, index: Tensor) -> None:
    """Keep only some output features, in place: rows of the weight, of the mask, of the bias and of per-channel scales.

    The parameters become new, smaller ones, so this is for before the optimizer exists or after training.

    Args:
        linear: plain or compressible.
        index: int64 ``(kept,)``, the output features that stay, in their new order.

    """
    index = index.to(linear.weight.device)
    _select_weight(linear, 0, index)
    linear.out_features = len(index)
    if linear.bias is not None:
        linear.bias = _selected(linear.bias, 0, index)
    for quantizer in linear.children():
        if isinstance(quantizer, FakeQuantizer):
            quantizer.keep_outputs(index)


@torch.no_grad()
def keep_inputs(linear: nn.Linear, index: Tensor) -> None:
    """Keep only some input features, in place: columns of the weight and of the mask.

    Args:
        linear: plain or compressible.
        index: int64 ``(kept,)``, the input features that stay, in their new order.

    """
    _select_weight(linear, 1, index.to(linear.weight.device))
    linear.in_features = len(index)


@torch.no_grad()
def keep_columns(table: nn.Embedding, index: Tensor) -> None:
    """Keep only some columns of an embedding table, in place; what is left keeps the scales that it had.

    Args:
        table: plain, compressible or factorised.
        index: int64 ``(kept,)``, the columns that stay, in their new order.

    """
    quantizer = getattr(table, "weight_quantizer", None)
    if quantizer is not None:
        quantizer.observe(table.weight)
        quantizer.observing = False  # a range of fewer columns would round them otherwise
    projection = getattr(table, "projection", None)
    if isinstance(projection, nn.Linear):
        keep_outputs(projection, index)
    else:
        table.weight = _selected(table.weight, 1, index.to(table.weight.device))
    table.embedding_dim = len(index)


def _select_weight(linear: nn.Linear, dim: int, index: Tensor) -> None:
    linear.weight = _selected(linear.weight, dim, index)
    if isinstance(linear, CompressibleLinear):
        for name in ("weight_mask", "weight_scores"):
            if (buffer := getattr(linear, name)) is not None:
                setattr(linear, name, buffer.index_select(dim, index))
        if linear.mask_scores is not None:
            linear.mask_scores = _selected(linear.mask_scores, dim, index)


def _selected(parameter: Tensor, dim: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)
