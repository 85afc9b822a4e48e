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
    ("rows", "outputs", "inputs", "tile", "expected"),
    [(1, 768, 768, launch.DENSE, (16, 64, 128, 4, True)), (32, 3072, 768, launch.DENSE, (32, 64, 128, 4, True)),
     (128, 768, 768, launch.DENSE, (64, 64, 128, 4, False)), (4096, 768, 3072, launch.DENSE, (128, 128, 128, 8, False)),
     (32768, 3072, 768, launch.DENSE, (128, 128, 64, 4, False)),
     (32768, 768, 3072, launch.DENSE, (128, 256, 128, 8, False)),
     (32768, 768, 3072, launch.TALL, (128, 128, 128, 4, False))],
)  # fmt: skip
def test_few_rows_take_many_tiles_and_many_rows_two_programs_or_large_ones(rows, outputs, inputs, tile, expected):
    shape = launch.product_launch(rows, outputs, inputs, tile, torch.int8, CPU)

    assert (shape.block_m, shape.block_n, shape.block_k, shape.warps, shape.swap) == expected


def test_two_programs_fit_a_processor_where_the_loop_is_short():
    for tile, inputs in ((launch.DENSE, 768), (launch.TALL, 3072)):
        shape = launch.product_launch(32768, 3072, inputs, tile, torch.int8, CPU)
        assert 2 * (shape.shared_bytes + 1024) <= launch.SHARED_MEMORY[9, 0]


def test_inputs_that_no_wide_read_divides_take_small_tiles():
    assert launch.product_launch(100, 768, 769, launch.DENSE, torch.int8, CPU) == launch.Product(32, 32, 32, 4, 2)


def test_rows_that_no_program_holds_are_refused():
    assert launch.row_launch(768) == launch.RowLaunch(1024, 4)
    with pytest.raises(UserError, match="65537"):
        launch.row_launch(65537)
