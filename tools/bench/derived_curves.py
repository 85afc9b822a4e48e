"""Draw what arithmetic says about sparse tiles: time over sparsity beside dense products. Nothing is measured here.

The rates are those of ``lit_compress.ops.roofline``, which ``lit_compress explain`` computes with too; what a GPU
really does is ``tools.bench.kernels --plots``.
"""

from pathlib import Path

from jsonargparse import auto_cli

from lit_compress.ops.roofline import device_named, product_us
from tools.bench.kernel_plots import Curve, break_even
from tools.bench.kernels import SHAPES

SPARSITIES = [step / 20 for step in range(20)]


def derived_curves(
    output: Path,
    device: str = "h200",
    rows: tuple[int, ...] = (128, 4096),
    shapes: tuple[str, ...] = tuple(SHAPES),
) -> list[Curve]:
    """Draw the curves of tall blocks and of 64 x 64 blocks.

    Args:
        output: picture to write.
        device: of ``lit_compress.ops.roofline``.
        rows: numbers of tokens.
        shapes: which of qkv, out, up and down.

    """
    found = device_named(device)
    curves = [
        Curve(
            title=f"{name}, {count} rows, derived",
            rows=count,
            formats={
                kind: [(share, product_us(found, count, *SHAPES[name], kind, 1 - share)) for share in SPARSITIES]
                for kind in ("tall_blocks", "blocks")
            },
            baselines={
                "dense, 8 bit": product_us(found, count, *SHAPES[name], "dense"),
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
