"""Draw estimated times of sparse products over sparsity, beside dense products. Nothing is measured here.

The estimates are those of ``lit_compress.ops.product_times``, which ``lit_compress explain`` computes with, too; what a
GPU really does is ``tools.bench.kernels --plots``.
"""

from pathlib import Path

from jsonargparse import auto_cli

from lit_compress.ops.product_times import device_named, product_us
from tools.bench.kernel_plots import Curve, break_even
from tools.bench.kernels import SHAPES

SPARSITIES = [step / 20 for step in range(20)]


def derived_curves(
    output: Path,
    device: str = "h100",
    rows: tuple[int, ...] = (4096, 32768),
    shapes: tuple[str, ...] = tuple(SHAPES),
) -> list[Curve]:
    """Draw the curves of tall blocks and of 64 x 64 blocks.

    Args:
        output: picture to write.
        device: of ``lit_compress.ops.product_times``.
        rows: numbers of tokens.
        shapes: which of qkv, out, up and down.

    """
    found = device_named(device)
    curves = [
        Curve(
            title=f"{name}, {count} rows, estimated",
            rows=count,
            formats={
                kind: [(share, product_us(found, count, *SHAPES[name], kind, "fp8", 1 - share)) for share in SPARSITIES]
                for kind in ("tall_blocks", "blocks")
            },
            baselines={
                "dense, 8 bit": product_us(found, count, *SHAPES[name], "dense", "fp8"),
                "dense, 16 bit": product_us(found, count, *SHAPES[name]),
            },
        )
        for count in rows
        for name in shapes
    ]
    break_even(curves, output)
    return curves


if __name__ == "__main__":
    auto_cli(derived_curves, as_positional=False)
