"""The benchmark of the kernels, as far as a machine without a GPU can tell."""

import pytest
import torch

from lit_compress.ops import reference
from tools.bench import kernels as bench
from tools.bench.derived_curves import derived_curves
from tools.bench.kernel_plots import Curve, break_even, roofline


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device") as stopped:
        bench.kernels(output=tmp_path / "results.csv")

    assert stopped.value.code not in (0, None)
    assert "\n" not in str(stopped.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: tools.gpu runs it there")
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_everything_but_graphs_runs_without_a_gpu(dtype, tmp_path):
    output = tmp_path / "results.csv"

    found = bench.kernels((16,), ("out",), dtype, (0.5,), 1, simulate=True, output=output)

    cases = {row.case for row in found}
    assert {"out 16 dense 0%", "out 16 tall_blocks 50%", "out 16 blocks 50%", "layernorm_quantize 16 x 768"} <= cases
    assert len(output.read_text().splitlines()) == 1 + len(found)


@pytest.mark.parametrize(("format", "height", "width"), [("tall_blocks", 128, 32), ("blocks", 64, 64)])
def test_sparse_weights_keep_the_blocks_they_say(format, height, width):
    weight = torch.randn(256, 768)

    sparse = bench.packed(weight, format, 0.5, torch.int8)

    dense = reference.dense_values(sparse.values, sparse.columns, sparse.offsets, 256, 768)
    whole = reference.quantize_rows(weight, torch.int8)[0].float()
    blocks = dense.reshape(256 // height, height, 768 // width, width).ne(0).any(3).any(1)
    kept = blocks.repeat_interleave(height, 0).repeat_interleave(width, 1)
    assert sparse.sparsity == 0.5
    assert blocks.sum(1).tolist() == [768 // width // 2] * (256 // height)
    assert torch.equal(dense, whole * kept)


def test_a_wrong_result_stops_the_benchmark():
    with pytest.raises(SystemExit, match="gate: product is off"):
        bench.gate("product", torch.ones(3), torch.full((3,), 1.1))
    with pytest.raises(SystemExit, match="nan"):
        bench.gate("product", torch.full((3,), torch.nan), torch.ones(3))


def test_pictures_are_drawn(tmp_path):
    formats = {"dense": [(0.0, 10.0)], "tall_blocks": [(0.5, 7.0), (0.0, 12.0)]}
    curve = Curve(title="up", rows=128, formats=formats, baselines={"bf16": 20.0})

    break_even([curve, curve], tmp_path / "a.png")
    roofline(list(bench.of_roofline(curve, 3072, 768)), 4e12, 1e15, tmp_path / "b.png")

    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_derived_curves_cross_where_the_page_says(tmp_path):
    (curve,) = derived_curves(tmp_path / "a.png", rows=(4096,), shapes=("down",))
    dense = curve.baselines["dense, 8 bit"]
    # The page says 57 % and 48 %; points are 5 % apart.
    first = {name: min(share for share, time in points if time < dense) for name, points in curve.formats.items()}
    assert first == {"tall_blocks": 0.6, "blocks": 0.5}
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("rows", "dtype", "bounds"),
    [(32768, "fp8", (1.05, 1.1)), (32768, "int8", (1.2, None)), (128, "fp8", (None, None))],
)
def test_bounds_of_the_project_are_in_the_table(rows, dtype, bounds):
    slow, fast = "_scaled_mm fp8", "_scaled_mm fp8, fast accumulation"
    seconds = {"dense 0%": [1.0], bench.GELU: [1.5], "tall_blocks 50%": [1.0], "tall_blocks 67%": [1.0]}
    seconds |= {"bf16": [3.0], slow: [2.0], fast: [1.0]}

    found = bench.comparisons("down", rows, seconds, {"dtype": dtype})

    assert {(row.case.removeprefix(f"down {rows} "), row.baseline): row.target for row in found} == {
        ("dense 0%", "bf16"): None,
        ("dense 0%", slow): None,
        ("dense 0%", fast): bounds[0],  # the faster of both
        (bench.GELU, fast): bounds[1],
        ("tall_blocks 50%", "dense 0%"): 1.0,
        ("tall_blocks 67%", "dense 0%"): None,
    }
