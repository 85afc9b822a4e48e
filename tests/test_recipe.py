"""Recipes through the command line: stages feed each other, are skipped, resumed, refused and compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from contracts.training import differences

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import load_checkpoint
from lit_compress.recipe import load_recipe

PRUNE = {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5}}


@pytest.fixture(scope="session")
def content(tiny_model, tiny_data) -> dict:
    """Two stages: a teacher, and a pruned student that starts from it."""
    data = {
        "class_path": "TextClassification",
        "init_args": {
            "train_file": str(tiny_data / "train.tsv"),
            "val_file": str(tiny_data / "val.tsv"),
            "text_columns": ["sentence"],
            "batch_size": 16,
            "max_length": 16,
        },
    }
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    student = {"pretrained": "stage:teacher", "teacher": "stage:teacher"}
    return {
        "stages": {
            "teacher": {
                "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(tiny_model)}},
                "data": data,
                "trainer": trainer,
            },
            "student": {
                "config": ["prune.yaml"],
                "model": {"class_path": "LitStudent", "init_args": student},
                "data": data,
                "trainer": trainer,
            },
        }
    }


@pytest.fixture
def folder(tmp_path, content, monkeypatch) -> Path:
    """The working folder, with recipe.yaml and the fragment that it composes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"run": "out", **content}, sort_keys=False))
    (tmp_path / "prune.yaml").write_text(yaml.safe_dump({"compression": [PRUNE]}))
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, content) -> Path:
    """A finished recipe, for the tests that only look."""
    folder = tmp_path_factory.mktemp("finished-recipe")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"run": str(folder / "out"), **content}, sort_keys=False))
    (folder / "prune.yaml").write_text(yaml.safe_dump({"compression": [PRUNE]}))
    main(["recipe", str(folder / "recipe.yaml")])
    return folder


def edit(folder: Path, change) -> None:
    content = yaml.safe_load((folder / "recipe.yaml").read_text())
    change(content)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_each_stage_is_a_run_and_the_student_starts_from_the_teacher(finished):
    for stage in ("teacher", "student"):
        assert (finished / "out" / stage / "model" / "model.safetensors").is_file()
    config = yaml.safe_load((finished / "out/student/config.yaml").read_text())
    assert config["model"]["init_args"]["teacher"] == str(finished / "out/teacher/model")
    manifest = json.loads((finished / "out/student/model/compression.json").read_text())
    assert {entry["sparsity"] for entry in manifest["linears"].values()} == {0.5}


def test_the_comparison_has_a_row_for_each_stage(finished):
    results = json.loads((finished / "out/report.json").read_text())
    assert list(results) == ["teacher", "student"]
    assert list(results["student"]["models"]) == ["dense", "compressed"]
    text = (finished / "out/report.md").read_text()
    accuracy = results["student"]["models"]["compressed"]["accuracy"]["accuracy"]
    row = next(line for line in text.splitlines() if line.startswith("| student"))
    assert f"{accuracy:.4f}" in row
    assert "50.0%" in row


def test_finished_stages_are_not_trained_again(finished, capfd):
    models = [finished / "out" / stage / "model/model.safetensors" for stage in ("teacher", "student")]
    before = [path.stat().st_mtime_ns for path in models]
    main(["recipe", str(finished / "recipe.yaml")])
    assert [path.stat().st_mtime_ns for path in models] == before
    assert "student (finished)" in capfd.readouterr().out


def test_other_settings_for_a_finished_stage_are_refused(finished):
    with pytest.raises(SystemExit, match="stage 'teacher'.*made with other settings.*--run"):
        main(["recipe", str(finished / "recipe.yaml"), "--teacher.trainer.max_epochs", "2"])


def test_dry_run_prints_the_plan_and_does_nothing(folder, capsys):
    main(["recipe", "recipe.yaml", "--dry-run", "--student.trainer.max_epochs", "7"])
    text = capsys.readouterr().out
    assert "lit_compress fit --config out/stages/teacher.yaml\n" in text
    assert (
        "lit_compress fit --config prune.yaml --config out/stages/student.yaml --trainer.max_epochs 7" in text
    )
    assert "out/teacher/model" in text
    assert not (folder / "out").exists()


def test_a_stage_alone(folder):
    main(["recipe", "recipe.yaml", "--only", "teacher"])
    assert (folder / "out/teacher/model").is_dir()
    assert not (folder / "out/student").exists()
    # And by hand, from the file that the recipe keeps for it.
    main(["fit", "--config", "out/stages/teacher.yaml", "--run", "by_hand"])
    twins = [load_checkpoint(folder / run / "checkpoints/last.ckpt") for run in ("out/teacher", "by_hand")]
    assert differences(twins[0]["state_dict"], twins[1]["state_dict"]) == []


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_recipe_goes_on_bit_for_bit(folder, finished):
    slow = ["--student.checkpoint_every", "1"]
    command = [sys.executable, "-m", "lit_compress", "recipe", "recipe.yaml", *slow]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = folder / "out/student/checkpoints/last.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "out/student/model").exists()
    main(["recipe", "recipe.yaml", *slow])
    expected, got = (load_checkpoint(f / "out/student/checkpoints/last.ckpt") for f in (finished, folder))
    for part in ("state_dict", "optimizer_states"):
        assert differences(expected[part], got[part]) == []


def test_a_failing_stage_stops_the_recipe(folder):
    with pytest.raises(SystemExit, match="stage 'teacher' ended with exit status 1"):
        main(["recipe", "recipe.yaml", "--teacher.data.train_file", "nowhere.tsv"])
    assert not (folder / "out/student").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("stages"), "has no `stages`"),
        (lambda c: c.update(stages=[]), "has no `stages`"),
        (lambda c: c.update(stage={}), "unknown key 'stage'"),
        (lambda c: c["stages"].update({"a/b": {}}), "'a/b'.*cannot name a stage"),
        (lambda c: c["stages"].update(third="x"), "stage 'third'.*settings of a fit"),
        (lambda c: c["stages"]["student"].update(config=["no.yaml"]), "stages.student.config: .*no.yaml.*not exist"),
        (
            lambda c: c["stages"]["student"]["model"]["init_args"].update(teacher="stage:later"),
            "stage 'student' reads 'stage:later', which is no earlier stage; earlier are teacher",
        ),
    ],
)
def test_wrong_recipes(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe("recipe.yaml")
    assert "\n" not in str(caught.value)


def test_no_such_recipe(folder):
    with pytest.raises(SystemExit, match=r"nowhere\.yaml.*cannot be read"):
        main(["recipe", "nowhere.yaml"])


def test_no_yaml(folder):
    (folder / "recipe.yaml").write_text("stages: [")
    with pytest.raises(UserError, match="is no YAML"):
        load_recipe("recipe.yaml")


def test_no_such_stage(folder):
    with pytest.raises(SystemExit, match="--only: 'teachr'.*teacher, student"):
        main(["recipe", "recipe.yaml", "--only", "teachr"])
