"""Recipes through the command line: stages feed each other, are skipped, resumed, refused and compared."""

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from contracts.training import data_config, differences
from processes import Python

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import load_checkpoint
from lit_compress.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("_stages_forked")

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
PRUNE = {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.5}}


@pytest.fixture(scope="session")
def content(tiny_model, tiny_data) -> dict:
    """Two stages: a teacher, and a pruned student that starts from it."""
    data = data_config(tiny_data)
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


def write_recipe(folder: Path, content: dict) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"run": "out", **content}, sort_keys=False))
    (folder / "prune.yaml").write_text(yaml.safe_dump({"compression": [PRUNE]}))
    return folder


@pytest.fixture
def folder(tmp_path, content, monkeypatch) -> Path:
    """The working folder, with recipe.yaml and the fragment that it composes."""
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, content)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, content) -> Path:
    folder = write_recipe(tmp_path_factory.mktemp("finished-recipe"), content)
    with contextlib.chdir(folder):
        main(["recipe", "recipe.yaml"])
    return folder


@pytest.fixture
def finished(finished_once, monkeypatch) -> Path:
    """A finished recipe, for the tests that only look; the working folder."""
    monkeypatch.chdir(finished_once)
    return finished_once


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
    rows = " ".join(line for line in text.splitlines() if line.startswith("| student"))
    assert f"{accuracy:.4f}" in rows
    assert "50.0%" in rows


def test_finished_stages_are_not_trained_again(finished, capfd):
    models = [finished / "out" / stage / "model/model.safetensors" for stage in ("teacher", "student")]
    before = [path.stat().st_mtime_ns for path in models]
    main(["recipe", "recipe.yaml"])
    assert [path.stat().st_mtime_ns for path in models] == before
    assert "student (finished)" in capfd.readouterr().out


def test_finished_stages_that_were_moved_are_used_from_another_folder(finished_once, tmp_path, monkeypatch, capfd):
    shutil.copytree(finished_once / "out", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    main(["recipe", str(finished_once / "recipe.yaml"), "--run", "moved", "--only", "student"])
    assert "student (finished)" in capfd.readouterr().out


def test_other_settings_for_a_finished_stage_are_refused(finished):
    with pytest.raises(SystemExit, match=r"stage 'teacher'.*made with other settings.*--run"):
        main(["recipe", "recipe.yaml", "--teacher.trainer.max_epochs", "2"])


def test_dry_run_prints_the_plan_and_does_nothing(folder, capsys):
    main(["recipe", "recipe.yaml", "--dry-run", "--student.trainer.max_epochs", "7"])
    text = capsys.readouterr().out
    assert "lit_compress fit --config out/stages/teacher.yaml\n" in text
    assert "lit_compress fit --config prune.yaml --config out/stages/student.yaml --trainer.max_epochs 7" in text
    assert "out/teacher/model" in text
    assert not (folder / "out").exists()


def test_a_stage_by_hand(finished_once, folder):
    # From the file that the recipe keeps for it, from another working directory.
    files = [finished_once / "prune.yaml", finished_once / "out/stages/student.yaml"]
    main(["fit", *(f"--config={file}" for file in files), "--run=by_hand"])
    twins = [load_checkpoint(f / "checkpoints/last.ckpt") for f in (finished_once / "out/student", folder / "by_hand")]
    assert differences(twins[0]["state_dict"], twins[1]["state_dict"]) == []


def copy_unfinished(finished_once, folder):
    """A recipe's folder whose teacher has left some of its compression undone."""
    for part in ("teacher", "stages"):
        shutil.copytree(finished_once / "out" / part, folder / "out" / part)
    manifest = folder / "out/teacher/model/compression.json"
    left = {"strategy": "MagnitudePruning", "asked": "80 %", "reached": "64 %", "step": 90, "of": 150, "end": 120}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"unfinished": [left]}))


