import pytest
import torch

from lit_compress.errors import UserError
from lit_compress.modules import Optimization, Phase, Rewind


def rates(optimization, total, steps_per_epoch=10.0):
    """The learning rate that each optimizer step is taken with, and the one after the last."""
    built = optimization.build(torch.nn.Linear(2, 2), total, steps_per_epoch)
    (factor,) = built["lr_scheduler"]["scheduler"].lr_lambdas[:1]
    return [optimization.learning_rate * factor(step) for step in range(total + 1)]


def test_rewinding_as_in_prune_once_for_all():
    rewind = Rewind(start="0%", end="50%", every="1%")
    taken = rates(Optimization(learning_rate=1.0, warmup="1%", rewind=rewind), 100_000)
    steps = (0, 500, 1000, 1999, 2000, 49_999, 50_000, 75_000, 99_999, 100_000)
    expected = (0, 0.5, 1.0204, 1.0, 1.0204, 1.0, 1.0204, 0.5102, 0.0, 0.0)
    assert [taken[step] for step in steps] == pytest.approx(expected, abs=1e-4)
    assert max(taken) == pytest.approx(50 / 49)


def test_rewinding_inside_a_later_window():
    # Falls until the window, is put back to where the window began, and falls on after it from there.
    rewind = Rewind(start="4 steps", end="10 steps", every="3 steps")
    taken = rates(Optimization(learning_rate=1.0, warmup="0%", rewind=rewind), 20)
    window = [10 / 14, 9 / 14, 8 / 14]
    expected = [1, 13 / 14, 12 / 14, 11 / 14, *window, *window, *(left / 14 for left in range(10, -1, -1))]
    assert taken == pytest.approx(expected)


def test_the_saw_tooth_of_the_obert_recipes():
    phases = [Phase(until="2 epochs"), Phase(until="30 epochs", cycle="4 epochs")]
    optimization = Optimization(learning_rate=8e-5, final_learning_rate=8e-6, warmup="0%", phases=phases)
    taken = rates(optimization, 3000, 100)
    expected = {0: 8e-5, 1: 4.4e-5, 2: 8e-5, 2.5: 7.098e-5, 4: 4.391e-5, 5.99: 8e-6, 6: 8e-5, 26: 8e-5, 29.99: 8e-6}
    assert [taken[round(100 * epoch)] for epoch in expected] == pytest.approx(list(expected.values()), abs=5e-9)


def test_phases_with_ends_of_their_own():
    phases = [
        Phase(until="2 epochs", final_learning_rate=1e-6),
        Phase(until="28 epochs", cycle="2 epochs", final_learning_rate=5e-5),
        Phase(final_learning_rate=1e-6),
    ]
    taken = rates(Optimization(learning_rate=1e-4, warmup="0%", phases=phases), 3000, 100)
    assert [taken[step] for step in (0, 100, 200, 399, 400, 2799, 2800, 2900, 3000)] == pytest.approx(
        [1e-4, 5.05e-5, 1e-4, 5e-5, 1e-4, 5e-5, 1e-4, 5.05e-5, 1e-6]
    )


def test_restarts():
    phases = [Phase(until="2 epochs"), Phase(until="8 epochs"), Phase()]
    taken = rates(Optimization(learning_rate=1.0, warmup="0%", phases=phases), 100, 10)
    assert [taken[step] for step in (0, 10, 20, 50, 80, 90, 100)] == pytest.approx([1, 0.5, 1, 0.5, 1, 0.5, 0])


def test_a_last_cycle_that_is_cut_short_still_falls_all_the_way():
    taken = rates(Optimization(learning_rate=1.0, warmup="0%", phases=[Phase(cycle="4 steps")]), 7)
    assert taken == pytest.approx([1, 2 / 3, 1 / 3, 0, 1, 1 / 2, 0, 0])


def test_a_cycle_of_one_step_stays_at_the_peak():
    taken = rates(Optimization(learning_rate=1.0, warmup="0%", phases=[Phase(cycle="1 steps")]), 3)
    assert taken[:3] == [1, 1, 1]


