"""The product of 8-bit rows with a packed 8-bit weight, and everything that follows it, in one kernel.

A dense weight, tall blocks (128 x 32) and blocks of 64 x 64 run through the same loop. It advances along the inputs by
``BLOCK_K`` bytes; for tiles, a list says which columns of ``q`` these are. Both operands are contiguous along the
inputs, as tensor cores of compute capability 9.0 want 8-bit numbers: only so are copies to shared memory asynchronous.

With few rows the operands change places (``SWAP``): outputs then fill the side of a tensor core instruction that is at
least 64 wide, and rows the one that can be 16.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_compress.ops.kernels.numbers import activate, round_to
from lit_compress.ops.launch import DENSE, Product, product_launch
from lit_compress.ops.linear import LinearArguments

__all__ = ["quantized_linear", "quantized_linear_kernel", "settings"]


def quantized_linear(of: LinearArguments, launch: Product | None = None) -> Tensor:
    """See :func:`lit_compress.ops.quantized_linear`; ``launch`` replaces the configuration that would be chosen."""
    q, values = of.q.contiguous(), of.values.contiguous()
    (rows, outputs), inputs = of.shape, q.shape[1]
    out = torch.empty(rows, outputs, dtype=of.result_dtype, device=q.device)
    if not rows or not outputs:
        return out
    tile = DENSE
    if of.columns is not None:
        tile = (values.shape[1], values.shape[2], values.shape[2] // of.columns.shape[1])
    launch = launch or product_launch(rows, outputs, inputs, tile, q.dtype, q.device)
    with torch.cuda.device_of(q):
        quantized_linear_kernel[(triton.cdiv(rows, launch.block_m) * triton.cdiv(outputs, launch.block_n),)](
            q, of.q_scale.contiguous(), values, of.w_scale.contiguous(), of.columns, of.offsets,
            None if of.bias is None else of.bias.contiguous(),
            None if of.residual is None else of.residual.contiguous(),
            out, of.out_scale, rows, outputs, inputs,
            **settings(launch, tile, inputs, of.q_scale.shape[0] > 1 or rows == 1, of.activation),
        )  # fmt: skip
    return out


def settings(
    launch: Product, tile: tuple[int, int, int], inputs: int, per_row: bool, activation: str
) -> dict[str, Any]:
    """What the kernel is specialized for.

    Args:
        launch: tile of the result and how it is computed.
        tile: ``(rows, chunk, width)`` of a weight in tiles; zeros for a dense one.
        inputs: columns of ``q``.
        per_row: whether rows have scales of their own.
        activation: by name.

    """
    return {
        "ROWS": tile[0],
        "WIDTH": tile[2],
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "BLOCK_K": launch.block_k,
        "GROUP": launch.group,
        "SWAP": launch.swap,
        # A thread that has 128 sums or more has no registers left to finish them all at once.
        "HALVES": not launch.swap and launch.block_m * launch.block_n >= 4096 * launch.warps,
        "EVEN": inputs % launch.block_k == 0,
        "PER_ROW": per_row,
        "ACTIVATION": activation,
        # Stated, because the default differs between versions of Triton.
        "enable_fp_fusion": True,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }


@triton.jit(do_not_specialize=["rows"])
def quantized_linear_kernel(
    q, q_scale, values, w_scale, columns, offsets, bias, residual, out, out_scale, rows, outputs, inputs,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, SWAP: tl.constexpr, HALVES: tl.constexpr, EVEN: tl.constexpr, PER_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """A tile of ``BLOCK_M`` rows and ``BLOCK_N`` outputs; ``WIDTH`` is 0 for a dense weight."""
    # Tiles that run at the same time share their rows and weights in the L2 cache: GROUP tiles of rows, then outputs.
    program = tl.program_id(0)
    tiles_m = tl.cdiv(rows, BLOCK_M)
    band = GROUP * tl.cdiv(outputs, BLOCK_N)
    first_m = program // band * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    start_m = (first_m + program % band % height) * BLOCK_M
    m = start_m + tl.arange(0, BLOCK_M)
    tile_n = program % band // height
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)

    # Rows and outputs beyond the end read the first ones, so that nothing in the loop needs a mask.
    q_rows = q + tl.where(m < rows, m, 0).to(tl.int64)[:, None] * inputs
    lane = tl.arange(0, BLOCK_K)
    kind: tl.constexpr = tl.int32 if q.dtype.element_ty == tl.int8 else tl.float32
    total = tl.zeros((BLOCK_N, BLOCK_M), kind) if SWAP else tl.zeros((BLOCK_M, BLOCK_N), kind)
    if WIDTH == 0:
        q_at = q_rows + lane[None, :]
        w_at = values + tl.where(n < outputs, n, 0).to(tl.int64)[:, None] * inputs + lane[None, :]
        for k in range(0, inputs, BLOCK_K):
            if EVEN:
                x = tl.load(q_at)
                w = tl.load(w_at)
            else:
                x = tl.load(q_at, mask=lane[None, :] < inputs - k, other=0.0)
                w = tl.load(w_at, mask=lane[None, :] < inputs - k, other=0.0)
            total = _add_product(x, w, total, SWAP, kind)
            q_at += BLOCK_K
            w_at += BLOCK_K
    else:
        blocks: tl.constexpr = BLOCK_K // WIDTH
        tl.static_assert(blocks <= 4, "a chunk holds at most four blocks")
        tile = tile_n * BLOCK_N // ROWS
        row = tile_n * BLOCK_N % ROWS + tl.arange(0, BLOCK_N)
        first = tl.load(offsets + tile)
        last = tl.load(offsets + tile + 1)
        w_at = values + (first.to(tl.int64) * ROWS + row)[:, None] * BLOCK_K + lane[None, :]
        column_at = columns + first * blocks
        # Known one chunk ahead: indices that are loaded where they are used would take half of the pipeline's buffers.
        # And one number after the other: a vector would have to pass through shared memory, behind a barrier.
        a, b, c, d = _load_columns(column_at, blocks)
        for _ in range(first, last):
            # What the compiler has to know to copy 16 bytes at a time.
            column = tl.where(lane < 2 * WIDTH, tl.where(lane < WIDTH, a, b), tl.where(lane < 3 * WIDTH, c, d))
            k = tl.max_contiguous(tl.multiple_of(column * WIDTH + lane % WIDTH, WIDTH), WIDTH)
            x = tl.load(q_rows + k[None, :])
            w = tl.load(w_at)
            column_at += blocks
            a, b, c, d = _load_columns(column_at, blocks)
            total = _add_product(x, w, total, SWAP, kind)
            w_at += ROWS * BLOCK_K

    # From here on only what lies ahead of the tile is 64 bits wide: a pointer per number would not fit the registers.
    out += start_m.to(tl.int64) * outputs
    if residual is not None:
        residual += start_m.to(tl.int64) * outputs
    m = tl.arange(0, BLOCK_M)
    q_scale += start_m if PER_ROW else 0
    rows -= start_m
    if SWAP:
        _finish(total, m[None, :], n[:, None], q_scale, w_scale, bias, residual, out, out_scale, rows, outputs,
                PER_ROW, ACTIVATION)  # fmt: skip
    elif HALVES:
        # One half after the other, so that the second one waits as sums and not as pointers.
        halves = tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        _finish(left, m[:, None], n[None, :], q_scale, w_scale, bias, residual, out, out_scale, rows, outputs,
                PER_ROW, ACTIVATION)  # fmt: skip
        _finish(right, m[:, None], n[None, :] + BLOCK_N // 2, q_scale, w_scale, bias, residual, out, out_scale, rows,
                outputs, PER_ROW, ACTIVATION)  # fmt: skip
    else:
        _finish(total, m[:, None], n[None, :], q_scale, w_scale, bias, residual, out, out_scale, rows, outputs,
                PER_ROW, ACTIVATION)  # fmt: skip


@triton.jit
def _load_columns(at, blocks: tl.constexpr):
    a = tl.load(at)
    b = tl.load(at + 1) if blocks > 1 else a
    c = tl.load(at + 2) if blocks > 2 else a
    d = tl.load(at + 3) if blocks > 3 else b
    return a, b, c, d


@triton.jit
def _add_product(x, w, total, SWAP: tl.constexpr, kind: tl.constexpr):
    return tl.dot(w, tl.trans(x), total, out_dtype=kind) if SWAP else tl.dot(x, tl.trans(w), total, out_dtype=kind)


@triton.jit
def _finish(
    total, m, n, q_scale, w_scale, bias, residual, out, out_scale, rows, outputs,
    PER_ROW: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    scale = tl.load(w_scale + n, mask=n < outputs, other=0.0)
    if PER_ROW:
        y = total.to(tl.float32) * tl.load(q_scale + m, mask=m < rows, other=0.0) * scale
    else:
        y = total.to(tl.float32) * (scale * tl.load(q_scale))
    if bias is not None:
        y += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    y = activate(y, ACTIVATION, out.dtype.element_ty == tl.float32)
    inside = (m < rows) & (n < outputs)
    at = m * outputs + n
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if out_scale is not None:
        y = round_to(y * tl.div_rn(1.0, tl.load(out_scale)), out.dtype.element_ty)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
