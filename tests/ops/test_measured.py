"""What was measured counts before every rule, for its GPU, shape and rows, and for nothing else."""

import json
from dataclasses import replace

import pytest
import torch

from lit_compress.errors import UserError
from lit_compress.ops import dispatch, launch, measured

GPU = "NVIDIA of tomorrow"
SHAPE = {"device": GPU, "format": "tall_blocks", "dtype": "fp8", "outputs": 768, "inputs": 3072, "rows": 4096}
SETTINGS = {"block_m": 64, "block_n": 128, "block_k": 128, "warps": 4, "stages": 3, "swap": False, "group": 8}
ROW = SHAPE | SETTINGS | {"us": 20.0, "capability": [9, 0], "source": "a test"}
CUDA = torch.device("cuda", 0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes both files, and makes as if the GPU that they are of were here."""
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    monkeypatch.setattr(launch, "_device", lambda kind, index: ((9, 0), 132, GPU))

    def write(launches=(), times=()):
        (tmp_path / measured.LAUNCHES).write_text(json.dumps(list(launches)))
        (tmp_path / measured.TIMES).write_text(json.dumps(list(times)))
        forget()

    def forget():
        for cached in (measured._rows, measured._launches, measured._times, launch._chosen, dispatch._decide):
            cached.cache_clear()

    yield write
    monkeypatch.undo()
    forget()


def chosen(rows=4000, outputs=768, tile=launch.TALL, dtype=torch.float8_e4m3fn):
    return launch.product_launch(rows, outputs, 3072, tile, dtype, CUDA)


def test_the_fastest_launch_of_its_shape_is_taken(files):
    files([ROW | {"us": 30.0, "warps": 8}, ROW, ROW | {"us": 25.0, "stages": 2}])
    assert chosen() == launch.Product(64, 128, 128, 4, 3)


@pytest.mark.parametrize(
    "other", [{"rows": 5000}, {"outputs": 769}, {"tile": launch.DENSE}, {"dtype": torch.int8}], ids=str
)
def test_another_shape_takes_the_rule(files, other):
    files()
    by_rule = chosen(**other)
    files([ROW])
    assert chosen(**other) == by_rule


def test_a_choice_is_the_one_that_was_faster(files):
    problem = dispatch.Problem(outputs=768, inputs=3072, format="tall_blocks", dtype="fp8", density=0.2, device=GPU)
    time = SHAPE | {"source": "a test", "dense_us": 20.0}
    files(times=[time | {"density": 0.5, "kernel_us": 25.0}, time | {"density": 0.25, "kernel_us": 15.0}])
    decision = dispatch.decide(4000, problem)
    assert (decision.choice, decision.source, decision.kernel_us) == ("kernel", "measured", 15.0)
    assert "15.0 us against 20.0 us dense in 16 bit (measured: a test)" in decision.reason
    assert dispatch.decide(4000, replace(problem, density=0.3)).choice == "dense"
    assert dispatch.decide(4000, replace(problem, density=0.6)).source == "fixed"
    assert dispatch.decide(9000, problem).source == "fixed"


def test_a_damaged_file_is_one_line(files, tmp_path):
    files([{key: value for key, value in ROW.items() if key != "stages"}])
    with pytest.raises(UserError, match=r"launches\.json: 'stages' is missing"):
        chosen()
    files()
    (tmp_path / measured.LAUNCHES).write_text("[{")
    with pytest.raises(UserError, match=r"launches\.json: not JSON"):
        chosen()


def test_what_is_shipped_was_measured_by_somebody():
    rows = measured.launch_rows()
    assert rows
    for row in rows:
        assert row["source"]
        assert row["us"] > 0
        shape = launch.Product(**{key: row[key] for key in measured.SETTINGS})
        assert shape.shared_bytes <= launch.SHARED_MEMORY[tuple(row["capability"])]
    assert measured._times() is not None


def test_a_folder_of_figures_that_is_not_there(files, tmp_path, monkeypatch):
    files()
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path / "nowhere"))
    measured._rows.cache_clear()
    with pytest.raises(UserError, match=r"LIT_COMPRESS_MEASURED: .*nowhere.* is no folder"):
        measured._rows(measured.LAUNCHES)
