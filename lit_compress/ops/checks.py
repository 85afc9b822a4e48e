"""What every operator refuses, in words."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_compress.errors import UserError

__all__ = ["Activation", "require_activation", "require_columns", "require_eight_bits", "require_relative"]

Activation = Literal["none", "relu", "gelu", "gelu_tanh"]


def require_eight_bits(dtype: torch.dtype) -> None:
    """Refuse a type that is neither int8 nor float8_e4m3fn.

    Raises:
        UserError: naming it.

    """
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        raise UserError(f"dtype: {dtype}; 8-bit operators know torch.int8 and torch.float8_e4m3fn")


def require_activation(activation: str) -> None:
    """Refuse a name that is not an :data:`Activation`.

    Raises:
        UserError: naming it.

    """
    if activation not in get_args(Activation):
        raise UserError(f"activation: {activation!r} is not one of {', '.join(get_args(Activation))}")


def require_columns(inputs: int, values: Tensor, columns: Tensor | None, offsets: Tensor | None) -> None:
    """Refuse a weight that does not fit its input, or that is half packed.

    Raises:
        UserError: with both numbers.

    """
    if (columns is None) != (offsets is None):
        raise UserError("columns, offsets: one without the other; a weight in tiles has both, a dense one neither")
    if columns is None:
        if values.ndim != 2 or values.shape[1] != inputs:
            raise UserError(
                f"values: shape {tuple(values.shape)} for inputs of {inputs} columns; a dense weight has "
                f"the shape (out_features, {inputs})"
            )
        return
    if values.ndim != 3 or values.shape[2] % columns.shape[-1] or inputs % (values.shape[2] // columns.shape[-1]):
        raise UserError(
            f"values: shape {tuple(values.shape)} with {columns.shape[-1]} blocks a chunk for inputs of "
            f"{inputs} columns; these must be a multiple of a block's columns"
        )


def require_relative(heads: int, bias: Tensor | None, window: int | None) -> None:
    """Refuse what no distance of tokens can mean.

    Raises:
        UserError: with the shape or the number.

    """
    if bias is not None and (bias.ndim != 2 or bias.shape[0] != heads or bias.shape[1] % 2 == 0):
        raise UserError(f"bias: shape {tuple(bias.shape)}; for {heads} heads it must be ({heads}, 2 * reach + 1)")
    if window is not None and window < 0:
        raise UserError(f"window: {window} must be 0 or more, or None")
