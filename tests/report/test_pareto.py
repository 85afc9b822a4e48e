import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.results import results

from lit_compress.report.pareto import groups_of, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_other_beats(points):
    beaten = {
        number
        for number, (cost, value) in enumerate(points)
        if any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    }
    front = pareto_front([cost for cost, _ in points], [value for _, value in points])
    assert set(front) == set(range(len(points))) - beaten
    assert [points[number][0] for number in front] == sorted(points[number][0] for number in front)


def test_a_nan_is_on_no_front():
    assert pareto_front([1.0, 2.0, math.nan], [math.nan, 0.5, 0.9]) == [1]


def smaller(megabytes, accuracy, **changes):
    made = results(**changes)
    model = made["models"]["compressed"]
    model["size"]["model"]["compressed_bytes"] = megabytes * 1_000_000
    model["accuracy"]["accuracy"] = accuracy
    return made


def test_runs_and_their_dense_model():
    runs = {"good": smaller(10, 0.90), "small": smaller(5, 0.8), "worse": smaller(11, 0.79)}
    (group,) = groups_of(runs)
    assert group.names == ["good", "small", "worse"]
    # The dense model of all of them is one point, and small enough here to beat everything.
    assert group.points["size"]["dense"] == (0.012, 0.91)
    assert group.fronts["size"] == ["dense"]
    for run in runs.values():
        run["models"]["dense"]["size"]["model"]["compressed_bytes"] = 20_000_000
    (group,) = groups_of(runs)
    assert group.fronts["size"] == ["small", "good", "dense"]
    assert group.points["latency"]["good"] == (0.5, 0.90)
    assert group.points["latency"]["dense"] == (1.0, 0.91)


def test_other_data_is_another_group():
    other = results(data={"validation_rows": 7, "max_length": 66, "source": "other.tsv"})
    assert [group.names for group in groups_of({"a": results(), "b": other, "c": results()})] == [["a", "c"], ["b"]]


def test_latencies_of_other_batches_are_another_group():
    other = results()
    for model in other["models"].values():
        model["latency_ms"] = {"8": model["latency_ms"]["32"], "16": 1.0}
    both = results()
    for model in both["models"].values():
        model["latency_ms"] = {"8": 1.0, **model["latency_ms"]}
    groups = groups_of({"a": results(), "b": other, "c": both})
    assert [(group.names, group.batch) for group in groups] == [(["a", "c"], "1"), (["b"], "8")]


def test_less_perplexity_is_on_the_front():
    runs = {}
    for name, perplexity in (("low", 10.0), ("high", 20.0)):
        runs[name] = results(task="masked_lm", lower_is_better=["perplexity"])
        for model in runs[name]["models"].values():
            model["accuracy"] = {"perplexity": perplexity if model is runs[name]["models"]["compressed"] else 30.0}
    (group,) = groups_of(runs)
    assert group.fronts["size"] == ["low"]


@pytest.mark.parametrize("name", ["dense", "runs/dense"])
def test_a_run_may_be_called_dense(name):
    (group,) = groups_of({name: results()})
    assert group.points["size"][name][1] == 0.89
