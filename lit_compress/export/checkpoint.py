"""A Lightning checkpoint back to the student it holds; neither its pretrained weights nor its teacher are needed."""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_compress.errors import UserError, first_line
from lit_compress.files import LAST
from lit_compress.models.folder import check_settings, check_size
from lit_compress.models.sentence_embedding import add_dense, give_embeddings
from lit_compress.models.shapes import apply_shapes, shapes_of
from lit_compress.nn.manifest import rebuild

__all__ = [
    "PREVIOUS",
    "best_checkpoint",
    "find_checkpoint",
    "last_checkpoint",
    "load_checkpoint",
    "student_from_checkpoint",
]

PREVIOUS = "previous.ckpt"

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
        raise UserError(f"--run: {str(run)!r} is not a folder; give the run folder of a `fit`")
    for name in (LAST, PREVIOUS):
        if (path := run / "checkpoints" / name).is_file():
            return path
    raise UserError(
        f"--run: {str(run)!r} has no checkpoints/{LAST}; the run saved none yet; the same `fit` without --ckpt_path "
        "starts over"
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
            raise UserError(
                f"checkpoint: {str(path)!r} and {str(previous)!r} are both damaged; start over with another --run, or "
                "give a copy with --ckpt_path"
            ) from error
        step = checkpoint.get("global_step")
        _log.warning("%s; the one before it is taken: %s, of step %s", error, previous, step)
        return previous, checkpoint


def best_checkpoint(run: str | Path) -> Path:
    """The best checkpoint of a run by what its ``ModelCheckpoint`` monitors, wherever the run is now.

    Raises:
        UserError: none monitors anything, several do, or the file is not there any more.

    """
    path, content = last_checkpoint(run)
    states = [state for name, state in content.get("callbacks", {}).items() if name.startswith("ModelCheckpoint")]
    found = [state for state in states if state.get("monitor") and state.get("best_model_path")]
    if len(found) > 1:
        which = ", ".join(str(state["monitor"]) for state in found)
        raise UserError(f"--checkpoint: {str(run)!r} has a best for each of {which}; give the file of one")
    if not found:
        raise UserError(
            f"--checkpoint: {str(run)!r} has no best: no ModelCheckpoint in its trainer.callbacks kept one by a metric "
            "(monitor); give last, or a file"
        )
    best = Path(found[0]["best_model_path"])
    places = [folder / best.name for folder in (path.parent, best.parent)]  # the run may have been moved
    there = next((place for place in places if place.is_file()), None)
    if there is None:
        raise UserError(f"--checkpoint: {str(best)!r}, the best of {str(run)!r}, is gone; give last, or a file")
    return there


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
        raise UserError(f"checkpoint: {str(path)!r} is damaged or no checkpoint ({reason}); use another one") from error
    if not isinstance(checkpoint, dict) or _KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"checkpoint: {str(path)!r} was not made by lit_compress")
    try:
        _check_description(checkpoint)
    except UserError as error:
        raise UserError(f"{error}; {str(path)!r} is damaged; use another one") from error
    return checkpoint


def student_from_checkpoint(checkpoint: dict[str, Any]) -> PreTrainedModel:
    """The student in its training form, in evaluation mode.

    Nothing that the checkpoint asks for is allocated before it is compared with the weights that it has.

    Raises:
        UserError: it describes no student, or another one than its weights are of.

    """
    _check_description(checkpoint)
    entry, weights = checkpoint[_KEY], _weights(checkpoint["state_dict"])
    values = json.loads(entry["config"])
    architecture: Any = getattr(transformers, entry["architecture"], None)
    known = isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)
    if not known or values.get("model_type") not in CONFIG_MAPPING:
        raise UserError(f"checkpoint: transformers {transformers.__version__} has no {entry['architecture']!r}")
    try:
        config: PretrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except Exception as error:  # whatever a foreign configuration makes Transformers raise is its own fault
        raise UserError(f"checkpoint: its configuration is damaged: {first_line(error)}") from error
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() // value.element_size()
            for value in weights.values()}  # fmt: skip
    check_size(architecture, config, sum(held.values()), entry["architecture"], "checkpoint")
    student = architecture(config)
    if (shapes := shapes_of(config)) is not None:
        apply_shapes(student, shapes)  # it started from a model that was smaller already
    rebuild(student, entry["manifest"])
    add_dense(student)
    try:
        student.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"checkpoint: its weights do not fit its own description: {first_line(error)}") from error
    give_embeddings(student)
    return student.eval()


def _check_description(checkpoint: dict[str, Any]) -> None:
    """Refuse what cannot describe a student: other types than ours, or numbers that no encoder has."""
    entry = checkpoint[_KEY]
    kinds = {"architecture": str, "config": str, "tokenizer": str, "manifest": dict}
    for name, kind in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
            raise UserError(f"checkpoint: its description has no {name}")
    if not isinstance(checkpoint["state_dict"], dict):
        raise UserError("checkpoint: it has no weights by name")
    try:
        values = json.loads(entry["config"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"checkpoint: its configuration is not JSON: {first_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UserError("checkpoint: its configuration has no model_type")
    check_settings(values, "checkpoint")


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The student's tensors, each with an element of its own in the file for each that it has."""
    own = {name.removeprefix(_PREFIX): value for name, value in state.items() if str(name).startswith(_PREFIX)}
    for name, value in own.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        if not plain or value.is_meta or value.is_complex():
            raise UserError(f"checkpoint: {name!r} is not a tensor of weights")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"checkpoint: {name!r} says that it is larger than what is stored of it")
    return own
