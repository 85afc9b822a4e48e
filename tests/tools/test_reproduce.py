"""The plan of reproduction: every recipe on every data set resolves, and the changes it makes arrive."""

import gzip
import inspect
import json
import re
import signal
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from matplotlib import pyplot

import lit_compress.data
from lit_compress.data.options import TextOptions
from lit_compress.errors import UserError
from lit_compress.recipe import load_recipe
from tools import reproduce, reproduce_jobs, reproduce_plan, reproduce_table, reproduce_time
from tools.bench.accuracy_over_compression import PANELS, accuracy_over_compression, ours, papers
from tools.bench.accuracy_over_speed import Point, accuracy_over_speed, draw, points_of
from tools.family import family_command, family_rows
from tools.pubmedqa import write_pubmedqa

PLANS = {model: reproduce_plan.plan_of(model) for model in ("minilm", "mpnet")}
PLAN = PLANS["minilm"]
PAIRS = [(name, dataset) for name, entry in PLAN["recipes"].items() for dataset in entry["data"]]
ALL = [
    (model, name, dataset)
    for model, plan in PLANS.items()
    for name, entry in plan["recipes"].items()
    for dataset in entry["data"]
]


def settings_of(model, tmp_path, **options):
    folders = {"data": Path("sets"), "assets": Path("assets"), "runs": tmp_path / "runs"}
    return reproduce_jobs.Settings(**({"plan": PLANS[model], "model": model} | folders | options))


@pytest.mark.parametrize(("model", "name", "dataset"), ALL)
def test_every_recipe_resolves_on_every_data_set(model, name, dataset, tmp_path):
    jobs = reproduce_jobs.left_of(settings_of(model, tmp_path), name, dataset, seed=-1)
    assert jobs
    for job in jobs:
        if job.file is not None:
            stage = load_recipe(job.file)[job.stage]  # refuses what reads a stage that is not there
            assert stage.settings["seed_everything"] == -1
            text = yaml.safe_dump(stage.settings)
            assert "stage:" not in text
            assert not any(word in text for word in ("{seed}", "runs:w", "data:g", "assets:", "made:"))
            if model != "minilm":
                assert not any(word in text for word in reproduce_jobs.PRETRAINED)


@pytest.mark.parametrize("dataset", PLAN["data"])
def test_every_option_of_a_data_set_exists(dataset):
    given = PLAN["data"][dataset]["data"]
    own = inspect.signature(getattr(lit_compress.data, given["class_path"])).parameters
    assert set(given["init_args"]) <= {*own, *(field.name for field in fields(TextOptions))}


def test_the_dense_model_is_shared_by_all_recipes_of_a_data_set():
    dense = [reproduce_plan.stages_of(PLAN, name, data)["teacher"] for name, data in PAIRS if data == "mrpc"]
    assert len(dense) > 3
    assert all(settings["trainer"] == dense[0]["trainer"] for settings in dense)
    assert all(settings["data"] == dense[0]["data"] for settings in dense)


def test_masked_words_are_learned_once_for_all_tasks():
    tasks = [data for name, data in PAIRS if name == "sparse_bert"]
    prunes = [reproduce_plan.stages_of(PLAN, "sparse_bert", data)["prune"] for data in tasks]
    assert all(settings == prunes[0] for settings in prunes)
    places = {reproduce_plan.place_of("prune", prunes[0], "sparse_bert", PLAN, data) for data in tasks}
    assert places == {Path("wikitext2/sparse_bert")}


def plan(changes):
    recipe = "configs/recipes/poor_mans_bert/small.yaml"
    return {"data": {"mine": {"data": {"class_path": "TextClassification", "init_args": {"max_length": 8}}}},
            "recipes": {"layers": {"recipe": recipe, "stages": {"top": {"trainer": {"max_epochs": 7}}},
                                   "data": {"mine": changes}}}}  # fmt: skip


def test_changes_of_a_data_set_come_after_those_of_the_recipe():
    stages = reproduce_plan.stages_of(plan({"top": {"trainer": {"precision": 64}}, "half": None}), "layers", "mine")
    assert stages["top"]["trainer"] == {"max_epochs": 7, "precision": 64}
    assert stages["top"]["data"] == {"class_path": "TextClassification", "init_args": {"max_length": 8}}
    assert "half" not in stages


