"""A run that version 0.1 left (commit bf6e194) is resumed from and exported as it was then.

`exported.safetensors` is what its own `export` made. Paths in `config.yaml` are relative here.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_compress.cli import main
from lit_compress.export import load_checkpoint

ROOT = Path(__file__).parent / "version_0_1"


@pytest.fixture
def here(tmp_path, monkeypatch):
    shutil.copytree(ROOT, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("source", ["--run=run", "--checkpoint=run/checkpoints/last.ckpt"])
def test_its_checkpoint_is_exported_as_it_was(source, here):
    main(["export", source, "--output=exported"])
    now, then = load_file("exported/model.safetensors"), load_file("exported.safetensors")
    assert now.keys() == then.keys()
    assert [name for name in then if not torch.equal(now[name], then[name])] == []


def test_its_run_goes_on(here):
    before = load_checkpoint("run/checkpoints/last.ckpt")
    main(["fit", "--config=run/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"])
    after = load_checkpoint("run/checkpoints/last.ckpt")
    assert (before["global_step"], after["global_step"]) == (4, 8)
    masks = [name for name in before["state_dict"] if name.endswith("weight_mask")]
    assert masks
    assert all(torch.equal(before["state_dict"][name], after["state_dict"][name]) for name in masks)
    assert any(not torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    weights = load_file("run/model/model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_its_run_is_evaluated(here, capsys):
    main(["validate", "--config=run/config.yaml", "--ckpt_path=last"])
    assert "val/accuracy" in capsys.readouterr().out
