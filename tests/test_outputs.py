"""No command replaces or removes what it did not make: every command with an output, onto everything that can be there.

A command is refused before it looks at its inputs, so that none of them has to exist here.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lit_compress import cli
from lit_compress.cli import main
from lit_compress.files import atomic_folder
from lit_compress.function_cli import function_parser

FOLDER, FILE = "folder", "file"
# Command and its output -> what it makes, its other options, and whether it has --overwrite.
COMMANDS = {
    "export": (FOLDER, ["--run=run"], True),
    "export of a model": (FOLDER, ["--model=model", "--to=onnx"], True),
    "export of a checkpoint": (FOLDER, ["--checkpoint=run/checkpoints/last.ckpt"], True),
    "pack": (FOLDER, ["--run=run"], True),
    "trim-vocabulary": (FOLDER, ["--model=model", "--corpus=corpus.txt"], True),
    "report": (FOLDER, ["--run=run"], False),
    "latency": (FOLDER, ["model"], False),
    "benchmark": (FILE, ["model"], False),
    "explain": (FILE, ["model"], False),
    "predict": (FILE, ["--model=model", "--file=rows.csv"], True),
    "migrate": (FILE, ["old.yaml"], True),
    "formats": ("formats", ["--run=run"], True),
    "compare": ("comparison", ["run"], False),
    "init": ("configurations", ["rows.csv"], True),
}
# Commands whose output is no --output: the run folders of `fit` and `recipe` have tests of their own below, that of
# `compress` in tests/auto.
WITHOUT = {"check", "compress", "configs", "recipe"}
SUFFIX = {"benchmark": ".json", "explain": ".json", "predict": ".csv", "migrate": ".yaml"}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Kind, permissions and content of everything in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        text = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        found[str(path.relative_to(folder))] = mode, text
    return found


def command(name: str, output: str | Path) -> list[str]:
    _, options, overwrites = COMMANDS[name]
    return [name.split(" ")[0], *options, f"--output={output}", *(["--overwrite=true"] if overwrites else [])]


def refused(args: list[str], capsys) -> str:
    """The one line of a refused command."""
    with pytest.raises(SystemExit) as caught:
        main(args)
    line = str(caught.value.code)
    assert line.startswith("lit_compress: error: "), capsys.readouterr().err
    assert "\n" not in line
    return line


def test_every_command_with_an_output_has_a_row():
    with_output = {
        name
        for name in cli._COMMANDS | cli._PREDICT
        if any("--output" in action.option_strings for action in function_parser(name, cli._function(name))._actions)
    }
    assert {name.split(" ")[0] for name in COMMANDS} == with_output
    assert set(cli._COMMANDS | cli._PREDICT) - with_output == WITHOUT


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with a precious file; the home folder is a neighbour of it."""
    folder, home = tmp_path / "work", tmp_path / "home"
    for each in (folder, home):
        each.mkdir()
    (folder / "precious.txt").write_text("years of work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    return folder


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("years of work")


def make_folder_with_an_own_name(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")


def make_nested(path: Path) -> None:
    (path / "deep" / "deeper").mkdir(parents=True)
    (path / "deep" / "deeper" / "precious.txt").write_text("years of work")


def make_added(kind: str) -> Callable[[Path], None]:
    """An output of this program, to which somebody added a file."""

    def make(path: Path) -> None:
        with atomic_folder(path, kind=kind) as staging:  # type: ignore[arg-type]
            (staging / "config.json").write_text("{}")
        (path / "precious.txt").write_text("years of work")

    return make


def make_older(path: Path) -> None:
    """An export of a version that left no list of files, to which somebody added one."""
    path.mkdir()
    for name in ("config.json", "compression.json", "precious.txt"):
        (path / name).write_text("{}")


def make_linked(path: Path) -> None:
    make_folder(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_link_to_empty(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


def make_link_inside(path: Path) -> None:
    make_added("model")(path)
    (path / "precious.txt").unlink()
    (path / "link").symlink_to("..")


def make_file(path: Path) -> None:
    path.write_text("years of work")


def make_json(path: Path) -> None:
    path.write_text(json.dumps({"command": "mine", "folder": "mine", "row": 0}, indent=1))


def make_link_to_file(path: Path) -> None:
    path.symlink_to("precious.txt")


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


THERE = {
    "a folder": make_folder,
    "a folder with a file of a usual name": make_folder_with_an_own_name,
    "a folder with a file deep inside": make_nested,
    "a model with a file more": make_added("model"),
    "a report with a file more": make_added("report"),
    "a model of an older version with a file more": make_older,
    "a link to a folder": make_linked,
    "a link to an empty folder": make_link_to_empty,
    "a model with a link inside": make_link_inside,
    "a file": make_file,
    "a JSON file": make_json,
    "a link to a file": make_link_to_file,
    "a link to nothing": make_dangling,
    "a device": os.mkfifo,  # of the files that are no files the one that anybody may make
}


@pytest.mark.parametrize("there", THERE)
@pytest.mark.parametrize("name", [name for name, row in COMMANDS.items() if row[0] in (FOLDER, FILE)])
def test_what_is_there_stays(name, there, here, capsys):
    output = here / f"output{SUFFIX.get(name, '')}"
    THERE[there](output)
    before = snapshot(here)
    line = refused(command(name, output), capsys)
    assert repr(str(output)) in line
    assert snapshot(here) == before


# In the place of a folder inside the output, and of a file.
FOR_FOLDER = [there for there in THERE if there != "a link to an empty folder"]
FOR_FILE = ["a folder", "a file", "a JSON file", "a link to a file", "a device"]


@pytest.mark.parametrize(
    ("name", "inner", "there"),
    [
        *(("formats", inner, there) for inner in ("hf", "onnx-int8") for there in FOR_FOLDER),
        *(("formats", f"formats.{ending}", there) for ending in ("json", "md") for there in FOR_FILE),
        *(("compare", f"report.{ending}", there) for ending in ("md", "json", "html") for there in FOR_FILE),
    ],
)
def test_what_is_inside_the_output_stays(name, inner, there, here, capsys):
    output = here / "output"
    output.mkdir()
    THERE[there](output / inner)
    before = snapshot(here)
    assert inner in refused(command(name, output), capsys)
    assert snapshot(here) == before


@pytest.mark.parametrize("there", ["a link to a folder", "a link to an empty folder", "a file", "a link to nothing"])
@pytest.mark.parametrize("name", ["formats", "compare"])
def test_what_takes_the_place_of_a_folder_of_outputs_stays(name, there, here, capsys):
    THERE[there](here / "output")
    before = snapshot(here)
    assert "output" in refused(command(name, here / "output"), capsys)
    assert snapshot(here) == before


@pytest.mark.parametrize("name", ["formats", "compare"])
def test_nothing_is_added_to_a_folder_that_is_whole(name, here, capsys):
    with atomic_folder(here / "output", kind="model") as staging:
        (staging / "config.json").write_text("{}")
    before = snapshot(here)
    assert "as a whole" in refused(command(name, here / "output"), capsys)
    assert snapshot(here) == before


FOLDER_COMMANDS = [name for name, row in COMMANDS.items() if row[0] == FOLDER]


@pytest.mark.parametrize("place", [".", "..", "/", "{here}", "{here}/", "{home}", "{home}/..", "~"])
@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_the_current_folder_and_the_home_stay(name, place, here, capsys):
    home = Path(os.environ["HOME"])
    (here / "precious.txt").unlink()  # nothing but the place itself speaks against it
    place = os.path.expanduser(place.format(here=here, home=home))
    before = snapshot(here.parent)
    line = refused(command(name, place), capsys)
    assert "is or holds" in line
    assert "--overwrite" not in line
    assert snapshot(here.parent) == before


@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_a_mount_point_stays(name, here, capsys, monkeypatch):
    (here / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    assert "mount point" in refused(command(name, "disk"), capsys)
    assert (here / "disk").is_dir()


@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_a_model_with_a_mount_point_in_it_stays(name, here, capsys, monkeypatch):
    kind = {"report": "report", "latency": "latency table"}.get(name, "model")
    with atomic_folder(here / "output", kind=kind) as staging:  # type: ignore[arg-type]
        (staging / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    assert "'disk'" in refused(command(name, "output"), capsys)
    assert (here / "output" / "disk").is_dir()


@pytest.mark.parametrize(
    "args",
    [
        ["export", "--model=model", "--output=model", "--overwrite=true"],
        ["export", "--model=outer/model", "--output=outer", "--overwrite=true"],
        ["export", "--checkpoint=model/a.ckpt", "--output=model", "--overwrite=true"],
        ["export", "--run=model", "--output={here}/model", "--overwrite=true"],
        ["pack", "--model=model", "--output=./model", "--overwrite=true"],
        ["trim-vocabulary", "--model=model", "--corpus=c", "--output=model", "--overwrite=true"],
        ["trim-vocabulary", "--model=m", "--corpus=outer/model", "--output=outer", "--overwrite=true"],
        ["report", "--run=run", "--dense=report", "--output=report"],
        ["formats", "--run=run", "--dense=outer/hf", "--output=outer", "--overwrite=true"],
    ],
)
def test_an_output_is_no_input(args, here, capsys):
    for name in ("model", "report"):
        with atomic_folder(here / name, kind=name) as staging:  # type: ignore[arg-type]
            (staging / "config.json").write_text("{}")
    for name in ("outer/model", "outer/hf"):
        shutil.copytree("model", name)
    before = snapshot(here)
    line = refused([arg.format(here=here) for arg in args], capsys)
    assert "which is read" in line or "in it" in line
    assert snapshot(here) == before


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["predict", "--model=m", "--file=rows.csv", "--output={}", "--overwrite=true"], "row,label\n0,good\n"),
        (["migrate", "rows.csv", "--output={}", "--overwrite=true"], "# Made by `lit_compress migrate`\n"),
    ],
)
def test_an_output_file_is_no_input(args, text, linked, here, capsys):
    (here / "rows.csv").write_text(text)
    if linked:
        os.link("rows.csv", "again.csv")
    before = snapshot(here)
    args = [arg.format("again.csv" if linked else "rows.csv") for arg in args]
    assert "the file that is read" in refused(args, capsys)
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("name", "kind"), [("export", "report"), ("pack", "report"), ("trim-vocabulary", "report"), ("report", "model")]
)
def test_an_output_of_another_kind_stays(name, kind, here, capsys):
    with atomic_folder(here / "output", kind=kind) as staging:
        (staging / "config.json").write_text("{}")
    before = snapshot(here)
    assert "'config.json'" in refused(command(name, "output"), capsys)
    assert snapshot(here) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_the_way_of_the_folder_around_is_said(name, here, capsys):
    output = here / "precious.txt" / f"output{SUFFIX.get(name, '')}"
    assert "not a folder to write into" in refused(command(name, output), capsys)
    assert list(snapshot(here)) == ["precious.txt"]


def recipe_of(here: Path, root: str = "out") -> Path:
    stage = {"model": {"class_path": "LitTeacher", "init_args": {"pretrained": "m"}}}
    path = here / "recipe.yaml"
    path.write_text(yaml.safe_dump({"run": root, "stages": {"teacher": stage, "student": stage}}))
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("teacher/precious.txt", "student/deep/precious.txt", "student/config.yaml", "stages/student.yaml"),
        *("teacher/tokenizer/tokenizer.json", "student/events.out.tfevents.1"),
        *("report.md", "report.json", "report.html", "teacher/checkpoints/other.ckpt"),
    ],
)
def test_a_recipe_leaves_what_is_in_the_place_of_a_stage(name, here, capsys):
    path = here / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("run: years of work")
    recipe_of(here)
    before = snapshot(here)
    assert f"out/{name.split('/')[0]}" in refused(["recipe", "recipe.yaml"], capsys)
    assert snapshot(here) == before


