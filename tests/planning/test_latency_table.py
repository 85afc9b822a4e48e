import json

import pytest

from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.structure import LayerShape, Structure

TABLE = LatencyTable(
    heads={1: 1.0, 3: 2.0, 4: 4.0},
    neurons={16: 1.0, 64: 2.0},
    ranks={8: -0.5, 24: 0.5},
    fixed=3.0,
    settings={"a": "b"},
    busy="c",
)


@pytest.mark.parametrize(
    ("heads", "neurons", "seconds"),
    [(1, 16, 2.0), (2, 16, 2.5), (3, 40, 3.5), (4, 64, 6.0), (1, 1, 2.0)],
    ids=["measured", "between heads", "between neurons", "dense", "below the smallest"],
)
def test_a_layer_takes_what_lies_between_what_was_measured(heads, neurons, seconds):
    assert TABLE.layer(LayerShape(heads, neurons)) == pytest.approx(seconds)


def test_a_structure_takes_the_sum_of_what_is_left():
    structure = Structure(layers=(LayerShape(4, 64), None, LayerShape(1, 16)))
    assert TABLE.seconds(structure) == pytest.approx(3.0 + 6.0 + 2.0)
    assert TABLE.seconds(Structure(layers=structure.layers, rank=8)) == pytest.approx(3.0 + 6.0 + 2.0 - 0.5)
    assert TABLE.seconds(Structure(layers=structure.layers, rank=16)) == pytest.approx(3.0 + 6.0 + 2.0)


def test_a_rank_of_a_model_without_is_refused():
    table = LatencyTable.from_json(TABLE.to_json() | {"ranks": {}})
    with pytest.raises(ValueError, match="cannot have one"):
        table.seconds(Structure(layers=(LayerShape(1, 16),), rank=8))


def test_a_table_comes_back_from_json():
    assert LatencyTable.from_json(json.loads(json.dumps(TABLE.to_json()))) == TABLE
