"""Launch configurations: every one fits its GPU."""

import pytest
import torch

from lit_compress.errors import UserError
from lit_compress.ops import launch

CPU = torch.device("cpu")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
def test_every_configuration_fits_the_shared_memory(capability):
    room = launch.SHARED_MEMORY.get(capability, 101376)

    for tile, shape in launch.shipped_products(capability):
        assert shape.shared_bytes <= room
        assert shape.block_k % 32 == 0
        if tile != launch.DENSE:
            height, chunk, _ = tile
            assert height % shape.block_n == 0
            assert shape.block_k == chunk


@pytest.mark.parametrize(
    ("rows", "outputs", "expected"),
    [(1, 768, (16, 64, True)), (32, 3072, (32, 64, True)), (128, 768, (64, 64, False)), (8192, 768, (128, 128, False)),
     (32768, 3072, (128, 256, False))],
)  # fmt: skip
def test_many_rows_take_large_tiles_and_few_take_many(rows, outputs, expected):
    shape = launch.product_launch(rows, outputs, 768, launch.DENSE, torch.int8, CPU)

    assert (shape.block_m, shape.block_n, shape.swap) == expected


def test_inputs_that_no_wide_read_divides_take_small_tiles():
    assert launch.product_launch(100, 768, 769, launch.DENSE, torch.int8, CPU) == launch.Product(32, 32, 32, 4, 2)


def test_rows_that_no_program_holds_are_refused():
    assert launch.row_launch(768) == launch.RowLaunch(1024, 4)
    with pytest.raises(UserError, match="65537"):
        launch.row_launch(65537)
