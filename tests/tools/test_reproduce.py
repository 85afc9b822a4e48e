"""The plan of reproduction: every recipe on every data set resolves, and the changes it makes arrive."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import lit_compress.data
from lit_compress.data.options import TextOptions
from lit_compress.recipe import load_recipe
from tools import reproduce

PLAN = yaml.safe_load(reproduce.PLAN.read_text())
PAIRS = [(name, dataset) for name, entry in PLAN["recipes"].items() for dataset in entry["data"]]


@pytest.mark.parametrize(("name", "dataset"), PAIRS)
def test_every_recipe_resolves_on_every_data_set(name, dataset, tmp_path):
    stages = reproduce.stages_of(PLAN, name, dataset)
    assert stages
    places = {stage: reproduce._place(stage, settings, name, PLAN, dataset) for stage, settings in stages.items()}
    made: dict[str, str] = {}
    for place in dict.fromkeys(places.values()):
        group = {stage: stages[stage] for stage in stages if places[stage] == place}
        file = tmp_path / "recipe.yaml"
        file.write_text(
            yaml.safe_dump({"run": str(tmp_path), "stages": reproduce._replaced(group, made)}, sort_keys=False)
        )
        load_recipe(file)
        made |= {f"stage:{stage}": str(tmp_path / stage) for stage in group}


@pytest.mark.parametrize("dataset", PLAN["data"])
def test_every_option_of_a_data_set_exists(dataset):
    given = PLAN["data"][dataset]["data"]
    own = inspect.signature(getattr(lit_compress.data, given["class_path"])).parameters
    assert set(given["init_args"]) <= {*own, *(field.name for field in fields(TextOptions))}


def test_the_dense_model_is_shared_by_all_recipes_of_a_data_set():
    dense = [reproduce.stages_of(PLAN, name, data)["teacher"] for name, data in PAIRS if data == "mrpc"]
    assert len(dense) > 3
    assert all(settings["trainer"] == dense[0]["trainer"] for settings in dense)
    assert all(settings["data"] == dense[0]["data"] for settings in dense)


def test_masked_words_are_learned_once_for_all_tasks():
    tasks = [data for name, data in PAIRS if name == "sparse_bert"]
    prunes = [reproduce.stages_of(PLAN, "sparse_bert", data)["prune"] for data in tasks]
    assert all(settings == prunes[0] for settings in prunes)
    places = {reproduce._place("prune", prunes[0], "sparse_bert", PLAN, data) for data in tasks}
    assert places == {Path("wikitext2/sparse_bert")}


def plan(changes):
    recipe = "configs/recipes/poor_mans_bert/small.yaml"
    return {"data": {"mine": {"data": {"class_path": "TextClassification"}}},
            "recipes": {"layers": {"recipe": recipe, "stages": {"top": {"trainer": {"max_epochs": 7}}},
                                   "data": {"mine": changes}}}}  # fmt: skip


def test_changes_of_a_data_set_come_after_those_of_the_recipe():
    stages = reproduce.stages_of(plan({"top": {"trainer": {"precision": 64}}, "half": None}), "layers", "mine")
    assert stages["top"]["trainer"] == {"max_epochs": 7, "precision": 64}
    assert stages["top"]["data"] == {"class_path": "TextClassification"}
    assert "half" not in stages


def test_a_change_of_a_stage_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        reproduce.stages_of(plan({"topmost": {"trainer": {"max_epochs": 1}}}), "layers", "mine")


def test_words_are_replaced_at_any_depth_and_only_where_they_are():
    settings = {"a": ["data:x/{seed}", {"b": "stage:one"}], "c": "stage:two", "d": 3}
    words = {"data:": "/folder/", "{seed}": "seed1", "stage:one": "/model"}
    assert reproduce._replaced(settings, words) == {
        "a": ["/folder/x/seed1", {"b": "/model"}],
        "c": "stage:two",
        "d": 3,
    }


@pytest.mark.parametrize(
    ("data", "metric", "value", "dense", "cells"),
    [
        ("TextClassification", "accuracy", 0.85, 0.9, ["0.8500", "0.9000", "94.4%", "5.00"]),
        ("QuestionAnswering", "exact_match", 60.0, 64.0, ["60.0000", "64.0000", "93.8%", "4.00"]),
        ("MaskedLanguageModeling", "perplexity", 12.0, 10.0, ["12.0000", "10.0000", "", ""]),
    ],
)
def test_points_are_those_of_the_metric(data, metric, value, dense, cells):
    line = {"value": value, "dense": dense, "encoder_sparsity": 0, "encoder_compression": 1, "model_compression": 1}
    line |= {"metric": metric, "parameters": 10, "speedup_batch_1": 1, "seed": 42, "command": "c", "machine": "m"}
    plan = {"data": {"b": {"data": {"class_path": data}}}, "recipes": {"a": {"title": "A", "claim": "b"}}}
    table = reproduce._table({("a", "b", "c"): [{name: str(given) for name, given in line.items()}]}, plan)
    row = next(text for text in table.splitlines() if text.startswith("| b |"))
    assert [cell.strip() for cell in row.split("|")][4:8] == cells