def test_cosine_restarts():
    taken = rates(Optimization(learning_rate=1.0, warmup="0%", decay="cosine", phases=[Phase(cycle="5 steps")]), 10)
    assert taken[:10] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0] * 2, abs=1e-6)


def test_the_first_phase_begins_after_the_warmup():
    phases = [Phase(until="50%"), Phase()]
    taken = rates(Optimization(learning_rate=1.0, warmup="2 steps", phases=phases), 12)
    assert taken == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, *((6 - step) / 6 for step in range(7))])


def test_one_decay_to_a_final_rate():
    taken = rates(Optimization(learning_rate=1.5e-4, final_learning_rate=1.5e-6, warmup="0%"), 800, 100)
    assert [taken[step] for step in (0, 400, 800)] == pytest.approx([1.5e-4, 7.575e-5, 1.5e-6])


WRONG = {
    "a final rate above the peak": ({"final_learning_rate": 1e-3}, ["optimization.final_learning_rate", "0.001"]),
    "a negative one": ({"final_learning_rate": -1e-6}, ["optimization.final_learning_rate", "-1e-06"]),
    "of a phase": ({"phases": [Phase(), Phase(final_learning_rate=1)]}, ["optimization.phases.1.final_learning_rate"]),
    "without effect": ({"final_learning_rate": 1e-6, "decay": "constant"}, ["final_learning_rate", "no effect"]),
    "constant phases": ({"phases": [Phase()], "decay": "constant"}, ["optimization.phases", "no effect"]),
    "both": ({"phases": [Phase()], "rewind": Rewind()}, ["optimization.rewind", "phases"]),
    "rewound cosine": ({"decay": "cosine", "rewind": Rewind()}, ["optimization.decay", "'cosine'", "rewind"]),
    "rewound to more": ({"final_learning_rate": 1e-6, "rewind": Rewind()}, ["final_learning_rate", "rewind"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_combinations_that_make_no_sense_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        Optimization(learning_rate=1e-4, **arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("kind", "arguments", "key"),
    [
        (Phase, {"until": "30"}, "optimization.phases.until"),
        (Phase, {"cycle": "often"}, "optimization.phases.cycle"),
        (Rewind, {"start": "0"}, "optimization.rewind.start"),
        (Rewind, {"every": "1"}, "optimization.rewind.every"),
    ],
)
def test_durations_say_their_unit(kind, arguments, key):
    with pytest.raises(UserError, match=key):
        kind(**arguments)


WRONG_IN_A_RUN = {
    "ends too early": ({"phases": [Phase(until="4 epochs")]}, ["optimization.phases", "step 40", "step 100"]),
    "ends too late": ({"phases": [Phase(until="40 epochs")]}, ["optimization.phases", "step 400", "step 100"]),
    "goes back": ({"phases": [Phase(until="50%"), Phase(until="4 epochs")]}, ["phases.1.until", "step 40", "step 50"]),
    "ends in the warm-up": ({"phases": [Phase(until="5%"), Phase()]}, ["phases.0.until", "step 5", "step 10"]),
    "long cycle": ({"phases": [Phase(cycle="20 epochs")]}, ["phases.0.cycle", "200 steps", "90"]),
    "empty window": ({"rewind": Rewind(start="50%", end="5 epochs")}, ["rewind.end", "step 50"]),
    "late window": ({"rewind": Rewind(end="11 epochs")}, ["rewind.end", "step 110", "step 100"]),
    "nothing left": ({"rewind": Rewind(end="90%")}, ["optimization.rewind", "90", "10"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_IN_A_RUN.values(), ids=WRONG_IN_A_RUN)
def test_what_does_not_fit_the_run_is_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        rates(Optimization(learning_rate=1e-4, **arguments), 100)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_epochs_of_a_stream_have_no_length():
    with pytest.raises(UserError, match=r"optimization\.phases\.0\.until.*epochs"):
        rates(Optimization(phases=[Phase(until="1 epochs"), Phase()]), 100, float("inf"))