@pytest.mark.parametrize("args", [[], ["--ckpt_path=elsewhere.ckpt"]])
@pytest.mark.parametrize("name", ["config.yaml", "model/precious.txt"])
def test_a_fit_leaves_what_is_in_the_place_of_its_run(name, args, here, tiny_teacher, capsys):
    (here / "run" / name).parent.mkdir(parents=True)
    (here / "run" / name).write_text("years of work")
    (here / "t.tsv").write_text("text\tlabel\ngood\t1\nbad\t0\n")
    about = {"architecture": "BertModel", "config": '{"model_type": "bert"}', "tokenizer": "none", "manifest": {}}
    torch.save({"lit_compress": about, "state_dict": {}}, here / "elsewhere.ckpt")
    before = snapshot(here)
    model = ["--model=LitTeacher", f"--model.pretrained={tiny_teacher}"]
    model += ["--data=TextClassification", "--data.train_file=t.tsv"]
    assert "--run" in refused(["fit", "--run=run", *model, *args], capsys)
    assert snapshot(here) == before


def test_predictions_of_a_configuration_leave_what_is_there(here, capsys):
    (here / "out.csv").write_text("row,label\n0,good\n")
    os.link("out.csv", "rows.csv")
    config = {
        "run": "run",
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": "m"}},
        "data": {"class_path": "TextClassification", "init_args": {"train_file": "t.tsv", "predict_file": "rows.csv"}},
    }
    (here / "config.yaml").write_text(yaml.safe_dump(config))
    for output, words in (("rows.csv", "file that is read"), ("precious.csv", "did not write"), ("out.csv", "exists")):
        if output == "out.csv":
            (here / "rows.csv").unlink()
        (here / "precious.csv").write_text("years of work")
        before = snapshot(here)
        assert words in refused(["predict", "--config=config.yaml", f"--output={output}"], capsys)
        assert snapshot(here) == before
