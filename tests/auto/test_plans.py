"""Structures for speedups, with a table and a machine that are numbers alone."""

import pytest

from lit_compress.auto.plans import INT8, Planned, plan_members, smallest_structure
from lit_compress.auto.request import Request
from lit_compress.errors import UserError
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.plan import Losses, fastest
from lit_compress.planning.structure import LayerShape, Structure

DENSE = Structure(layers=(LayerShape(4, 128),) * 4)
TABLE = LatencyTable(heads={1: 1.0, 4: 4.0}, neurons={4: 0.5, 128: 16.0}, ranks={}, fixed=2.0, settings={})
LOSSES = Losses(heads=({4: 0.0, 1: 0.3},) * 4, neurons=({128: 0.0, 32: 0.1, 4: 0.4},) * 4, layers=(2.0, 0.2, 0.9, 1.1))
FP32 = 2.5  # times as long as integers


class Machine:
    """Takes what the table says, in integers; ``slower`` is how much longer all but the dense model take."""

    def __init__(self, slower: float = 1.0) -> None:
        self.slower, self.calls = slower, 0

    def __call__(self, cases):
        self.calls += 1
        return {name: self.seconds(*case) for name, case in cases.items()}

    def seconds(self, structure, target):
        seconds = TABLE.seconds(structure) * (1 if structure == DENSE else self.slower)
        return seconds * (1 if target.endswith("int8") else FP32)


def planned(speedups, machine, target="onnx-int8"):
    request = Request(model="m", train="t", data={}, speedups=speedups, target=target)
    return {each.name: each for each in plan_members(request, LOSSES, TABLE, DENSE, machine)}


def test_each_is_as_fast_as_asked_and_inside_the_one_before():
    machine = Machine()
    members = planned((2.0, 4.0, 8.0), machine)
    assert list(members) == [INT8, "2x", "4x", "8x"]
    assert members[INT8].measured == pytest.approx(FP32)
    assert members["2x"].structure == DENSE  # integers alone are that fast
    for name, asked in (("4x", 4.0), ("8x", 8.0)):
        assert members[name].measured >= asked
        assert not members[name].corrected
    for more, less in (("2x", "4x"), ("4x", "8x")):
        pairs = zip(members[more].structure.layers, members[less].structure.layers, strict=True)
        assert all(
            after is None or (after.heads <= before.heads and after.neurons <= before.neurons)
            for before, after in pairs
        )
    assert machine.calls == 2


def test_one_that_misses_is_planned_again_once():
    machine = Machine(slower=1.2)
    members = planned((4.0,), machine)
    assert members["4x"].corrected
    assert members["4x"].measured >= 4.0 * 0.95
    assert machine.calls == 3


def test_one_that_is_faster_than_asked_is_planned_larger():
    small, large = (planned((4.0,), Machine(slower=slower))["4x"] for slower in (1.0, 0.8))
    assert large.corrected
    assert large.measured == pytest.approx(4.0, rel=0.05)
    assert TABLE.seconds(large.structure) > TABLE.seconds(small.structure)


def test_what_cannot_be_reached_is_one_line_with_the_limit():
    with pytest.raises(UserError, match=r"--speedup: 1000 is above \d+\.\d, the most"):
        planned((2.0, 1000.0), Machine())


def test_without_integers_there_is_no_member_of_integers():
    members = planned((2.0,), Machine(), target="onnx")
    assert list(members) == ["2x"]
    assert members["2x"].measured >= 2.0


def test_a_plan_comes_back_from_json():
    member = planned((4.0,), Machine())["4x"]
    assert Planned.from_json(member.to_json()) == member


def test_the_smallest_structure_is_one_layer():
    assert smallest_structure(DENSE) == Structure(layers=(LayerShape(1, 32), None, None, None))


def test_no_plan_is_smaller_than_the_smallest_structure():
    assert TABLE.seconds(fastest(LOSSES, TABLE)) >= TABLE.seconds(smallest_structure(DENSE))
    few = Structure(layers=(LayerShape(2, 20),))
    assert smallest_structure(few) == Structure(layers=(LayerShape(1, 20),))


def test_the_smallest_structure_keeps_what_a_family_cannot_lose():
    assert smallest_structure(DENSE, {"heads"}) == Structure(layers=(LayerShape(4, 32), None, None, None))
    assert smallest_structure(DENSE, {"heads", "neurons"}) == DENSE
