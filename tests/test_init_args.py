"""What an object was made with, as a configuration has it."""

import enum

import numpy as np
import pytest
from contracts.errors import error_of

from lit_compress import MagnitudePruning, TextClassification
from lit_compress.errors import UserError
from lit_compress.init_args import KeepsInitArgs, made_of, settings_of
from lit_compress.usage_errors import user_error


class Kind(enum.StrEnum):
    FIRST = "first"


class Count(enum.IntEnum):
    TWO = 2


class Named(MagnitudePruning):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        *((True, True), (None, None), (2, 2), (0.5, 0.5), ("a", "a")),
        *((np.float64(0.5), 0.5), (np.float32(0.5), 0.5), (np.int64(2), 2), (np.bool_(True), True)),
        *((np.str_("a"), "a"), (Kind.FIRST, "first"), (Count.TWO, 2)),
    ],
)
def test_a_value_is_what_yaml_has(value, plain):
    for found in (settings_of(value), *settings_of({value: [value]}), *settings_of({1: (value,)})[1]):
        assert found == plain
        assert type(found) is type(plain)


class Data(TextClassification):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def test_arguments_that_have_no_name_are_not_kept(tiny_teacher, tiny_data):
    assert settings_of(Named(sparsity=0.5))["init_args"] == {"sparsity": 0.5}
    with pytest.raises(TypeError, match=r"^Named was given arguments without a name"):
        settings_of(Named(0.5))
    file, options = str(tiny_data / "train.tsv"), {"tokenizer": str(tiny_teacher), "text_columns": ["sentence"]}
    assert settings_of(Data(train_file=file, **options))["init_args"]["text_columns"] == ["sentence"]
    with pytest.raises(TypeError, match=r"^Data was given arguments without a name"):
        settings_of(Data(file, **options))


def test_a_constructor_says_itself_what_is_wrong():
    class Made(KeepsInitArgs):
        def __init__(self, *rest: int, rate: float) -> None: ...

    with pytest.raises(TypeError, match="rate"):
        Made(1)  # type: ignore[call-arg]


class Faulty(KeepsInitArgs):
    def __init__(self, fault: str, rate: float = 0.5) -> None:
        if fault == "AttributeError":
            _ = None.rate  # type: ignore[attr-defined]
        raise {"KeyError": KeyError, "TypeError": TypeError, "UserError": UserError}[fault](f"{fault} of its own")


@pytest.mark.parametrize("fault", ["AttributeError", "KeyError", "TypeError"])
def test_a_fault_of_a_constructor_is_no_mistake_of_the_user(fault):
    settings = {"class_path": f"{__name__}.Faulty", "init_args": {"fault": fault}}
    with pytest.raises(Exception) as caught:  # noqa: PT011 (jsonargparse wraps some)
        made_of(settings, KeepsInitArgs, "model.term")
    assert user_error(caught.value, UserError) is None
    assert fault in (type(caught.value).__name__, type(caught.value.__cause__).__name__)


@pytest.mark.parametrize(
    ("init_args", "said"),
    [
        ({"fault": "UserError"}, "UserError of its own"),
        ({"fault": "UserError", "rte": 1}, "unknown option 'rte'; see --help"),
        ({"fault": "UserError", "rate": "much"}, "rate: "),
    ],
)
def test_settings_that_are_wrong_are_told_in_one_line(init_args, said):
    settings = {"class_path": f"{__name__}.Faulty", "init_args": init_args}
    line = error_of(made_of, settings, KeepsInitArgs, "model.term")
    assert line.startswith(f"model.term: '{__name__}.Faulty' cannot be made again; give term: {said}")
