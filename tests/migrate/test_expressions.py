import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.errors import UserError
from lit_compress.migrate.expressions import calculate, number

VARIABLES = {"num_epochs": 30, "init_lr": 8e-5, "large": 1e14}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("num_epochs", 30),
        ("num_epochs - 4", 26),
        ("init_lr * 0.1", 8e-6),
        ("-(num_epochs // 4) + 10 % 3", -6),
        (" max(num_epochs * 0.5, round(2.6)) ", 15.0),
        ("int(num_epochs / 4)", 7),
    ],
)
def test_values(text, value):
    assert calculate(text, VARIABLES) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "num_epochs.__class__",
        "(lambda: 1)()",
        "[1, 2][0]",
        "'a' * 9",
        "2 ** 9 ** 9",
        "9 if num_epochs else 1",
        "round(1.5, ndigits=0)",
        "large * large",
        "float('inf')",
        "1e999",
        "1 / 0",
        "1 +",
        "True",
        "",
        "+".join("1" * 300),
        "(" * 150 + "1",
    ],
)
def test_everything_else_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"^eval\(") as caught:
        calculate(text, VARIABLES)
    assert "\n" not in str(caught.value).strip()


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError):
        calculate("start_epoch + 1", VARIABLES)


@given(st.text(max_size=60))
def test_whatever_is_written_it_is_a_number_or_an_error(text):
    with contextlib.suppress(UserError, KeyError):
        assert isinstance(calculate(text, VARIABLES), int | float)


def test_numbers():
    assert [number(value) for value in (1, 0.5, "5e-5", "two", None, True, [1])] == [1, 0.5, 5e-5, *[None] * 4]
    assert [number(value) for value in (math.nan, math.inf, "-inf", "nan", "1e999")] == [None] * 5
