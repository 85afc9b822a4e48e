import itertools
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.functional import Constant, Cosine, Cubic, Duration, Linear
from lit_compress.functional.schedules import EqualParts, Updates, due, width_at

# Test vectors of SparseML's recipes: s_i, s_f, start, end, every, sparsity at each update.
RECIPES = {
    "70-90": (0.7, 0.9, "2", "26", "4", [0.7, 0.78426, 0.84074, 0.875, 0.89259, 0.89907, 0.9]),
    "70-80": (0.7, 0.8, "2", "26", "4", [0.7, 0.74213, 0.77037, 0.7875, 0.7963, 0.79954, 0.8]),
    "70-97": (0.7, 0.97, "2", "26", "4", [0.7, 0.81375, 0.89, 0.93625, 0.96, 0.96875, 0.97]),
    "30-90": (0.3, 0.9, "2", "26", "4", [0.3, 0.55278, 0.72222, 0.825, 0.87778, 0.89722, 0.9]),
    "mlm": (
        *(0.7, 0.9, "0", "2.75", ".25"),
        [0.7, 0.74974, 0.79046, 0.82307, 0.84846, 0.86754, 0.88122, 0.89038, 0.89594, 0.8988, 0.89985, 0.9],
    ),
}
GROWING = [Linear(final=0.9, initial=0.2), Cubic(final=0.9, initial=0.2), Cosine(final=0.9, initial=0.2)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_cubic_follows_the_recipes(recipe):
    initial, final, *epochs, expected = recipe
    start, end, every = (Duration.parse(f"{e} epochs").steps(3000, 100) for e in epochs)
    updates = [step for step in range(3001) if due(step, start, end, every)]
    schedule = Cubic(initial=initial, final=final)
    assert [schedule((step - start) / (end - start)) for step in updates] == pytest.approx(expected, abs=5e-6)


# Prune OFA: the policy window is 0 to 50k steps, values of its scheduler.
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        *[(0, 0.0), (1_000, 0.0529), (5_000, 0.2439), (10_000, 0.4392), (20_000, 0.7056)],
        *[(30_000, 0.8424), (40_000, 0.8928), (50_000, 0.9), (80_000, 0.9)],
    ],
)
def test_cubic_follows_prune_ofa(step, expected):
    assert Cubic(final=0.9)(step / 50_000) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("start", "end", "every", "expected"),
    [
        (0, 6, 2, [0, 2, 4, 6]),
        (2, 9, 3, [2, 5, 8, 9]),  # the end comes although the distance does not lead there
        (2, 9, 100, [2, 9]),
        (5, 5, 1, [5]),
        (3, 6, 1, [3, 4, 5, 6]),
    ],
)
def test_due(start, end, every, expected):
    assert [step for step in range(-3, 20) if due(step, start, end, every)] == expected


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 60))
def test_due_never_waits_longer_than_every(start, length, every):
    end = start + length
    steps = [step for step in range(200) if due(step, start, end, every)]
    assert (steps[0], steps[-1]) == (start, end)
    gaps = [late - early for early, late in itertools.pairwise(steps)]
    assert all(gap == every for gap in gaps[:-1])
    assert all(0 < gap <= every for gap in gaps)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("500steps", 500),
        ("2 epochs", 200),
        ("1 epoch", 100),
        ("1.5 epochs", 150),
        (".25 epochs", 25),
        ("2. epochs", 200),
        ("  3   epochs  ", 300),
        ("10%", 100),
        ("2.5 %", 25),
        ("100%", 1000),
        ("0%", 0),
        ("0.004 epochs", 0),
        ("0.006 epochs", 1),
    ],
)
def test_duration_in_steps(text, steps):
    assert Duration.parse(text).steps(total_steps=1000, steps_per_epoch=100) == steps


def test_duration_of_an_epoch_of_fractional_steps():
    # 25 batches in groups of 4 are 6.25 optimizer steps: four epochs are 25, not 24.
    assert Duration.parse("4 epochs").steps(total_steps=100, steps_per_epoch=6.25) == 25


def test_equal_durations_are_equal():
    assert Duration.parse("2 epoch") == Duration.parse("2.0 epochs")


