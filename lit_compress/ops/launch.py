"""How kernels are launched: tile sizes, warps and pipeline stages, per architecture and shape.

What was measured on the GPU counts first (:mod:`lit_compress.ops.measured`). Otherwise a rule decides: two programs a
processor or large tiles for many rows, enough programs to fill the GPU for few, as many stages as shared memory holds.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch

from lit_compress.errors import UserError
from lit_compress.ops import measured

__all__ = [
    "BLOCKS",
    "DENSE",
    "FORMATS",
    "SHARED_MEMORY",
    "TALL",
    "Attention",
    "Product",
    "RowLaunch",
    "attention_launch",
    "product_launch",
    "row_launch",
    "shipped_attention",
    "shipped_products",
]

# ``(rows, chunk, width)`` of a weight's tiles, as of ``storage.layouts.Tiles``.
DENSE, TALL, BLOCKS = (0, 0, 0), (128, 128, 32), (64, 64, 64)
FORMATS = {DENSE: "dense", TALL: "tall_blocks", BLOCKS: "blocks"}

# Bytes of shared memory that a program may use, by compute capability (CUDA C++ programming guide, "Technical
# Specifications per Compute Capability"; Triton keeps 1 KiB of the 100, 164 and 228 KiB for the system).
SHARED_MEMORY = {(8, 0): 166912, (8, 6): 101376, (8, 7): 166912, (8, 9): 101376, (9, 0): 232448, (10, 0): 232448}
_LEAST_SHARED_MEMORY = 101376

# Products of up to so many inputs have a short main loop: what follows it takes as long, and another program on the
# same processor computes meanwhile.
_SHORT_LOOP = 1024

# Above this a row no longer fits the registers of one program.
_LONGEST_ROW = 65536


@dataclass(frozen=True)
class Product:
    """Configuration of a matrix product.

    Args:
        block_m: rows of a tile of the result.
        block_n: outputs of it.
        block_k: inputs per step of the loop.
        warps: of 32 threads.
        stages: steps whose operands are in shared memory at the same time.
        swap: whether outputs and rows change places in the tensor core instruction.
        group: tiles of rows that are computed before the next outputs.

    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    swap: bool = False
    group: int = 8

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of the operands."""
        return (self.block_m + self.block_n) * self.block_k * self.stages


@dataclass(frozen=True)
class Attention:
    """Configuration of attention: queries and keys of a step, the padded width of a head, warps, stages."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


@dataclass(frozen=True)
class RowLaunch:
    """Configuration of an operator on rows: the padded length of a row, warps."""

    block: int
    warps: int


