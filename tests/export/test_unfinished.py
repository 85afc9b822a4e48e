"""A run that stops inside a strategy's window: said at its end, kept beside the model, and refused by exports."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from contracts.errors import error_of
from contracts.training import student_config

from lit_compress.cli import main
from lit_compress.export import from_source, load_checkpoint
from lit_compress.export.command import Format, export, pack_command, write
from lit_compress.models.manifest_file import unfinished_lines
from lit_compress.report.formats import formats

ASKED = "MagnitudePruning: asked 80 % zeros, reached 46.3 % zeros: stopped at step 2 of 8, complete at step 8"
LATER = "QuantAwareTraining: asked 8-bit weights, reached fp32 weights: stopped at step 2 of 8, complete at step 7"
STOP = """
from lightning.pytorch import Callback


class StopAt(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step
"""


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, tiny_teacher, tiny_data) -> tuple[Path, str]:
    """A run that was stopped at step 2, and what it said."""
    root = tmp_path_factory.mktemp("stopped")
    (root / "stopping.py").write_text(STOP)
    compression = [
        {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.8, "end": "100%", "every": "1 steps"}},
        {"class_path": "QuantAwareTraining", "init_args": {"start": "75%", "freeze_observers": None}},
    ]
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
    trainer["callbacks"] = [{"class_path": "stopping.StopAt", "init_args": {"step": 2}}]
    config = student_config(tiny_teacher, tiny_data, compression=compression, trainer=trainer)
    (root / "task.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main(["fit", "--config=task.yaml", "--run=run"])
    return root / "run", said.getvalue()


def test_the_fit_says_so_at_its_end(stopped):
    run, said = stopped
    assert f"Not finished: {ASKED}" in said
    assert f"Not finished: {LATER}" in said
    assert (run / "model/model.safetensors").is_file()
    assert unfinished_lines(json.loads((run / "model/compression.json").read_text())) == [ASKED, LATER]
    card = (run / "model/README.md").read_text()
    assert f"- not finished: {ASKED}" in card


@pytest.mark.parametrize("source", ["run", "checkpoint", "model"])
def test_an_export_refuses_it_unless_allowed(source, stopped, tmp_path):
    run, _ = stopped
    given = {"run": run, "checkpoint": run / "checkpoints/last.ckpt", "model": run / "model"}[source]
    arguments = {source: str(given), "output": str(tmp_path / "out")}
    message = error_of(export, **arguments)
    assert ASKED in message
    assert "--unfinished true" in message
    assert not (tmp_path / "out").exists()
    export(**arguments, unfinished=True)  # type: ignore[arg-type]
    assert unfinished_lines(json.loads((tmp_path / "out/compression.json").read_text())) == [ASKED, LATER]


def test_pack_and_formats_refuse_it_unless_allowed(stopped, tmp_path):
    run, _ = stopped
    assert ASKED in error_of(pack_command, run=str(run), output=str(tmp_path / "packed"))
    assert ASKED in error_of(formats, run=str(run), output=str(tmp_path / "formats"))
    assert list(tmp_path.iterdir()) == []
    main(["pack", f"--run={run}", f"--output={tmp_path / 'packed'}", "--unfinished=true"])
    assert ASKED in (tmp_path / "packed/README.md").read_text()
    options = ["--to=[hf]", "--batch_sizes=[1]", "--repetitions=1", "--unfinished=true"]
    main(["formats", f"--run={run}", f"--output={tmp_path / 'formats'}", *options])


@pytest.mark.parametrize("to", get_args(Format))
def test_every_format_keeps_it(to, stopped, tmp_path):
    for package in {"onnx": ["onnx", "onnxruntime"], "openvino": ["openvino"]}.get(to.partition("-")[0], []):
        pytest.importorskip(package)
    if to == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    write(from_source(run=str(stopped[0])), tmp_path / "out", to)
    assert unfinished_lines(json.loads((tmp_path / "out/compression.json").read_text())) == [ASKED, LATER]
    assert ASKED in (tmp_path / "out/README.md").read_text()


def test_the_report_says_so_everywhere(stopped, tmp_path, capsys):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    main(["report", f"--run={run}", "--batch_sizes=[1]", "--repetitions=1"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ASKED in shown
    results = json.loads((run / "report/report.json").read_text())
    assert [left["strategy"] for left in results["unfinished"]] == ["MagnitudePruning", "QuantAwareTraining"]
    for name in ("report.md", "report.html"):
        assert ASKED in (run / "report" / name).read_text()
    assert (run / "model/README.md").read_text().count(ASKED) == 2


def test_training_on_finishes_it(stopped, tmp_path, monkeypatch, capsys):
    run, task = tmp_path / "run", stopped[0].parent / "task.yaml"
    monkeypatch.syspath_prepend(str(stopped[0].parent))
    # Stopped between two epochs: an epoch that was cut short counts as a whole one.
    main(["fit", f"--config={task}", f"--run={run}", "--trainer.callbacks.step=4"])
    assert "stopped at step 4 of 8" in capsys.readouterr().out
    main(["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", "--trainer.callbacks=null"])
    assert "Not finished" not in capsys.readouterr().out
    assert "unfinished" not in json.loads((run / "model/compression.json").read_text())
    export(run=str(run), output=str(tmp_path / "out"))


def test_early_stopping_from_a_configuration_waits(stopped, tmp_path, capsys):
    config = yaml.safe_load((stopped[0].parent / "task.yaml").read_text())
    options = {"monitor": "val/loss", "patience": 0, "min_delta": 1e9}
    config["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": options}]
    config["trainer"]["max_epochs"] = 4
    for strategy, window in zip(config["compression"], ({"end": "4 steps"}, {"start": "5 steps"}), strict=True):
        strategy["init_args"] |= window
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={tmp_path / 'task.yaml'}", f"--run={tmp_path / 'run'}"])
    assert "Not finished" not in capsys.readouterr().out
    # After 4 steps it would have stopped, and at 8 and 12 it looks.
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 12


def test_an_older_checkpoint_and_a_damaged_one(stopped, tmp_path):
    content = torch.load(stopped[0] / "checkpoints/last.ckpt", weights_only=True)
    for number, entry in enumerate((None, "text", [{"strategy": 1}], [[]])):
        path = tmp_path / f"{number}.ckpt"
        content["lit_compress"]["unfinished"] = entry
        if entry is None:
            del content["lit_compress"]["unfinished"]
        torch.save(content, path)
        if entry is None:
            export(checkpoint=str(path), output=str(tmp_path / "older"))
            continue
        assert "damaged" in error_of(export, checkpoint=str(path), output=str(tmp_path / "out"))
    folder = shutil.copytree(stopped[0] / "model", tmp_path / "model")
    manifest = json.loads((folder / "compression.json").read_text())
    (folder / "compression.json").write_text(json.dumps(manifest | {"unfinished": {"strategy": "x"}}))
    assert "damaged" in error_of(export, model=str(folder), output=str(tmp_path / "out"))