def test_a_stage_that_is_not_finished_is_not_gone_on_from(finished_once, folder, capfd):
    copy_unfinished(finished_once, folder)
    kept = folder / "out/stages/student.yaml"
    kept.unlink()
    for options in ([], ["--only", "student"]):
        with pytest.raises(SystemExit, match=r"stage 'teacher': MagnitudePruning: asked 80 %.*--unfinished true"):
            main(["recipe", "recipe.yaml", *options])
        assert not (folder / "out/student").exists()
        assert not kept.exists()
    main(["recipe", "recipe.yaml", "--unfinished", "true"])
    assert "Not finished: MagnitudePruning: asked 80 %, reached 64 %" in capfd.readouterr().out
    assert (folder / "out/student/model/config.json").is_file()


def test_a_stage_that_is_not_finished_is_in_the_way_of_no_other(finished_once, folder):
    copy_unfinished(finished_once, folder)

    def apart(content):  # only its report reads the teacher
        student = content["stages"]["student"]
        model = content["stages"]["teacher"]["model"]["init_args"]["pretrained"]
        student["model"]["init_args"] = {"pretrained": model}
        student["dense"] = "stage:teacher"

    edit(folder, apart)
    main(["recipe", "recipe.yaml", "--only", "student"])
    assert (folder / "out/student/model/config.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_stage_goes_on_bit_for_bit(finished_once, folder):
    for part in ("teacher", "stages"):
        shutil.copytree(finished_once / "out" / part, folder / "out" / part)
    command = ["recipe", "recipe.yaml", "--only", "student", "--student.checkpoint_every", "1"]
    process = Python(["-m", "lit_compress", *command], start_new_session=True)
    last = folder / "out/student/checkpoints/last.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        while True:  # until the process of the stage has ended, too
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    assert last.is_file()
    assert not (folder / "out/student/model").exists()
    main(command)
    twins = [load_checkpoint(f / "out/student/checkpoints/last.ckpt") for f in (finished_once, folder)]
    for part in ("state_dict", "optimizer_states"):
        assert differences(twins[0][part], twins[1][part]) == []


def test_a_recipe_that_is_told_to_stop_saves_and_goes_on(finished_once, folder):
    for part in ("teacher", "stages"):
        shutil.copytree(finished_once / "out" / part, folder / "out" / part)
    command = ["recipe", "recipe.yaml", "--only", "student", "--student.checkpoint_every", "1"]
    with Python(["-m", "lit_compress", *command]) as process:
        while not (folder / "out/student/config.yaml").is_file() and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not (folder / "out/student/model").exists()
    main(command)
    assert (folder / "out/student/model/config.json").is_file()


def test_a_failing_stage_stops_the_recipe(folder):
    with pytest.raises(SystemExit, match=r"stage 'teacher' ended with exit status 1"):
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
            "stage 'student' reads 'stage:later', which is not an earlier stage; earlier are teacher",
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
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe("recipe.yaml")


def test_no_such_stage(folder):
    with pytest.raises(SystemExit, match=r"--only: 'teachr'.*teacher, student"):
        main(["recipe", "recipe.yaml", "--only", "teachr"])


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_shipped_recipe_parses(path, tmp_path, capsys):
    for stage in load_recipe(path, run=str(tmp_path / "run")).values():
        stage.write()
        with pytest.raises(SystemExit) as caught:
            main([*stage.command(), "--print_config"])
        assert caught.value.code == 0, capsys.readouterr().err
        assert yaml.safe_load(capsys.readouterr().out)["run"] == str(stage.folder)


RECIPES = Path(__file__).parents[1] / "configs/recipes"


@pytest.mark.parametrize("name", sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml")))
def test_a_stage_that_learns_from_another_student_is_compared_with_the_dense_model(name):
    stages = (yaml.safe_load((RECIPES / name).read_text()) or {}).get("stages") or {}

    def source(stage):
        data = (stage or {}).get("data") or {}
        return [
            data.get("class_path"),
            *((data.get("init_args") or {}).get(n) for n in ("hub", "hub_config", "train_file")),
        ]

    task = source(stages.get("teacher"))
    for own, stage in stages.items():
        teacher = str(((stage.get("model") or {}).get("init_args") or {}).get("teacher"))
        if any(task) and source(stage) == task and teacher.startswith("stage:") and teacher != "stage:teacher":
            assert stage.get("dense") == "stage:teacher", own