@pytest.mark.parametrize(
    "text",
    ["", "2", "epochs", "-1 epochs", "2 weeks", "2 epochs later", "nan steps", "inf%", "1,5 epochs", "1.5.2 steps", 5],
)
def test_duration_without_sense_or_unit(text):
    with pytest.raises(ValueError, match="with its unit") as caught:
        Duration.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("schedule", GROWING, ids=lambda s: type(s).__name__)
def test_schedule_ends_exactly_and_clips(schedule):
    assert schedule(0.0) == schedule(-1.0) == pytest.approx(0.2)
    assert schedule(1.0) == schedule(7.0) == 0.9


@pytest.mark.parametrize(("schedule", "half"), [*zip(GROWING, [0.55, 0.8125, 0.55], strict=True)])
def test_schedule_half_way(schedule, half):
    assert schedule(0.5) == pytest.approx(half)


def test_cosine_is_slow_at_both_ends():
    cosine, line = Cosine(final=1.0), Linear(final=1.0)
    assert cosine(0.1) < line(0.1)
    assert cosine(0.9) > line(0.9)


@pytest.mark.parametrize("schedule", GROWING, ids=lambda s: type(s).__name__)
@given(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_schedule_never_falls(schedule, one, other):
    early, late = sorted([one, other])
    assert schedule(early) <= schedule(late) + 1e-12
    assert 0.2 - 1e-12 <= schedule(early) <= 0.9 + 1e-12


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_constant(progress):
    assert Constant(final=0.9)(progress) == 0.9


def test_widths_of_rosita():
    # Arc C: 12 heads to 2, 3072 neurons to 512, rank 768 to 128, in ten prunings.
    prunings = range(1, 11)
    assert [width_at(i / 10, 12, 2) for i in prunings] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert [width_at(i / 10, 3072, 512) for i in prunings] == list(range(2816, 511, -256))
    assert [width_at(i / 10, 768, 128) for i in prunings] == list(range(704, 127, -64))


@given(st.integers(1, 40), st.integers(1, 400), st.integers(0, 400))
def test_widths_fall_to_the_final_one(prunings, final, more):
    widths = [width_at(i / prunings, final + more, final) for i in range(prunings + 1)]
    # As if it were computed with whole numbers: a half is a half, also where the progress is none of two to the power.
    assert widths == [final + more - round(Fraction(more * i, prunings)) for i in range(prunings + 1)]
    assert widths[0] == final + more
    assert widths[-1] == final
    assert widths == sorted(widths, reverse=True)


@given(st.integers(0, 100), st.integers(1, 30), st.integers(0, 200))
def test_prunings_are_spread_evenly_and_the_last_is_at_the_end(start, prunings, more):
    end = start + prunings + more
    steps = EqualParts(start, end, prunings).steps
    assert len(set(steps)) == prunings
    assert steps[-1] == end
    gaps = {b - a for a, b in pairwise([start, *steps])}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("start", "end", "parts"), [(0, 100, 4), (10, 31, 5), (7, 7, 3), (0, 3, 3), (0, 8, 1)])
def test_progress_of_equal_parts_is_the_share_that_is_over(start, end, parts):
    updates = EqualParts(start, end, parts)
    progress = [updates.progress(step) for step in range(end + 20)]
    assert progress == sorted(progress)
    assert progress[end] == 1.0 == progress[-1]
    assert end == start or progress[end - 1] == (parts - 1) / parts
    assert not any(progress[:start])
    changes = [step for step in range(1, end + 20) if progress[step] != progress[step - 1]]
    assert [step for step in range(1, end + 20) if step in updates] == changes


@pytest.mark.parametrize(("count_past_end", "expected"), [(False, [1, 4, 6, 9, 11]), (True, [1, 4, 7, 10, 11])])
def test_updates_go_on_after_the_end(count_past_end, expected):
    updates = Updates(start=1, end=6, every=3, last=11, count_past_end=count_past_end)
    assert [step for step in range(20) if step in updates] == expected
    assert [updates.progress(step) for step in (1, 6, 11)] == [0.0, 1.0, 1.0]


def test_progress_of_one_update():
    updates = Updates(start=4, end=4, every=1, last=4)
    assert [updates.progress(step) for step in (2, 3, 4, 5)] == [-2, -1, 1, 1]