def test_a_change_of_a_stage_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        reproduce_plan.stages_of(plan({"topmost": {"trainer": {"max_epochs": 1}}}), "layers", "mine")


def test_words_are_replaced_at_any_depth_and_only_where_they_are():
    settings = {"a": ["data:x/{seed}", {"b": "stage:one"}], "c": "stage:two", "d": 3}
    words = {"data:": "/folder/", "{seed}": "seed1", "stage:one": "/model"}
    assert reproduce_plan.replaced(settings, words) == {
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
    line |= {
        "metric": metric,
        "parameters": 10,
        "majority": "",
        "speedup_batch_1": 1,
        "seed": 42,
        "command": "c",
        "machine": "m",
    }
    plan = {"data": {"b": {"data": {"class_path": data}}}, "recipes": {"a": {"title": "A", "claim": "b"}}}
    table = reproduce_table._table({("a", "b", "c"): [{name: str(given) for name, given in line.items()}]}, plan)
    row = next(text for text in table.splitlines() if text.startswith("| b |"))
    assert [cell.strip() for cell in row.split("|")][4:8] == cells


def test_a_stage_can_be_like_another():
    changes = {"other": {"from": "top", "trainer": {"max_epochs": 5}}, "top": None}
    stages = reproduce_plan.stages_of(plan(changes), "layers", "mine")
    assert "top" not in stages
    assert stages["other"]["trainer"]["max_epochs"] == 5
    assert stages["other"]["compression"][0]["class_path"] == "LayerDropping"


def test_null_removes_a_setting():
    stages = reproduce_plan.stages_of(PLAN, "ablations", "stsb")
    assert "distillation" not in stages["labels_alone"]["model"]["init_args"]
    assert set(stages["hidden_alone"]["model"]["init_args"]["distillation"]) == {"hidden"}
    assert set(stages["logits_and_hidden"]["model"]["init_args"]["distillation"]) == {"kd", "hidden"}


def test_rates_are_lowered_but_not_those_of_the_dense_model_or_of_scores():
    dense = [PLANS[model] for model in PLANS]
    (_, own), (_, theirs) = [
        (plan, reproduce_plan.stages_of(plan, "movement", "mrpc")["movement"]["model"]["init_args"]["optimization"])
        for plan in dense
    ]
    assert theirs["learning_rate"] == pytest.approx(own["learning_rate"] * 0.5)
    assert theirs["score_learning_rate"] == own["score_learning_rate"]
    teacher = reproduce_plan.stages_of(PLANS["mpnet"], "movement", "mrpc")["teacher"]
    assert teacher["model"]["init_args"]["optimization"]["learning_rate"] == 3e-5


def test_rosita_has_augmented_texts():
    stages = reproduce_plan.stages_of(PLANS["mpnet"], "rosita_s4", "rte")
    augmented = {name for name, given in stages.items() if "augmentation" in given["data"]["init_args"]}
    assert augmented == {"full", "depth", "width"}
    assert stages["full"]["data"]["init_args"]["augmentation"]["init_args"]["copies"] == 3


@pytest.mark.parametrize(("model", "name"), [("mpnet", "rosita_s3"), ("mpnet", "prune_ofa"), ("minilm", "prune_ofa")])
def test_what_is_needed_of_another_recipe_comes_first(model, name, tmp_path):
    jobs = reproduce_jobs.left_of(settings_of(model, tmp_path), name, "rte", seed=-1)
    assert (jobs[0].recipe, jobs[0].data, jobs[0].stage) == ("sparse_bert", "wikitext2", "mlm")
    assert {job.recipe for job in jobs[1:]} == {name}


def test_every_run_that_another_recipe_names_is_one_that_it_needs():
    for plan in PLANS.values():
        for entry in plan["recipes"].values():
            named = "runs:wikitext2/{seed}/sparse_bert" in yaml.safe_dump(entry)
            if named or re.search(r"rosita/s\d", entry["recipe"]):
                assert entry["needs"]["recipe"] == "sparse_bert"


def test_a_model_without_a_plan_is_one_line():
    with pytest.raises(SystemExit, match=r"--model: 'gpt' has no plan reproduce_gpt\.yaml"):
        reproduce_plan.plan_of("gpt")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table, and recipes that are done at once; the stages that were trained."""
    trained = []

    def train(stage):
        trained.append(stage.name)
        if stage.name == "broken":
            raise UserError("it broke")
        (stage.folder / "model").mkdir(parents=True)
        (stage.folder / "model" / "config.json").write_text("{}")

    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.csv")

    def measure(run, dense, batch_sizes):
        folder = Path(run) / "report"
        folder.mkdir()
        times = {str(batch): 4.0 / batch for batch in batch_sizes}
        models = {name: entry | {"latency_ms": times} for name, entry in REPORT["models"].items()}
        (folder / "report.json").write_text(json.dumps(REPORT | {"models": models}))

    monkeypatch.setattr(reproduce, "run_stage", train)
    monkeypatch.setattr(reproduce, "report", measure)
    monkeypatch.setattr(reproduce, "run_config", lambda run, data: {"model": {"init_args": {}}})
    monkeypatch.setattr(
        reproduce,
        "served",
        lambda run, dense, metric, tokens: {"int8_value": 0.6, "int8_speedup": 2.5, "int8_bytes": 9},
    )
    return SimpleNamespace(trained=trained, path=tmp_path / "results.csv")


SIZES = {
    part: {"dense_bytes": 80, "compressed_bytes": 20, "parameters": 10, "nonzeros": 5} for part in ("encoder", "model")
}
REPORT = {
    "models": {
        "dense": {"accuracy": {"accuracy": 0.8}, "size": SIZES},
        "compressed": {"accuracy": {"accuracy": 0.6}, "size": SIZES},
    },
    "machine": {"device": reproduce_time.machine()["device"], "threads": "1 of 2", "torch": "2", "processor": "avx2"},
    "majority": {"answer": "1", "share": 0.65},
    "comparison": {"metrics": {"accuracy": {"differences": {"compressed": {"low": -0.25, "high": -0.15}}}}},
    "lower_is_better": [],
}


def tiny_plan():
    made = plan({"top": {"trainer": {"max_epochs": 1}}, "half": None, "top_distilled": None, "half_distilled": None})
    made["data"]["mine"]["data"]["init_args"] |= {"train_file": "data:a.tsv", "limit": 500}
    made["recipes"] = {
        "dense": {"recipe": made["recipes"]["layers"]["recipe"], "title": "D", "claim": "c", "data": {"mine": {}}}
    } | made["recipes"]
    made["recipes"]["dense"]["stages"] = dict.fromkeys(("top", "half", "top_distilled", "half_distilled"))
    return made


def run(tmp_path, made, monkeypatch, **options):
    monkeypatch.setattr(reproduce, "plan_of", lambda model: made)
    reproduce.main(Path("sets"), runs=tmp_path / "runs", table=False, **options)


def test_a_row_is_written_for_each_stage_once(table, tmp_path, monkeypatch):
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[1, 2])
    assert table.trained == ["teacher", "top"] * 2
    rows = reproduce_table.read_rows(table.path)
    assert [(row["recipe"], row["stage"], row["seed"]) for row in rows] == [
        ("dense", "teacher", "1"),
        ("dense", "teacher", "2"),
        ("layers", "top", "1"),
        ("layers", "top", "2"),
    ]
    assert {(row["model"], row["runtime"], row["majority"], row["limit"]) for row in rows} == {
        ("minilm", "eager", "0.65", "")
    }
    assert all(row["minutes"] and row["device"] and row["instructions"] == "avx2" for row in rows)
    assert all(row["speedup_batch_1"] and row["speedup_batch_32"] for row in rows)
    before = len(table.trained)
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[1, 2])
    assert len(table.trained) == before


def test_a_loss_over_seeds_has_the_spread_of_its_seeds_and_their_command(table, tmp_path, monkeypatch):
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[1, 2])
    rows = reproduce_table.read_rows(table.path)
    for row, dense, value in zip(
        [row for row in rows if row["recipe"] == "layers"], (0.9, 0.8), (0.85, 0.79), strict=True
    ):
        row |= {"dense": str(dense), "value": str(value)}
    groups = {("layers", "mine", "top"): [row for row in rows if row["recipe"] == "layers"]}
    plan = tiny_plan()
    for entry in plan["recipes"].values():
        entry |= {"title": "a title", "claim": "a claim"}
    text = reproduce_table._table(groups, plan)
    assert "| 3.00 ± 2.83 |" in text
    assert "--seeds '[1, 2]'` on" in text


def test_cuts_are_runs_and_rows_of_their_own(table, tmp_path, monkeypatch):
    run(tmp_path, tiny_plan(), monkeypatch)
    run(tmp_path, tiny_plan(), monkeypatch, limit=32, max_steps=4, gpu=True)
    rows = reproduce_table.read_rows(table.path)
    assert [(row["recipe"], row["limit"], row["max_steps"]) for row in rows] == [
        ("dense", "", ""),
        ("dense", "32", "4"),
        ("layers", "", ""),
        ("layers", "32", "4"),
    ]
    assert "--limit 32 --max_steps 4 --gpu true" in rows[1]["command"]
    stage = load_recipe(tmp_path / "runs" / "rows32-steps4" / "mine" / "seed42" / "layers.yaml")["top"]
    assert stage.settings["data"]["init_args"]["limit"] == 32
    assert stage.settings["trainer"] == {
        "max_epochs": 1,
        "max_steps": 4,
        "accelerator": "gpu",
        "devices": 1,
        "precision": "bf16-mixed",
    }


def test_what_was_trained_on_a_busy_machine_is_measured_later(table, tmp_path, monkeypatch):
    run(tmp_path, tiny_plan(), monkeypatch, measure=False)
    assert table.trained == ["teacher", "top"]
    assert reproduce_table.read_rows(table.path) == []
    run(tmp_path, tiny_plan(), monkeypatch)
    rows = reproduce_table.read_rows(table.path)
    assert [(row["stage"], row["difference_low"]) for row in rows] == [("teacher", "-0.25"), ("top", "-0.25")]


def test_chosen_stages_bring_those_that_they_begin_with_and_no_other(table, tmp_path, monkeypatch):
    made = tiny_plan()
    own = {"model": {"init_args": {"pretrained": "stage:top"}}}
    made["recipes"]["layers"]["stages"] |= {"other": {"from": "top"}, "last": {"from": "top"} | own}
    run(tmp_path, made, monkeypatch, only=["layers"], stages=["last"], bf16=True)
    assert table.trained == ["teacher", "top", "last"]
    rows = reproduce_table.read_rows(table.path)
    assert [row["stage"] for row in rows] == ["top", "last"]
    assert "--bf16 true" in rows[0]["command"]
    assert load_recipe(tmp_path / "runs" / "mine" / "seed42" / "layers.yaml")["last"].settings["trainer"] == {
        "max_epochs": 7,
        "precision": "bf16-mixed",
    }


def test_a_plan_says_whose_speed_is_measured_and_what_is_not_measured_is_trained_alone(table, tmp_path, monkeypatch):
    run(tmp_path, tiny_plan() | {"batch_sizes": [1]}, monkeypatch, only=["layers"])
    (row,) = reproduce_table.read_rows(table.path)
    assert table.trained == ["teacher", "top"]
    assert (row["stage"], row["speedup_batch_1"], row["speedup_batch_32"]) == ("top", "1.0", "")
    assert not (tmp_path / "runs" / "mine" / "seed42" / "teacher" / "report").exists()


def test_a_plan_says_how_long_what_was_never_timed_takes(table, tmp_path, monkeypatch, capsys):
    """By the tokens that it reads, at the pace of what was timed: twice the epochs, twice the minutes."""
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "good\t1\nbad\t0\n" * 20)
    monkeypatch.chdir(tmp_path)
    made = tiny_plan()
    made["data"]["mine"]["data"]["init_args"] |= {"train_file": "data:../a.tsv", "val_file": "data:../a.tsv"}
    made["data"]["mine"]["teacher"] = {"trainer": {"max_epochs": 1}}
    made["recipes"]["layers"]["stages"]["longer"] = {"from": "top", "trainer": {"max_epochs": 2}}
    (tmp_path / "sets").mkdir()
    run(tmp_path, made, monkeypatch, only=["dense"])
    (row,) = reproduce_table.read_rows(table.path)
    reproduce_table.add_rows(table.path, [row | {"minutes": "30.0"}])
    run(tmp_path, made, monkeypatch, seeds=[42, 43], plan=True)
    lines = capsys.readouterr().out.splitlines()
    assert "dense mine teacher seed 43: 30.0 minutes" in lines
    assert "layers mine top seed 42: about 30.0 minutes" in lines
    assert "layers mine longer seed 43: about 60.0 minutes" in lines
    assert lines[-1].startswith("5 left: 5 take 3.5 hours")
    (tmp_path / "a.tsv").unlink()
    reproduce_time._size.cache_clear()
    run(tmp_path, made, monkeypatch, seeds=[42, 43], plan=True)
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 are unknown")


def test_what_fails_stops_nothing_else(table, tmp_path, monkeypatch, capsys):
    made = tiny_plan()
    made["recipes"]["layers"]["stages"] = {"broken": {"from": "top"}, "last": {"from": "top"}}
    with pytest.raises(SystemExit, match="1 of 4 failed"):
        run(tmp_path, made, monkeypatch)
    assert "failed: layers mine broken seed 42: it broke" in capsys.readouterr().err
    assert [row["stage"] for row in reproduce_table.read_rows(table.path)] == ["teacher", "top", "last"]


def test_what_takes_longer_than_there_is_time_is_not_begun(table, tmp_path, monkeypatch, capsys):
    run(tmp_path, tiny_plan(), monkeypatch)
    rows = [row | {"minutes": "50" if row["stage"] == "top" else "1"} for row in reproduce_table.read_rows(table.path)]
    reproduce_table.add_rows(table.path, rows)
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[7], plan=True)
    assert capsys.readouterr().out.splitlines()[-3:-1] == [
        "dense mine teacher seed 7: 1.0 minutes",
        "layers mine top seed 7: 50.0 minutes",
    ]
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[7], minutes=10)
    assert "not begun, 10 minutes are left: layers mine top seed 7 (50 minutes)" in capsys.readouterr().out
    assert [row["stage"] for row in reproduce_table.read_rows(table.path) if row["seed"] == "7"] == ["teacher"]
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[7], plan=True)
    assert "1 left: 1 take 0.8 hours" in capsys.readouterr().out


def test_rows_of_another_device_say_nothing(table, tmp_path, monkeypatch, capsys):
    run(tmp_path, tiny_plan(), monkeypatch)
    monkeypatch.setattr(reproduce_time, "machine", lambda: {"device": "another"})
    run(tmp_path, tiny_plan(), monkeypatch, seeds=[7], plan=True)
    assert "2 left: 0 take 0.0 hours by rows of another, 2 are unknown" in capsys.readouterr().out


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["shell", "background"])
def test_what_runs_is_interrupted_when_the_time_is_over(handler, table, tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, handler)
    try:
        _interrupted(table, tmp_path, monkeypatch, capsys)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_stage", lambda _: time.sleep(60))
    begun = time.monotonic()
    run(tmp_path, tiny_plan(), monkeypatch, minutes=1 / 60)
    assert time.monotonic() - begun < 30
    out = capsys.readouterr().out
    assert "the same call goes on with it: dense mine teacher seed 42" in out
    assert "not begun, 0 minutes are left: layers mine top seed 42 (unknown)" in out
    assert not table.path.exists()


@pytest.mark.parametrize(
    ("metric", "majority", "expected"),
    [
        ("accuracy", {"answer": "1", "share": 0.654321}, 0.65432),
        ("accuracy", None, ""),
        ("matthews", {"answer": "1", "share": 0.6}, 0.0),
        ("perplexity", None, ""),
    ],
)
def test_what_one_answer_to_everything_scores(metric, majority, expected):
    result = {"majority": majority, "lower_is_better": ["perplexity"]}
    assert reproduce.majority_of(metric, result) == expected


def test_a_value_that_one_answer_reaches_is_marked():
    lines = [{"value": value, "majority": "0.68382"} for value in ("0.68", "0.687")]
    assert reproduce_table._value(lines) == "0.6835 ± 0.0049, **no better than one answer to all, 0.6838**"
    assert reproduce_table._value([{"value": "0.7", "majority": "0.68"}]) == "0.7000"
    assert reproduce_table._value([{"value": "0.1", "majority": ""}]) == "0.1000"


FAMILY = {"speedup": [4, 8], "target": "onnx-int8", "shape": "1x128", "members": ["int8", "8x"]}


def test_the_command_of_a_family():
    data = {"train_file": "a.tsv", "text_columns": ["a", "b"], "max_length": 64, "val_fraction": 0.2, "limit": 9}
    assert family_command(FAMILY, "TextClassification", data, Path("m"), Path("r"), 3) == [
        *("compress", "--model=m", "--train=a.tsv", "--run=r", "--task=classification", '--text_columns=["a", "b"]'),
        *("--speedup=[4, 8]", "--target=onnx-int8", "--shape=1x128"),
        *('--data={"max_length": 64, "val_fraction": 0.2, "limit": 9}', "--seed=3"),
    ]
    words = family_command(FAMILY, "TokenClassification", {"train_file": "a", "val_file": "b"}, Path("m"), Path("r"), 3)
    assert "--val=b" in words
    assert "--task=token-classification" in words


def test_the_rows_of_a_family(tmp_path):
    members = [
        {"name": name, "score": score, "bytes": 10, "speedup": speedup}
        for name, score, speedup in (("int8", 0.9, 2.0), ("4x", 0.85, 4.1), ("8x", 0.8, 8.3))
    ]
    report = {"members": members, "score": "accuracy", "scores": {"dense": {"accuracy": 0.91}}, "target": "onnx-int8"}
    report |= {"machine": {"device": "d", "threads": "2"}, "shape": "1x128", "references": [{}, {"bytes": 40}]}
    differences = {"int8": {"low": -0.02, "high": 0.01}, "4x": {"low": None, "high": None}}
    members[2]["same_as"] = "4x"
    report["comparison"] = {"metrics": {"accuracy": {"differences": differences}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    first, second = family_rows(tmp_path / "report.json", FAMILY)
    assert (first["stage"], second["stage"]) == ("int8", "8x")
    assert (second["value"], second["dense"], second["model_compression"]) == (0.8, 0.91, 4)
    assert (second["int8_value"], second["int8_speedup"], second["int8_bytes"]) == (0.8, 8.3, 10)
    assert second["runtime"] == "onnx-int8"
    assert (first["difference_low"], first["difference_high"], second.get("difference_low")) == (-0.02, 0.01, None)
    with pytest.raises(KeyError):
        family_rows(tmp_path / "report.json", FAMILY | {"members": ["16x"]})


def test_a_family_is_made_of_the_dense_model_and_has_a_row_for_each_member(table, tmp_path, monkeypatch):
    made, called = tiny_plan(), []
    made["recipes"]["compress"] = made["recipes"]["dense"] | {"family": FAMILY}
    monkeypatch.setattr(reproduce, "_call", lambda command, what: called.append(command))
    rows = [{"stage": name, "metric": "accuracy", "value": 0.7, "runtime": "onnx-int8"} for name in ("int8", "8x")]
    monkeypatch.setattr(reproduce, "family_rows", lambda report, options: rows)
    for _ in range(2):
        run(tmp_path, made, monkeypatch)
    (command,) = called
    assert f"--model={tmp_path / 'runs' / 'mine' / 'seed42' / 'teacher' / 'model'}" in command
    assert "--train=sets/a.tsv" in command
    found = {row["stage"]: row for row in reproduce_table.read_rows(table.path) if row["recipe"] == "compress"}
    assert set(found) == {"int8", "8x"}
    assert found["8x"]["majority"] == "0.65"


def test_pubmedqa_is_divided_as_its_official_test_split_says(tmp_path):
    source = tmp_path / "biomed" / "pubmedqa"
    source.mkdir(parents=True)
    every = {
        str(n): {"QUESTION": f"q{n}", "CONTEXTS": ["a", "b"], "final_decision": answer}
        for n, answer in enumerate(("yes", "no", "maybe"))
    }
    with gzip.open(source / "ori_pqal.json.gz", "wt") as file:
        json.dump(every, file)
    (source / "test_ground_truth.json").write_text('{"1": "no"}')
    write_pubmedqa(tmp_path, tmp_path / "made")
    train, dev = (
        [json.loads(line) for line in (tmp_path / "made" / "pubmedqa" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "dev")
    )
    assert [row["label"] for row in train] == ["yes", "maybe"]
    assert dev == [{"question": "q1", "context": "a b", "label": "no"}]


def test_the_picture_has_a_point_for_each_stage_and_none_of_nothing(tmp_path):
    line = dict.fromkeys(reproduce_table.FIELDS, "") | {"model": "mpnet", "recipe": "a", "data": "b", "stage": "c"}
    line |= {"metric": "accuracy", "value": "0.7", "dense": "0.8", "int8_speedup": "2", "majority": "0.65"}
    lines = [
        *(line | {"seed": seed, "int8_value": value} for seed, value in (("1", "0.6"), ("2", "0.7"))),
        line | {"stage": "d", "int8_value": "0.72", "recipe": "f"},
        line | {"stage": "e", "int8_value": "10", "metric": "perplexity"},
        line | {"stage": "teacher", "value": "0.8", "int8_value": "0.8", "dense": "", "recipe": "dense"},
        line | {"stage": "older", "int8_speedup": ""},
        line | {"stage": "collapsed", "int8_value": "nan"},
    ]
    first, second, dense = points_of(lines)
    assert (first.method, first.speedup, first.kept, first.constant) == ("a", 2.0, pytest.approx(0.8125), True)
    assert (second.method, second.kept, second.constant) == ("f", pytest.approx(0.9), False)
    assert (dense.method, dense.kept) == ("dense", 1)
    results = tmp_path / "results.csv"
    elsewhere = lines[0] | {"seed": "3", "int8_value": "0.5", "int8_speedup": "1", "instructions": "avx2"}
    reproduce_table.add_rows(results, [row | {"seed": row["seed"] or "1"} for row in [elsewhere, *lines]])
    drawn = {point.stage: point for point in accuracy_over_speed(tmp_path / "out.png", "mpnet", results=results)}
    assert drawn["c"] == first  # of the processor that most rows are of
    assert len(accuracy_over_speed(tmp_path / "out.png", "mpnet", results=results)) == 3
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"has no row of 'mpnet' of other with a dense model"):
        accuracy_over_speed(tmp_path / "out.png", "mpnet", ["other"], results)


def test_labels_cover_no_other_label_no_point_and_no_legend(tmp_path, monkeypatch):
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    places = [
        (2.4, 0.99),
        (2.5, 1.0),
        (2.5, 0.98),
        (2.6, 0.99),
        (3.7, 1.0),
        (3.75, 1.0),
        (5.7, 1.002),
        (7.7, 1.0),
        (8.8, 0.98),
    ]
    points = [
        Point(
            method=f"m{index % 3}",
            stage=f"{index}: half the heads, 1/4 of the neurons",
            data="b",
            speedup=x,
            kept=y,
            constant=False,
        )
        for index, (x, y) in enumerate(places)
    ]
    draw(points, "title", tmp_path / "out.png", {})
    pyplot.gcf().draw_without_rendering()
    (axes,) = pyplot.gcf().axes
    boxes = [text.get_window_extent() for text in axes.texts]
    whole, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:index], legend])
        assert whole.x0 < box.x0 < box.x1 < whole.x1
        assert not any(box.contains(*axes.transData.transform((x, 100 * y))) for x, y in places)
    assert len(boxes) == len(points)


def test_ours_have_the_spread_of_the_seeds_or_the_interval_of_one():
    line = dict.fromkeys(reproduce_table.FIELDS, "") | {"model": "m", "recipe": "a", "data": "b", "stage": "c"}
    line |= {"metric": "accuracy", "dense": "0.8", "encoder_compression": "4"}
    seeds = [line | {"value": value} for value in ("0.7", "0.8")]
    one = line | {"stage": "d", "value": "0.8", "difference_low": "-0.08", "difference_high": "0.04"}
    first, second = ours([*seeds, one, line | {"recipe": "z", "value": "1"}], ["a"], "encoder")
    assert (first.compression, first.kept) == (4, pytest.approx(0.9375))
    assert first.high - first.kept == pytest.approx(0.0884, abs=1e-3)
    assert (second.low, second.high) == (pytest.approx(0.9), pytest.approx(1.05))
    assert [ours([one | {"majority": known}], ["a"], "encoder")[0].trivial for known in ("", "0.7", "0.8")] == [0, 0, 1]


def test_papers_say_what_was_verified(tmp_path):
    marks = papers(["rosita", "poor_mans_bert"])
    assert {verified for _, verified in marks} == {True, False}
    assert all(0.5 < mark.kept < 1.1 for mark, _ in marks)
    assert set().union(*(recipes for recipes, _ in PANELS.values())) <= {*PLAN["recipes"], *PLANS["mpnet"]["recipes"]}
    accuracy_over_compression(tmp_path / "papers.png")
    assert (tmp_path / "papers.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_leaves_empty_what_a_family_does_not_say(tmp_path):
    line = dict.fromkeys(reproduce_table.FIELDS, "") | {
        "recipe": "a",
        "data": "b",
        "stage": "8x (64 rows)",
        "seed": "1",
    }
    line |= {"metric": "accuracy", "value": "0.7", "dense": "0.8", "model_compression": "5", "speedup_batch_1": "8.3"}
    plan = {
        "data": {"b": {"data": {"class_path": "TextClassification"}}},
        "recipes": {"a": {"title": "A", "claim": "b"}},
    }
    row = next(
        t for t in reproduce_table._table({("a", "b", "8x"): [line]}, plan).splitlines() if t.startswith("| b |")
    )
    assert [cell.strip() for cell in row.split("|")][8:13] == ["", "", "", "5.0x", "8.30x"]


def test_speeds_of_two_processors_have_no_mean():
    line = dict.fromkeys(reproduce_table.FIELDS, "") | {"recipe": "a", "metric": "accuracy", "dense": "0.8"}
    with_vnni = {"instructions": "avx2 avx512_vnni avx512f", "int8_speedup": "5", "speedup_batch_1": "2"}
    without = {"instructions": "avx2", "int8_speedup": "3", "speedup_batch_1": "1"}
    lines = [
        line | {"seed": str(seed), "value": value, "int8_value": value} | where
        for seed, (value, where) in enumerate(
            [
                ("0.7", with_vnni),
                ("0.8", without),
                ("0.6", with_vnni | {"int8_speedup": "4"}),
                ("0.7", with_vnni | {"device": "a GPU"}),
            ]
        )
    ]
    plan = {
        "data": {"b": {"data": {"class_path": "TextClassification"}}},
        "recipes": {"a": {"title": "A", "claim": "b"}},
    }
    table = reproduce_table._table({("a", "b", "c"): lines}, plan).splitlines()
    header, row = (next(t for t in table if t.startswith(begin)) for begin in ("| data |", "| b |"))
    cells = dict(zip(*([cell.strip() for cell in each.split("|")] for each in (header, row)), strict=True))
    assert cells["value"].startswith("0.7000")
    assert (cells["int8"], cells["int8 speed"], cells["speed, eager"]) == ("0.7000", "4.50x", "2.00x")
    assert (cells["instructions"], cells["seed"]) == ("avx512_vnni", "0, 1, 2, 3")


def test_each_model_has_its_part_of_the_page_and_cuts_are_said(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.csv"
    minilm, mpnet = (f"<!-- {name}: begin -->old<!-- {name}: end -->" for name in ("reproduce", "reproduce mpnet"))
    page.write_text(f"a {minilm} b {mpnet} c")
    line = dict.fromkeys(reproduce_table.FIELDS, "") | {
        "recipe": "dense",
        "data": "rte",
        "stage": "teacher",
        "seed": "1",
    }
    line |= {"metric": "accuracy", "value": "0.7", "speedup_batch_1": "1", "model": "mpnet", "limit": "64"}
    reproduce_table.add_rows(results, [line])
    reproduce_table.write_table(results, page, PLANS["mpnet"], "mpnet")
    text = page.read_text()
    assert text.startswith("a <!-- reproduce: begin -->old<!-- reproduce: end --> b <!-- reproduce mpnet: begin -->")
    assert text.endswith("<!-- reproduce mpnet: end --> c")
    assert "| rte | teacher (64 rows) | accuracy | 0.7000 |" in text
