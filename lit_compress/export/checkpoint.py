"""A Lightning checkpoint back to the student it holds; neither its pretrained weights nor its teacher are needed."""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_compress.errors import UserError
from lit_compress.models.load import first_line
from lit_compress.models.shapes import apply_shapes, shapes_of
from lit_compress.nn.manifest import rebuild

__all__ = ["LAST", "PREVIOUS", "find_checkpoint", "last_checkpoint", "load_checkpoint", "student_from_checkpoint"]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

_PREFIX = "student."
_KEY = "lit_compress"
_log = logging.getLogger(__name__)


def find_checkpoint(run: str | Path) -> Path:
    """The last checkpoint of a run folder, or the one before where there is no other.

    Raises:
        UserError: there is no such folder, or no checkpoint in it.

    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"--run: {str(run)!r} is no folder; give the run folder of a `fit`")
    for name in (LAST, PREVIOUS):
        if (path := run / "checkpoints" / name).is_file():
            return path
    raise UserError(
        f"--run: {str(run)!r} has no checkpoints/{LAST}; the run saved none yet; the same `fit` without --ckpt_path "
        "begins anew"
    )


def last_checkpoint(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint of a run folder and what is in it; where it is damaged the one before, which is said.

    Raises:
        UserError: there is none, or none that can be read.

    """
    path = find_checkpoint(run)
    if path.name == PREVIOUS:
        _log.warning("checkpoint: there is no %s; the one before it is taken: %s", path.with_name(LAST), path)
    try:
        return path, load_checkpoint(path)
    except UserError as error:
        previous = path.with_name(PREVIOUS)
        if path == previous or not previous.is_file():
            raise
        try:
            checkpoint = load_checkpoint(previous)
        except UserError:
            raise error from None
        step = checkpoint.get("global_step")
        _log.warning("%s; the one before it is taken: %s, of step %s", error, previous, step)
        return previous, checkpoint


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        UserError: damaged, or not made by this package.

    """
    try:
        # Mapped, so that the optimizer's state, two thirds of the file, takes no memory; PyTorch then leaves the file's
        # checksums to us.
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"{damaged} has changed")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint: {str(path)!r} does not exist") from error
    except Exception as error:  # random bytes make the unpickler raise almost anything
        reason = first_line(error)
        raise UserError(
            f"checkpoint: {str(path)!r} is damaged or no checkpoint ({reason}); use an earlier one"
        ) from error
    if not isinstance(checkpoint, dict) or _KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"checkpoint: {str(path)!r} was not made by lit_compress")
    return checkpoint


def student_from_checkpoint(checkpoint: dict[str, Any]) -> PreTrainedModel:
    """The student in its training form, in evaluation mode."""
    entry = checkpoint[_KEY]
    values = json.loads(entry["config"])
    architecture = getattr(transformers, entry["architecture"], None)
    known = isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)
    if not known or values.get("model_type") not in CONFIG_MAPPING:
        raise UserError(f"checkpoint: transformers {transformers.__version__} has no {entry['architecture']!r}")
    config: PretrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    assert architecture is not None
    student = architecture(config)
    if (shapes := shapes_of(config)) is not None:
        apply_shapes(student, shapes)  # it started from a model that was smaller already
    rebuild(student, entry["manifest"])
    weights = checkpoint["state_dict"]
    own = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
    try:
        student.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint: its weights do not fit its own description: {str(error).splitlines()[0]}"
        ) from error
    return student.eval()
