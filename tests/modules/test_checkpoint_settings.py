"""A checkpoint alone says how its module was made, whoever made it."""

import pytest
import torch
import yaml
from contracts.errors import error_of
from contracts.training import student_config, trainer

import lit_compress
from lit_compress.cli import main
from lit_compress.init_args import settings_of
from lit_compress.modules import (
    Distillation,
    HiddenDistillation,
    L1Penalty,
    LitStudent,
    LogitDistillation,
    Optimization,
)
from lit_compress.modules.learning_rate import Rewind

# A penalty needs a layer that can be compressed.
PRUNING = [{"class_path": "MagnitudePruning", "init_args": {"start": "0%", "end": "50%"}}]


@pytest.mark.parametrize("kind", ["LitStudent", "LitPrunedStudent"])
@pytest.mark.parametrize("made", ["on the command line", "in Python"])
def test_a_checkpoint_has_the_settings_of_its_training(kind, made, tiny_teacher, tiny_data, tmp_path):
    optimization = Optimization(learning_rate=1e-3, betas=(0.8, 0.9), rewind=Rewind(start="0%", end="50%", every="50%"))
    terms = {
        "far": LogitDistillation(hardness=0.25, temperature=3.0),
        "inside": HiddenDistillation(layer_map={2: 1}, projection=True),
    }
    settings = {"optimization": optimization, "distillation": terms}
    if kind == "LitPrunedStudent":
        settings["penalties"] = {"small": L1Penalty(weight=0.5)}
    expected = settings_of(settings)
    if made == "in Python":
        module = getattr(lit_compress, kind)(str(tiny_teacher), str(tiny_teacher), labels=["0", "1"], **settings)
        run = trainer(tmp_path, [])
        module.trainer = run
        run.strategy.connect(module)
        run.save_checkpoint(tmp_path / "last.ckpt")
    else:
        config = student_config(tiny_teacher, tiny_data, run=str(tmp_path / "run"), compression=PRUNING)
        config["model"]["class_path"] = kind
        config["model"]["init_args"] |= expected
        config["trainer"] |= {"logger": False, "enable_progress_bar": False, "max_steps": 8}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        main(["fit", f"--config={tmp_path / 'config.yaml'}"])
        (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "last.ckpt")
    again = getattr(lit_compress, kind).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    found = {"optimization": again.optimization, "distillation": dict(again.distillation)}
    if kind == "LitPrunedStudent":
        found["penalties"] = dict(again.penalties)
    assert settings_of(found) == expected
    # And from those of the one that was loaded.
    assert settings_of(getattr(lit_compress, kind)(**again.hparams).optimization) == expected["optimization"]


class Opaque(Distillation):
    """A term that is made with something that no file can say."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights


def test_a_term_that_does_not_say_how_it_was_made_is_given_again(tiny_teacher):
    terms = {"opaque": Opaque(torch.ones(2))}
    hparams = dict(LitStudent(str(tiny_teacher), str(tiny_teacher), labels=["0", "1"], distillation=terms).hparams)
    message = error_of(LitStudent, **hparams)
    assert message.startswith("model.distillation: ")
    assert "Opaque' cannot be made again; give distillation: " in message
    again = LitStudent(**hparams | {"distillation": terms})
    assert again.distillation["opaque"] is terms["opaque"]