def product_launch(
    rows: int, outputs: int, inputs: int, tile: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Product:
    """Configuration of a product of ``(rows, inputs)`` with ``(outputs, inputs)``.

    Args:
        rows: of ``q``.
        outputs: of the weight.
        inputs: of both.
        tile: ``(rows, chunk, width)`` of the weight's tiles, :data:`DENSE` for none.
        dtype: of the 8-bit numbers.
        device: where it runs.

    """
    return _chosen(max(16, _power_of_two(rows)), outputs, inputs, tile, dtype, device.type, device.index)


def attention_launch(max_seqlen: int, head_dim: int, element_bytes: int, device: torch.device) -> Attention:
    """Configuration of attention.

    Args:
        max_seqlen: of the longest sequence.
        head_dim: width of a head.
        element_bytes: 2, or 4 for fp32.
        device: where it runs.

    """
    return _attention_rule(max_seqlen, head_dim, element_bytes, _device(device.type, device.index)[0])


def row_launch(columns: int) -> RowLaunch:
    """Configuration of an operator on rows.

    Raises:
        UserError: rows longer than one program holds.

    """
    if columns > _LONGEST_ROW:
        raise UserError(f"{columns} columns in a row; kernels hold a whole row, {_LONGEST_ROW} at most")
    block = max(16, _power_of_two(columns))
    return RowLaunch(block, min(16, max(1, block // 256)))


def shipped_products(capability: tuple[int, int]) -> Iterator[tuple[tuple[int, int, int], Product]]:
    """Every configuration that the rule can choose, each with its kind of tile."""
    found = {
        (tile, _rule(rows, outputs, inputs, tile, capability, processors))
        for tile in (DENSE, TALL, BLOCKS)
        for rows in (2**power for power in range(4, 18))
        for outputs in (64, 768, 2304, 3072)
        for inputs in (768, 3072)
        for processors in (16, 132)
    }
    yield from sorted(found, key=lambda pair: (pair[0], tuple(asdict(pair[1]).values())))


def shipped_attention(capability: tuple[int, int]) -> Iterator[tuple[int, Attention]]:
    """Configurations of attention in 16 bit for heads that occur, each with the width of the head."""
    for head_dim in (16, 32, 64, 80, 128):
        for longest in (64, 512):
            yield head_dim, _attention_rule(longest, head_dim, 2, capability)


@cache
def _chosen(
    bucket: int,
    outputs: int,
    inputs: int,
    tile: tuple[int, int, int],
    dtype: torch.dtype,
    kind: str,
    index: int | None,
) -> Product:
    capability, processors, name = _device(kind, index)
    if inputs % 16:
        # Rows begin anywhere, and are read byte by byte: more bytes than these would not fit the registers.
        return Product(32, 32, 32, 4, 2)
    precision = "int8" if dtype == torch.int8 else "fp8"
    known = measured.launch_settings(
        measured.Shape(name, FORMATS.get(tile, "other"), precision, outputs, inputs, bucket)
    )
    if known is not None:
        return Product(**known)
    return _rule(bucket, outputs, inputs, tile, capability, processors)


def _rule(
    rows: int, outputs: int, inputs: int, tile: tuple[int, int, int], capability: tuple[int, int], processors: int
) -> Product:
    height, chunk, _ = tile
    block_k = chunk or 128
    # A tile of the result lies within one tile of the weight.
    widest = height or 256
    if rows <= 32:
        # Fewer bytes than 16 per thread and step would be copied in smaller pieces.
        return _fit_product(Product(max(rows, 2048 // block_k), 64, block_k, 4, 6, swap=True, group=1), capability)
    tiles = rows * outputs / (128 * 128)
    if capability[0] >= 9 and widest >= 128 and tiles >= 2 * processors:
        if chunk:
            return Product(128, 128, chunk, 4, 3)  # two programs a processor
        if inputs <= _SHORT_LOOP:
            return Product(128, 128, 64, 4, 5)  # as above
        if tiles >= 6 * processors:
            return _fit_product(Product(128, 256, block_k, 8, 4), capability)
    large = Product(128, min(128, widest), block_k, 8 if widest >= 128 else 4, 4 if block_k == 128 else 6)
    if rows * outputs >= processors * large.block_m * large.block_n:
        return _fit_product(large, capability)
    return _fit_product(Product(64, 64, block_k, 4, 5, group=4), capability)


def _attention_rule(max_seqlen: int, head_dim: int, element_bytes: int, capability: tuple[int, int]) -> Attention:
    block_d = max(16, _power_of_two(head_dim))
    block_m = min(128, max(16, _power_of_two(max_seqlen)))
    return _fit(
        Attention(block_m, min(64, block_m), block_d, 8 if block_m == 128 and block_d >= 64 else 4, 3),
        element_bytes,
        capability,
    )


def _fit_product(launch: Product, capability: tuple[int, int]) -> Product:
    """As many stages as shared memory holds, with a reserve for the result on its way out; at least two."""
    room = SHARED_MEMORY.get(capability, _LEAST_SHARED_MEMORY) - 8192
    while launch.stages > 2 and launch.shared_bytes > room:
        launch = replace(launch, stages=launch.stages - 1)
    if launch.shared_bytes > room:
        launch = replace(launch, block_m=launch.block_m // 2)
    return launch


def _fit(launch: Attention, element_bytes: int, capability: tuple[int, int]) -> Attention:
    room = SHARED_MEMORY.get(capability, _LEAST_SHARED_MEMORY)

    def needed(stages: int) -> int:
        return (launch.block_m + 2 * launch.block_n * stages) * launch.block_d * element_bytes

    while launch.stages > 1 and needed(launch.stages) > room:
        launch = replace(launch, stages=launch.stages - 1)
    return launch


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


@cache
def _device(kind: str, index: int | None) -> tuple[tuple[int, int], int, str]:
    """Compute capability, number of processors and name; an H200's where there is no GPU (tests, cross-compiling).

    Its name stays empty there, so that nothing depends on what was measured.
    """
    if kind != "cuda" or not torch.cuda.is_available():
        return (9, 0), 132, ""
    properties = torch.cuda.get_device_properties(index if index is not None else torch.cuda.current_device())
    return (properties.major, properties.minor), properties.multi_processor_count, properties.name
