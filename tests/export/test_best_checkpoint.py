"""`export --run --checkpoint best`: the checkpoint that a ModelCheckpoint of the run kept by a metric."""

import re

import pytest
import torch
import yaml
from contracts.training import student_config
from transformers import AutoModelForSequenceClassification

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import load_checkpoint
from lit_compress.export.command import export


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher, tiny_data):
    """A run of three epochs that kept the one of the highest loss, so that it is not the last."""
    folder = tmp_path_factory.mktemp("best")
    kept = {
        "class_path": "ModelCheckpoint",
        "init_args": {"monitor": "val/loss", "mode": "max", "filename": "kept", "auto_insert_metric_name": False},
    }
    config = student_config(tiny_teacher, tiny_data)
    config["trainer"] |= {"callbacks": [kept], "max_epochs": 3}
    (folder / "task.yaml").write_text(yaml.safe_dump(config))
    main(
        [
            "fit",
            f"--config={folder / 'task.yaml'}",
            f"--run={folder / 'run'}",
            "--model.optimization.learning_rate=1e-3",
        ]
    )
    (folder / "run").rename(folder / "moved")
    return folder / "moved"


def test_the_best_checkpoint_is_exported(run, tmp_path):
    (path,) = run.rglob("kept.ckpt")
    export(run=str(run), checkpoint="best", output=str(tmp_path / "best"))
    export(run=str(run), checkpoint="last", output=str(tmp_path / "last"))
    best, last = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict() for name in ("best", "last")
    )
    assert load_checkpoint(path)["global_step"] < load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    expected = load_checkpoint(path)["state_dict"]["student.classifier.weight"]
    assert torch.equal(best["classifier.weight"], expected)
    assert not torch.equal(last["classifier.weight"], expected)


def test_a_file_of_the_run_is_compared_on_its_data(run, tmp_path, capsys):
    (path,) = run.rglob("kept.ckpt")
    main(["export", f"--run={run}", f"--checkpoint={path}", "--dtype=bf16", f"--output={tmp_path / 'out'}"])
    assert "Examples: the validation data of" in capsys.readouterr().out


def test_no_best(finished, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"--checkpoint: {str(finished)!r} has no best")):
        export(run=str(finished), checkpoint="best", output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="give one of --run, --checkpoint and --model"):
        export(run=str(finished), checkpoint="best", model="folder", output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
