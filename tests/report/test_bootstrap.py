import math

import numpy as np
import pytest
from scipy import stats

from lit_compress.report.bootstrap import compare_outcomes, exact_interval, interval, resamples
from lit_compress.report.phrasing import verdict
from lit_compress.tasks import Outcomes


def answers(correct, **options):
    """A model that is right on these units."""
    right = np.asarray(correct, dtype=float)
    return Outcomes(
        unit="examples",
        lengths=np.full(len(right), 5),
        score=lambda weights: {"accuracy": weights @ right / weights.sum(1)},
        **options,
    )


def difference(dense, compressed, **options):
    found = compare_outcomes({"dense": answers(dense), "compressed": answers(compressed)}, **options)
    return found["metrics"]["accuracy"]["differences"]["compressed"]


def test_two_units_by_hand():
    # The lost unit is drawn 0, 1 or 2 times with probability 1/4, 1/2, 1/4, so the difference is 0, -1/2 or -1.
    found = difference([1, 1], [1, 0])
    assert found == {"value": -0.5, "low": -1.0, "high": 0.0}
    values = np.concatenate([weights @ [0.0, 1.0] / 2 for weights in resamples(2, 20_000)])
    assert [np.mean(values == share) for share in (0, 0.5, 1)] == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_the_known_distribution_of_a_paired_difference():
    # 1000 rows, 60 lost and 20 gained: mean -0.04, variance (80 - 40 ** 2 / 1000) / 1000 ** 2, close to normal.
    dense, compressed = np.zeros(1000), np.zeros(1000)
    dense[:860], compressed[60:880] = 1, 1
    found = difference(dense, compressed)
    half = 1.96 * math.sqrt(80 - 40**2 / 1000) / 1000
    assert found["value"] == pytest.approx(-0.04)
    assert [found["low"], found["high"]] == pytest.approx([-0.04 - half, -0.04 + half], abs=0.1 * half)


