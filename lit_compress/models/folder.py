"""Load a folder with the head that it says it has, after looking at what it says: nothing in it is believed.

A folder from elsewhere may ask for a model of any size, in its configuration or in the header of its weights, and may
name files outside of itself. What it asks for is compared with what its files hold before any of it is built.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.errors import UserError, first_line
from lit_compress.models.load import load_config, quiet_transformers
from lit_compress.models.packed import install_packed, packed_of
from lit_compress.models.sentence_embedding import give_embeddings
from lit_compress.models.shapes import apply_shapes, shapes_of
from lit_compress.sentence_settings import CROSS_ENCODER_KEY, SENTENCE_KEY, cross_encoder_settings
from lit_compress.sources import check_safetensors

__all__ = ["check_settings", "check_size", "load_whole_model", "model_outline"]

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_MOST_BYTES = 2**24  # of a configuration, or of an index of files
_MOST_DEPTH = 32
# Any number of a configuration, then what is counted in modules or in names rather than in elements of a tensor.
_MOST = 2**24
_FEW = 2**8
_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_hidden_groups", "inner_group_num")
_MOST_LABELS = 2**17
_POOLER = "pooler."  # of an encoder without a head
_BUFFERS = 2**20  # elements that a model makes itself, positions for example, and that no file has


def load_whole_model(folder: str, key: str) -> PreTrainedModel:
    """A model with the head that its configuration names, in fp32, from safetensors, with every weight from its file.

    Args:
        folder: a Hugging Face folder, also one of this package with other shapes or sparse weights.
        key: option named in errors.

    Raises:
        UserError: no such folder, one that is damaged, or one whose configuration and weights do not belong together.

    """
    architecture: Any = type(model_outline(folder, key))
    try:
        with quiet_transformers():
            model, info = architecture.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except Exception as error:  # whatever a foreign folder makes Transformers raise is that folder's fault
        raise UserError(f"{key}: {folder!r} cannot be loaded: {first_line(error)}") from error
    try:
        give_embeddings(model)
        if (kept := cross_encoder_settings(model.config)) is not None:
            setattr(model.config, CROSS_ENCODER_KEY, kept)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    missing = {str(entry) for entry in info["missing_keys"]}
    if SENTENCE_KEY in vars(model.config) and {name for name in missing if name.startswith(_POOLER)}:
        # Vectors of texts are not made of it. What a file lacks is not made up here and saved as if it had been there.
        model.pooler = None
        missing = {name for name in missing if not name.startswith(_POOLER)}
    if lacking := missing | {str(entry) for entry in info.get("mismatched_keys") or ()}:
        raise UserError(f"{key}: {folder!r} has no {min(lacking)} of the shape that its configuration says")
    return model.eval()


def model_outline(folder: str, key: str) -> PreTrainedModel:
    """The model of a folder on the device ``meta``: modules and shapes, of which no weight was read.

    Args:
        folder: a Hugging Face folder, also one of this package with other shapes or sparse weights.
        key: option named in errors.

    Raises:
        UserError: no such folder, or its configuration asks for more than its files hold.

    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{key}: {folder!r} is not a folder; give one with a config.json and a model.safetensors")
    _check_config(path, key)
    config = load_config(folder, key)
    check_safetensors(folder, config.architectures, key)
    files = _weight_files(path, key)
    architecture = _architecture(config, folder, key)
    return check_size(architecture, config, _held(files, folder, key), folder, key)


def _check_config(folder: Path, key: str) -> None:
    content = _read_json(folder / _CONFIG, key)
    check_settings(content, key)
    explicit = content.get("transformers_weights")
    if explicit is not None and not _is_plain_name(explicit):
        raise UserError(f"{key}: {_CONFIG} names {explicit!r}, a file outside of its folder")


