import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_compress.errors import UserError
from lit_compress.migrate.sparseml_recipe import read_recipe

RECIPE = """
last: eval(first + 2)
first: 3
name: linear
training_modifiers:
  - !EpochRangeModifier
    end_epoch: eval(last)
  - !LearningRateFunctionModifier
    lr_func: eval(name)
    init_lr: 5e-5
pruning_modifiers:
  - !ConstantPruningModifier
"""


def listed(text, **variables):
    return [(m.stage, m.name, dict(m.options)) for m in read_recipe(text, variables).modifiers]


def test_variables_and_expressions():
    assert listed(RECIPE) == [
        ("", "EpochRangeModifier", {"end_epoch": 5}),
        ("", "LearningRateFunctionModifier", {"lr_func": "linear", "init_lr": "5e-5"}),
        ("", "ConstantPruningModifier", {}),
    ]


def test_a_variable_can_be_given():
    assert listed(RECIPE, first=10)[0][2] == {"end_epoch": 12}
    with pytest.raises(UserError, match="'second' is not a variable of the recipe"):
        read_recipe(RECIPE, {"second": 1})


def test_front_matter_of_a_card():
    card = f"---\n{RECIPE}---\n\n# A recipe\n\n- !NoModifier\n"
    assert listed(card) == listed(RECIPE)


def test_stages_see_the_variables_around_them_and_have_their_own():
    text = """
epochs: 4
dense_stage:
  rate: eval(epochs / 4)
  training_modifiers:
    - !SetLearningRateModifier
      learning_rate: eval(rate)
sparse_stage:
  epochs: 8
  training_modifiers:
    - !EpochRangeModifier
      end_epoch: eval(epochs)
"""
    assert listed(text) == [
        ("dense_stage", "SetLearningRateModifier", {"learning_rate": 1}),
        ("sparse_stage", "EpochRangeModifier", {"end_epoch": 8}),
    ]


def test_modifiers_without_tags():
    text = "stage:\n  pruning_modifiers:\n    MagnitudePruningModifier:\n      start: 0\n    Other:\n"
    assert listed(text) == [("stage", "MagnitudePruningModifier", {"start": 0}), ("stage", "Other", {})]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no modifiers"),
        ("- 1\n- 2", "no modifiers"),
        ("a: [", "not YAML"),
        ("modifiers: [3]", "not a modifier"),
        ("modifiers:\n  - !Name [1, 2]", "no options by name"),
        ("x: eval(y)\nmodifiers: []", "x: eval\\(y\\) needs a variable"),
        ("x: eval(y)\ny: eval(x)\nmodifiers: []", "needs itself"),
        ("modifiers:\n  - !Name\n    a: eval(b + 1)", "Name needs the variable 'b'"),
        ("modifiers:\n  - !Name\n    a: eval(import os)", "eval\\("),
        ("modifiers:\n  - !!python/object/apply:os.system ['true']", "not YAML|no options"),
        (BOMB + "modifiers: []", "more than"),
        ("modifiers: &m\n  - *m", "more than|not a modifier"),
        ("[" * 4000, "not YAML"),
    ],
)
def test_what_is_no_recipe_is_one_line(text, words):
    with pytest.raises(UserError, match=words) as caught:
        read_recipe(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="ab:-!&*[]{} \n'\"#|>eval()1.", max_size=80))
def test_any_text_is_a_recipe_or_an_error(text):
    with contextlib.suppress(UserError):
        read_recipe(f"modifiers:\n  - !Name\n    option: {text}")