def test_the_interval_is_that_of_scipy():
    draw = np.random.default_rng(3)
    dense = draw.random(200) < 0.9
    compressed = np.where(draw.random(200) < 0.1, ~dense, dense)
    ours = difference(dense, compressed)
    theirs = stats.bootstrap(
        (dense.astype(float), compressed.astype(float)),
        lambda first, second, axis: np.mean(second - first, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert [ours["low"], ours["high"]] == pytest.approx([theirs.low, theirs.high], abs=0.0075)


def test_pairing_takes_out_what_is_hard_for_both():
    draw = np.random.default_rng(1)
    dense = draw.random(400) < 0.7
    compressed = dense.copy()
    compressed[:4] = ~compressed[:4]
    shuffled = compressed[draw.permutation(400)]
    paired, unpaired = difference(dense, compressed), difference(dense, shuffled)
    assert paired["high"] - paired["low"] < 0.5 * (unpaired["high"] - unpaired["low"])


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(120):
        gone = draw.random(150)
        dense = draw.random(150) < 0.9
        compressed = dense & (gone >= 0.1)  # loses 0.09 in truth
        found = difference(dense, compressed, count=400)
        held += found["low"] <= -0.09 <= found["high"]
    assert 0.87 <= held / 120 <= 1.0


def paired(right, **options):
    """A model that is right on these units, as classifications are."""
    right = np.asarray(right, dtype=bool)
    return answers(right, right=right, share=("accuracy", 1.0), goodness=right.astype(float), **options)


def changed(lost, gained, units):
    """The difference of a model that loses and gains so many answers."""
    dense, own = np.arange(units) % 2 == 0, np.arange(units) % 2 == 0
    own[: 2 * lost : 2], own[1 : 2 * gained : 2] = False, True
    found = compare_outcomes({"dense": paired(dense), "compressed": paired(own)}, count=400)
    return found["metrics"]["accuracy"]["differences"]["compressed"]


def test_a_model_that_lost_no_answer_may_lose_some_elsewhere():
    """Resampling answers of which none became worse shows none that did."""
    found = changed(lost=0, gained=4, units=60)
    assert (found["worse"], found["better"], found["few"]) == (0, 4, True)
    assert found["p"] == stats.binomtest(0, 4).pvalue == 0.125
    assert found["low"] < 0 < found["high"]
    said = verdict(found)
    assert said.startswith("undecided, between a loss of ")
    assert said.endswith(": only 4 predictions changed, 0 for the worse")


def test_no_changed_answer_leaves_room_for_some():
    found = changed(lost=0, gained=0, units=60)
    # 0 of 60 answers changed: the rate that would show nothing in one of 40 cases is 1 - 0.025 ** (1 / 60).
    assert found["high"] == -found["low"] == pytest.approx(1 - 0.025 ** (1 / 60))
    assert verdict(found) == ("undecided, between a loss of 6.0 points and a gain of 6.0: no prediction changed")


def test_few_changes_of_one_kind_decide():
    assert verdict(changed(lost=9, gained=1, units=300)).startswith("loses between ")
    assert verdict(changed(lost=1, gained=9, units=300)).startswith("gains between ")


def test_many_changes_are_resampled():
    found = changed(lost=40, gained=5, units=600)
    assert not found["few"]
    assert verdict(found).startswith("loses between ")


def test_the_exact_interval_decides_as_mcnemars_test_does():
    for lost in range(25):
        for gained in range(25 - lost):
            low, high = exact_interval(lost, gained, 300)
            rejected = lost + gained > 0 and stats.binomtest(lost, lost + gained).pvalue < 0.05
            assert rejected == (low > 0 or high < 0), (lost, gained)
            assert low <= (gained - lost) / 300 <= high


@pytest.mark.parametrize("rates", [(0.0, 0.01), (0.02, 0.02), (0.01, 0.05), (0.06, 0.0)])
def test_the_exact_interval_holds_the_truth(rates):
    draw, units = np.random.default_rng(4), 150
    counts = draw.multinomial(units, [*rates, 1 - sum(rates)], size=200)
    counts = counts[counts[:, :2].sum(1) < 25]
    bounds = [exact_interval(int(lost), int(gained), units) for lost, gained, _ in counts]
    assert np.mean([low <= rates[1] - rates[0] <= high for low, high in bounds]) >= 0.95


def test_a_metric_without_an_exact_interval_is_undecided_where_few_answers_changed():
    """An F1, say: resampling is sure, and 4 changes of one kind are what a coin gives in 1 of 8 cases."""
    dense, own = np.zeros(60), np.zeros(60)
    own[:4] = 1
    both = {name: answers(values, goodness=values) for name, values in (("dense", dense), ("compressed", own))}
    found = compare_outcomes(both)["metrics"]["accuracy"]["differences"]["compressed"]
    assert found["low"] > 0
    assert verdict(found) == "undecided: only 4 predictions changed, 0 for the worse"


def test_the_same_seed_gives_the_same_interval():
    first, second, other = (difference([1] * 20, [1] * 15 + [0] * 5, seed=seed) for seed in (0, 0, 9))
    assert first == second
    assert first["value"] == other["value"]


def test_every_resample_has_as_many_units():
    drawn = np.concatenate(list(resamples(units=7, count=1000)))
    assert drawn.shape == (1000, 7)
    assert set(drawn.sum(1)) == {7}
    assert drawn.mean() == 1


def test_a_value_that_no_resample_has():
    assert interval(np.array([np.nan, np.nan])) == (None, None)
    assert interval(np.array([np.nan, 2.0])) == (2.0, 2.0)
    found = compare_outcomes({"model": answers([0, 0], slices={"none": np.zeros(2, bool)})})
    assert found["slices"]["none"]["metrics"]["accuracy"]["models"]["model"] == {
        "value": None,
        "low": None,
        "high": None,
    }


def test_parts_and_models():
    three = {
        name: answers([1, 0, 1], slices={"odd": np.array([True, False, True])}) for name in ("dense", "compressed", "x")
    }
    found = compare_outcomes(three)
    assert found["units"] == 3
    assert found["slices"]["odd"]["units"] == 2
    assert found["slices"]["odd"]["metrics"]["accuracy"]["models"]["x"]["value"] == 1
    assert list(found["metrics"]["accuracy"]["differences"]) == ["compressed", "x"]

    def by_class(weights):
        return {"yes": {"recall": np.full(len(weights), 0.5)}}

    alone = answers([1], score_classes=by_class, class_units={"yes": 1})
    found = compare_outcomes({"model": alone})
    assert found["classes"] == {
        "yes": {
            "units": 1,
            "metrics": {"recall": {"models": {"model": {"value": 0.5, "low": 0.5, "high": 0.5}}, "differences": {}}},
        }
    }


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.02, -0.01, "loses between 1.0 and 2.0 points"),
        (-0.02, 0.01, "undecided, between a loss of 2.0 points and a gain of 1.0"),
        (-0.02, 0.0, "undecided, between a loss of 2.0 points and a gain of 0.0"),
        (0.0, 0.01, "undecided, between a loss of 0.0 points and a gain of 1.0"),
        (0.0, 0.0, "undecided, between a loss of 0.0 points and a gain of 0.0"),
        (0.001, 0.01, "gains between 0.1 and 1.0 points"),
        (None, None, "not defined on this data"),
    ],
)
def test_verdicts(low, high, text):
    assert verdict({"value": low, "low": low, "high": high}) == text


def test_less_perplexity_is_better():
    worse = {"value": 1.0, "low": 0.5, "high": 1.5}
    assert verdict(worse, points=None, higher_is_better=False) == "loses between 0.5 and 1.5"
    better = {"value": -1.0, "low": -1.5, "high": -0.5}
    assert verdict(better, points=None, higher_is_better=False) == "gains between 0.5 and 1.5"


def test_squad_is_in_percent_already():
    lost = {"value": -2.0, "low": -3.0, "high": -1.0}
    assert verdict(lost, points=1.0) == "loses between 1.0 and 3.0 points"
