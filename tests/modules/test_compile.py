"""A compiled student is compiled once, whatever strategies do to its masks; and the fragment that asks for it."""

from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import yaml
from contracts.table import build
from contracts.training import student, trainer
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lit_compress.cli import main
from lit_compress.tasks import Batch


class Masks(Callback):
    """How many of a student's buffers changed in a run."""

    def on_train_batch_start(self, run, module, batch, batch_idx):
        if run.global_step == 0:
            self.before = {name: value.clone() for name, value in module.student.named_buffers()}

    def on_train_end(self, run, module):
        now = dict(module.student.named_buffers())
        self.changed = sum(not torch.equal(value, now[name]) for name, value in self.before.items())


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(8, 12, dtype=torch.long)
    mask[::2, 9:] = 0
    ids = lambda: torch.randint(5, 40, (8, 12), generator=generator)  # noqa: E731
    return [Batch({"input_ids": ids(), "attention_mask": mask}, {"labels": torch.arange(8) % 2}, {}) for _ in range(4)]


@pytest.mark.parametrize("case", ["magnitude", "magnitude-regrowth", "movement", "structured", "layer-drop-gradual"])
def test_masks_that_change_compile_nothing_again(case, batches, tiny_teacher, tmp_path, monkeypatch):
    counter, compile_module = torch._dynamo.testing.CompileCounterWithBackend("aot_eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=counter))
    torch._dynamo.reset()
    masks = Masks()
    run = trainer(tmp_path, [build(case), masks], limit_val_batches=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run.fit(student(tiny_teacher, compile=True), DataLoader(batches, batch_size=None))
    assert run.global_step == 8
    assert masks.changed
    assert counter.frame_count >= 1


def test_the_fragment_for_a_gpu(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config=@sst2/teacher", "--config=@trainer/gpu", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["model"]["init_args"]["compile"] is True
    fragment = yaml.safe_load((Path(__file__).parents[2] / "configs/trainer/gpu.yaml").read_text())
    assert fragment["trainer"].keys() <= config["trainer"].keys()


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("bf16-true", True)])
def test_the_optimizer_is_one_fused_kernel(precision, fused, batches, tiny_teacher, tmp_path):
    run = trainer(tmp_path, [], precision=precision, limit_val_batches=0, max_epochs=1)
    run.fit(student(tiny_teacher), DataLoader(batches, batch_size=None))
    assert {group["fused"] for group in run.optimizers[0].param_groups} == {fused}
    assert run.gradient_clip_val == 1.0