def check_settings(content: dict[str, Any], key: str) -> None:
    """Refuse settings of a model that no encoder has: numbers that would take hours or all memory, endless depth.

    Args:
        content: of a ``config.json``.
        key: option named in errors.

    Raises:
        UserError: the first of them.

    """
    for name, value, depth in _walk(content):
        if depth > _MOST_DEPTH:
            raise UserError(f"{key}: {_CONFIG} is nested deeper than {_MOST_DEPTH}")
        most = _FEW if name in _COUNTS else _MOST_LABELS if name in ("num_labels", "_num_labels") else _MOST
        if isinstance(value, int) and abs(value) > most:
            raise UserError(f"{key}: {_CONFIG}: {name} is {value!r} and may be {most} at most")


def _weight_files(folder: Path, key: str) -> list[Path]:
    if not (folder / _INDEX).is_file():
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"{key}: {str(folder)!r} has no model.safetensors; other kinds of weights are not read")
        return [folder / "model.safetensors"]
    weights = _read_json(folder / _INDEX, key).get("weight_map")
    names = sorted({str(name) for name in weights.values()}) if isinstance(weights, dict) else []
    if outside := [name for name in names if not _is_plain_name(name)]:
        raise UserError(f"{key}: {_INDEX} names {outside[0]!r}, a file outside of its folder")
    if not names or (missing := [name for name in names if not (folder / name).is_file()]):
        raise UserError(f"{key}: {_INDEX} names {missing[0] if names else 'no file'!r}, which is not there")
    return [folder / name for name in names]


def _architecture(config: PretrainedConfig, folder: str, key: str) -> Any:
    names: Any = config.architectures
    name = str(names[0]) if isinstance(names, list) and names else ""
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)) or found.config_class is None:
        raise UserError(
            f"{key}: {folder!r} is a {name or 'model without a name'!r}, which is not an encoder with a head"
        )
    if not isinstance(config, found.config_class):
        raise UserError(f"{key}: {folder!r} is a {name} with the configuration of a {config.model_type}")
    return found


def _held(files: list[Path], folder: str, key: str) -> int:
    """Elements of the tensors in files."""
    held = 0
    try:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (it is not a mapping)
                    # A bitmap stands for eight elements with each of its bytes.
                    held += math.prod(opened.get_slice(name).get_shape()) * (8 if name.endswith("_bitmap") else 1)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{key}: the weights in {folder!r} are damaged ({error}); export or download them again"
        ) from error
    return held


def check_size(architecture: Any, config: PretrainedConfig, held: int, source: str, key: str) -> PreTrainedModel:
    """Compare the elements that a configuration asks for with those that there are, before any is allocated.

    Args:
        architecture: class of the model.
        config: of the model.
        held: elements of the stored tensors.
        source: folder or file named in errors.
        key: option named in errors.

    Returns:
        The model on the device ``meta``.

    Raises:
        UserError: it asks for more, or describes no model.

    """
    try:
        with torch.device("meta"):
            skeleton = architecture(config)
            if (shapes := shapes_of(config)) is not None:
                apply_shapes(skeleton, shapes)
            if (packed := packed_of(config)) is not None:
                install_packed(skeleton, packed)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except Exception as error:
        raise UserError(f"{key}: {source!r} describes no model: {first_line(error)}") from error
    tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
    asked = sum(value.numel() for name, value in skeleton.named_parameters() if name not in tied)
    asked += sum(value.numel() for _, value in skeleton.named_buffers())
    if asked > held + _BUFFERS:
        raise UserError(f"{key}: {source!r} describes a model of {asked} elements, and holds {held}")
    return skeleton


def _read_json(path: Path, key: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{key}: {str(path)!r} is larger than {_MOST_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{key}: {str(path.parent)!r} is not a model folder: it has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {str(path)!r} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{key}: {str(path)!r} is damaged: it is a {type(content).__name__} and no mapping")
    return content


def _walk(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    yield name, value, depth
    if depth > _MOST_DEPTH:
        return
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [(name, each) for each in value]
    for inner, each in pairs:
        yield from _walk(each, inner, depth + 1)


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\\" not in name
