"""A run folder stands on its own: from another working directory, moved, without teacher and pretrained model."""

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from contracts.errors import error_of
from contracts.training import data_config
from lightning.pytorch import LightningDataModule

import lit_compress.data
import lit_compress.modules
from lit_compress.cli import main
from lit_compress.data import TextClassification
from lit_compress.data.augmentation import MaskedWordReplacement
from lit_compress.export.run_folder import absolute_paths, task_of, text_data
from lit_compress.export.source import from_source
from lit_compress.modules.encoder import LitEncoder
from lit_compress.report.measure import report
from lit_compress.tasks import RegressionTask

QUICK = ["--batch_sizes=[1]", "--repetitions=1"]


def config() -> dict:
    """A run whose every path is relative to where `fit` is called."""
    model = {"pretrained": "teacher", "teacher": "teacher"}
    return {
        "model": {"class_path": "LitStudent", "init_args": model},
        "data": data_config(Path("data")),
        "compression": [{"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "end": "50%"}}],
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }


@pytest.fixture(scope="session")
def home(tmp_path_factory, tiny_teacher, tiny_data) -> Path:
    """Where `fit` was called, with a run that was reported, and one that was not."""
    root = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_teacher, root / "teacher")
    shutil.copytree(tiny_data, root / "data")
    (root / "task.yaml").write_text(yaml.safe_dump(config()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        main(["fit", "--config=task.yaml", "--run=runs/student"])
    return root


@pytest.fixture
def moved(home, tmp_path, monkeypatch) -> Iterator[Path]:
    """The run in another place; teacher and training data are gone, and another folder is the working directory."""
    shutil.copytree(home / "runs/student", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("teacher", "data/train.tsv"):
        (home / name).rename(home / f"{name}.away")
    yield tmp_path / "moved"
    for name in ("teacher", "data/train.tsv"):
        (home / f"{name}.away").rename(home / name)


def test_export_and_pack(moved, tmp_path):
    main(["export", f"--run={moved}", "--output=out"])
    main(["export", f"--checkpoint={moved}/checkpoints/last.ckpt", "--output=other"])
    main(["pack", f"--run={moved}", "--output=packed", "--calibration_batches=1"])
    for name in ("out", "other", "packed"):
        assert Path(name, "tokenizer.json").read_bytes() == (moved / "model/tokenizer.json").read_bytes()
    main(["explain", "packed"])


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "../checkpoints/last.ckpt"])
def test_a_checkpoint_named_from_its_own_folder_has_the_tokenizer_of_its_run(checkpoint, moved, monkeypatch):
    monkeypatch.chdir(moved / "checkpoints")
    assert Path(from_source(checkpoint=checkpoint).tokenizer.name_or_path).resolve().is_relative_to(moved)


def test_export_of_a_run_that_was_interrupted(moved):
    shutil.rmtree(moved / "model")
    main(["export", f"--run={moved}", "--output=out"])
    assert Path("out/tokenizer.json").is_file()


def test_report_without_its_teacher(moved, home, capsys):
    main(["report", f"--run={moved}", *QUICK])
    results = json.loads((moved / "report/report.json").read_text())
    assert (list(results["models"]), results["dense"]) == (["compressed"], None)
    said = " ".join(capsys.readouterr().out.split())
    assert str(home / "teacher") in said
    assert "--dense" in said
    main(["report", f"--run={moved}", f"--dense={home / 'teacher.away'}", *QUICK])
    assert list(json.loads((moved / "report/report.json").read_text())["models"]) == ["dense", "compressed"]


def test_a_report_that_has_the_teacher_is_kept_when_it_is_gone(moved, home, tmp_path):
    report(run=str(moved), dense=str(home / "teacher.away"), batch_sizes=[1], repetitions=1)
    before = (moved / "report/report.json").read_text()
    message = error_of(report, run=str(moved), batch_sizes=[1], repetitions=1)
    assert "--dense" in message
    assert "--output" in message
    assert (moved / "report/report.json").read_text() == before
    report(run=str(moved), output=str(tmp_path / "second"), batch_sizes=[1], repetitions=1)
    main(["compare", str(moved), "--output=compared"])
    assert list(json.loads(Path("compared/report.json").read_text())["moved"]["models"]) == ["dense", "compressed"]


def test_compare_and_formats_without_the_teacher(moved, home, capsys):
    main(["compare", str(moved), "--output=compared"])
    assert Path("compared/report.html").is_file()
    main(["formats", f"--run={moved}", "--output=formats", "--to=[hf,sparse]", "--batch_sizes=[1]", "--repetitions=1"])
    cases = json.loads(Path("formats/formats.json").read_text())["cases"]
    assert [case["model"] for case in cases] == ["hf", "sparse"]
    assert str(home / "teacher") in capsys.readouterr().out.replace("\n", "")


def test_validation_data_that_is_gone_can_be_given(moved, home):
    given = home / "data/val.tsv"
    given.rename(home / "data/val.away.tsv")
    try:
        message = error_of(report, run=str(moved), batch_sizes=[1], repetitions=1)
        assert message.startswith("--data.val_file: ")
        assert str(given) in message
        main(["report", f"--run={moved}", f"--data.val_file={home / 'data/val.away.tsv'}", *QUICK])
    finally:
        (home / "data/val.away.tsv").rename(given)
    results = json.loads((moved / "report/report.json").read_text())
    assert results["data"]["source"] == str(home / "data/val.away.tsv")


def test_predict(moved, home):
    main(["predict", f"--run={moved}", f"--file={home / 'data/val.tsv'}", "--output=out.csv"])
    assert len(Path("out.csv").read_text().splitlines()) == 17


def test_the_saved_configuration_from_another_directory(home, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(home / "runs/student", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["validate", f"--config={run / 'config.yaml'}", "--ckpt_path=last"])
    assert "val/accuracy" in capsys.readouterr().out
    main(["fit", f"--config={run / 'config.yaml'}", "--run=again"])
    assert {path.name for path in Path().iterdir()} == {"again"}
    # A run of its own once more, whose configuration is where the run is.
    main(["fit", "--config=again/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert {path.name for path in Path().iterdir()} == {"again"}


def test_every_path_of_a_configuration_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()

    def section(kind) -> dict:
        names = [
            name
            for name in inspect.signature(kind).parameters
            if name.endswith(("_file", "_dir", "_cache")) or name in ("tokenizer", "pretrained", "teacher", "model")
        ]
        return {"class_path": kind.__name__, "init_args": dict.fromkeys(names, "there")}

    def strings(value):
        return [s for inner in value.values() for s in strings(inner)] if isinstance(value, dict) else [value]

    for module, base in ((lit_compress.data, LightningDataModule), (lit_compress.modules, LitEncoder)):
        for kind in (getattr(module, name) for name in module.__all__):
            if inspect.isclass(kind) and issubclass(kind, base):
                made = section(kind)
                if "augmentation" in inspect.signature(kind).parameters:
                    made["init_args"]["augmentation"] = section(MaskedWordReplacement)
                if "teachers" in inspect.signature(kind).parameters:
                    made["init_args"]["teachers"] = {"first": "there"}
                where = "data" if base is LightningDataModule else "model"
                found = strings(absolute_paths({where: made})[where]["init_args"])
                assert set(found) <= {str(tmp_path / "there"), "MaskedWordReplacement"}, kind


def test_names_of_the_hub_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {"pretrained": "owner/name", "teacher": "package:one/inner", "teachers": {"a": "name"}}
    config = {"model": {"class_path": "LitStudent", "init_args": made}}
    assert absolute_paths(config) == config


class Broken(TextClassification):
    @property
    def task(self):
        return self.misspelt


class Failing(TextClassification):
    def __init__(self, train_file: str) -> None:
        raise KeyError("a fault of its own")


def test_a_fault_of_a_data_module_is_no_mistake_of_the_user():
    with pytest.raises(KeyError, match="a fault of its own"):
        text_data(f"{__name__}.Failing", {"train_file": "train.tsv"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.max_lenght=8"], "--data: unknown option 'max_lenght'; did you mean 'max_length'?"),
        (["--data.batch_size=many"], "--data: batch_size: "),
    ],
)
@pytest.mark.parametrize("command", ["report", "predict"])
def test_a_wrong_option_of_the_data_is_told_in_one_line(command, options, said, home, tmp_path):
    output = tmp_path / ("answers.csv" if command == "predict" else "report")
    words = [command, f"--run={home / 'runs/student'}", f"--output={output}", *options]
    words += [f"--file={home / 'data/val.tsv'}"] if command == "predict" else QUICK
    with pytest.raises(SystemExit) as caught:
        main(words)
    line = str(caught.value.code)
    assert line.startswith(f"lit_compress: error: {said}")
    assert "\n" not in line


class Unlabelled(LightningDataModule):
    task = RegressionTask()

    @property
    def labels(self):
        raise AssertionError("a Task has its own labels")


def test_the_task_of_a_data_module(tiny_model, tiny_data):
    with pytest.raises(AttributeError, match="misspelt"):
        task_of(Broken(str(tiny_data / "train.tsv"), tokenizer=str(tiny_model)))
    assert task_of(Unlabelled()) is Unlabelled.task
    named = LightningDataModule()
    named.task, named.labels = "classification", ["a", "b"]
    assert task_of(named).labels == ["a", "b"]
    assert task_of(LightningDataModule()).name == "regression"
