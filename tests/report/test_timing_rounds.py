from itertools import count

import pytest

from lit_compress.report.timing_rounds import undisturbed, undisturbed_rounds


@pytest.fixture(autouse=True)
def _as_many_rounds_as_for_people(monkeypatch):
    monkeypatch.setattr("lit_compress.report.timing_rounds._MOST", 4)


def played(rounds):
    """Rounds of these seconds, one after the other; how many were made is the number of the next."""
    made = count()

    def one_round(number, tell):
        assert number == next(made)
        for _ in rounds[number]:
            tell()
        return list(rounds[number])

    return one_round, made


QUIET, SLOW = (1.0, 4.0, 9.0), (2.1, 4.4, 18.0)


def test_a_round_is_disturbed_when_most_models_are_slow():
    one_model_slow = (1.0, 4.0, 20.0)
    assert undisturbed([QUIET, SLOW, one_model_slow]) == [0, 2]
    # What is slow is known once there was something faster.
    assert undisturbed([SLOW]) == [0]
    assert undisturbed([SLOW, QUIET]) == [1]


def test_disturbed_rounds_are_made_again(capsys):
    one_round, made = played([SLOW, QUIET, SLOW, QUIET, QUIET, QUIET])
    assert undisturbed_rounds("Measuring", 3, 3, one_round) == ([list(QUIET)] * 3, "")
    assert next(made) == 5
    assert "busy" not in capsys.readouterr().out


def test_a_machine_that_stays_busy_is_said_and_the_least_disturbed_rounds_count(capsys):
    slower = (3.0, 12.0, 27.0)
    one_round, made = played([QUIET, slower, SLOW, *[slower] * 5])
    assert undisturbed_rounds("Measuring", 3, 2, one_round) == (
        [list(QUIET), list(SLOW)],
        "1 of 2 timed rounds were disturbed",
    )
    assert next(made) == 8
    assert "The machine is busy: 7 of 8 rounds of calls were disturbed" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [1, 5])
def test_a_quiet_machine_makes_no_more_than_are_wanted(wanted):
    one_round, made = played([QUIET] * 9)
    assert len(undisturbed_rounds("Measuring", 3, wanted, one_round).seconds) == wanted
    assert next(made) == wanted
