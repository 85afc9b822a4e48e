"""The page is whole, self-contained and safe; Markdown and pictures come from the same results."""

import copy
from html.parser import HTMLParser

import numpy as np
import pytest
from report.results import HOSTILE, IMAGE, MATH, NEW, results

from lit_compress.report.drawing import pixels, svg
from lit_compress.report.figures import FIGURES, figures
from lit_compress.report.html_page import page
from lit_compress.report.markdown import cell, markdown
from lit_compress.report.model_card import with_results
from lit_compress.report.sections import sections
from lit_compress.report.summary import highlights

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Elements(HTMLParser):
    """Every element of a page, and whether each is closed where it must be."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text):
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    return elements


def drawn(given):
    return {name: (described, svg(figure, name, described)) for name, described, figure in figures(given)}


@pytest.fixture(scope="module")
def whole():
    given = results()
    return parsed(page(given, drawn(given)))


def test_every_part_and_every_figure_is_there(whole):
    ids = {attributes.get("id") for _, attributes in whole.found}
    assert ids >= {part.name for part in sections(results())}
    assert ids >= {f"figure-{name}" for name in FIGURES}
    assert sum(tag == "svg" for tag, _ in whole.found) == len(FIGURES)


def test_nothing_is_loaded_and_nothing_runs(whole):
    for tag, attributes in whole.found:
        assert tag not in ("script", "iframe", "object", "embed", "img", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value.startswith(("#", "data:"))
    policy = next(attributes for tag, attributes in whole.found if attributes.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_hostile_names_are_shown_as_they_are(whole):
    for text in (HOSTILE, IMAGE, MATH, f"report --run '{HOSTILE}'"):
        assert text in whole.text


def test_hostile_names_in_markdown():
    text = markdown(results(), list(FIGURES))
    inside = text.split("Configuration:")[0]
    outside_code = "\n".join(inside.split("```")[::2])
    assert "<script" not in outside_code.replace(f"`lit_compress report --run '{HOSTILE}'`", "")
    assert "<img" not in outside_code
    # The text of a configuration cannot end the block that it stands in.
    assert text.count("\n````\n") == 2
    rows = [line for line in text.splitlines() if "{{ 7 * 7 }}" in line and line.startswith("|")]
    assert rows
    assert all(r"\|" in row for row in rows)


def test_ids_in_figures_do_not_meet(whole):
    ids = [attributes["id"] for _, attributes in whole.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_results_give_the_same_page():
    given = results()
    assert page(given, drawn(given)) == page(given, drawn(given))


def test_figures_in_colors_of_the_page():
    for _, text in drawn(results()).values():
        assert "var(--" in text
        assert "#1f2430" not in text


def test_pictures_have_content():
    for name, _, figure in figures(results()):
        image = pixels(figure)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3, name
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10, name


def alone():
    """Without a dense model."""
    given = results(calibration={}, changes=None, changed=None, dense=None, dense_layers=None)
    del given["models"]["dense"]
    for entries in (
        given["comparison"]["metrics"],
        *(part["metrics"] for kind in ("classes", "slices") for part in given["comparison"][kind].values()),
    ):
        for entry in entries.values():
            del entry["models"]["dense"]
            entry["differences"] = {}
    return given


def untouched():
    """A model that nothing was done to."""
    given = alone()
    given["models"] = {"model": given["models"]["compressed"]}
    for entry in given["comparison"]["metrics"].values():
        entry["models"] = {"model": entry["models"]["compressed"]}
    given["comparison"] |= {"classes": {}, "slices": {}}
    settings = given["settings"] | {"compression": []}
    return given | {
        "sparsity": {},
        "blocks": {},
        "settings": settings,
        "curves": None,
        "confusion": None,
        "exports": [],
    }


def older():
    """Of a version that did not keep these."""
    return {name: value for name, value in results().items() if name not in NEW}


def language_model():
    """Perplexity has no points, and there are no classes."""
    given = copy.deepcopy(results(task="masked_lm", labels=None, calibration={}, changes=None, confusion=None))
    metrics = {"perplexity": estimates_of_perplexity(), "accuracy": given["comparison"]["metrics"]["accuracy"]}
    given["comparison"] |= {"metrics": metrics, "classes": {}, "slices": {}, "unit": "sequences"}
    for model in given["models"].values():
        model["accuracy"] = {"perplexity": 12.5, "accuracy": 0.4}
    return given


def estimates_of_perplexity():
    numbers = {"value": 12.5, "low": 11.0, "high": 14.0}
    return {"models": {"dense": numbers, "compressed": numbers}, "differences": {"compressed": dict(numbers, low=-1.0)}}


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (alone, {"metrics", "parts", "calibration"}),
        (untouched, {"metrics", "parts", "calibration", "sparsity", "blocks", "curves", "confusion"}),
        (older, {"curves", "confusion"}),
        (language_model, {"parts", "calibration", "confusion"}),
    ],
)
def test_what_has_no_meaning_is_left_out(make, missing):
    given = make()
    figures_of = drawn(given)
    assert set(figures_of) == set(FIGURES) - missing
    text = parsed(page(given, drawn(given))).text
    assert "None" not in text
    assert "nan" not in text
    markdown(given, list(figures_of))


def test_layers_that_say_the_same_are_one_row(whole):
    assert "0 to 1" in whole.text
    assert "1 of 2" in whole.text
    assert "2 of 3 layers are left" in whole.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constant": {"compressed": HOSTILE}}, f"The compressed model predicts {HOSTILE!r} for all examples"),
        (
            {"constant": {"dense": "good"}},
            "The dense model predicts 'good' for all examples: it has learned nothing.",
        ),
        (
            {"majority": {"answer": "good", "share": 0.95}},
            "The compressed model is correct no more often than always predicting 'good'",
        ),
    ],
)
def test_models_that_do_not_look_are_named_first(changes, said):
    given = results(**changes)
    assert said in parsed(page(given, drawn(given))).text
    assert cell(said) in markdown(given)
    assert cell(said) in with_results("", given)


def test_f1_says_of_which_of_two_classes():
    given = results(labels=["bad", HOSTILE])
    said = parsed(page(given, drawn(given))).text
    assert f"f1 of {HOSTILE!r}" in said
    assert f"f1 of {HOSTILE!r}: loses between 1.0 and 3.0 points" in said
    assert "f1 of" not in parsed(page(results(), {})).text


def test_the_speed_is_that_of_dense_as_1():
    """Twice as fast is 2.00x, here as in compare, benchmark and formats."""
    assert ("speed, batch 1", "2.00x", "of dense: 12.0 → 6.0 ms, eager PyTorch") in highlights(results())


def test_few_rows_are_said():
    given = results()
    given["comparison"]["units"] = 60
    said = "Only 60 examples: fewer than 300 cannot tell a few points from chance"
    for text in (parsed(page(given, drawn(given))).text, markdown(given), with_results("", given)):
        assert said in text
        assert "no loss" not in text


def test_the_verdict_stands_first(whole):
    assert "Accuracy: loses between 1.0 and 3.0 points (95 % interval, paired on 400 examples)." in whole.text
