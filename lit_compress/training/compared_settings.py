"""The settings of a run that people compare between runs, by short names."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_compress.data.options import TextOptions
from lit_compress.data.text_data import TextData

__all__ = ["compared_settings"]

# Compared even where they have their default.
_ALWAYS = {"learning_rate", "batch_size", "max_length", "sparsity", "pretrained", "teacher"}
# How data is found, loaded and read: no settings of the training.
_LOADING = {
    *("test_file", "predict_file", "hub_config", "hub_val_split", "tokenizer", "encoding", "encoding_errors"),
    *("eval_batch_size", "eval_limit", "num_workers", "cache_dir", "columns", "delimiter", "labels", "task", "compile"),
    *("teacher_cache", "teacher_cache_dtype", "label_column", "label_map"),
}


def compared_settings(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What a person would compare: what was chosen, and the usual few also where they have their default.

    Example:
        >>> strategy = {"class_path": "lit_compress.MagnitudePruning", "init_args": {"sparsity": 0.9, "ignore": []}}
        >>> compared_settings({"compression": [strategy], "seed_everything": 3, "trainer": {"max_epochs": 2}})
        {'MagnitudePruning.sparsity': 0.9, 'seed': 3, 'max_epochs': 2}

    """
    found = _options(settings.get("model")) | _options(settings.get("data"))
    seen: Counter[str] = Counter()
    for entry in settings.get("compression") or []:
        name = entry["class_path"].rpartition(".")[2]
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name} {seen[name]}"
        found |= _options(entry, f"{name}.") or {name: True}
    trainer = settings.get("trainer") or {}
    ends = {"seed": settings.get("seed_everything")} | {key: trainer.get(key) for key in ("max_epochs", "max_steps")}
    return found | {key: value for key, value in ends.items() if value not in (None, -1)}


def _options(entry: Any, prefix: str = "") -> dict[str, str | int | float]:
    """Those of a class, without what has its default."""
    if not isinstance(entry, Mapping) or "class_path" not in entry:
        return {}
    defaults, found = _defaults(entry["class_path"]), {}
    for key, value in (entry.get("init_args") or {}).items():
        if key not in _LOADING:
            found |= _scalars(value, key, prefix, defaults.get(key))
    return found


def _scalars(value: Any, key: str, prefix: str, default: Any) -> dict[str, str | int | float]:
    if isinstance(value, Mapping) and "class_path" in value:  # a distillation term, an importance
        return {f"{prefix}{key}": value["class_path"].rpartition(".")[2]} | _options(value, f"{prefix}{key}.")
    if isinstance(value, Mapping):  # options of a dataclass, such as the optimization, or named terms
        pairs = ((name, each, getattr(default, name, None)) for name, each in value.items())
        return {k: v for name, each, usual in pairs for k, v in _scalars(each, name, prefix, usual).items()}
    if callable(default) and isinstance(value, str):  # a function by its import path
        value, default = value.rpartition(".")[2], getattr(default, "__name__", None)
    if not isinstance(value, str | int | float) or (value == default and key not in _ALWAYS):
        return {}
    if isinstance(value, str) and Path(value).is_absolute():
        value = "/".join(Path(value).parts[-2:])
    return {f"{prefix}{key}": value}


def _defaults(class_path: str) -> dict[str, Any]:
    """Of the constructor of a class, and of the base classes that it passes options on to."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(import_module(module), name) if module else None
    takes_options = isinstance(kind, type) and issubclass(kind, TextData)
    found: dict[str, Any] = _signature(TextOptions.__init__) if takes_options else {}
    for base in reversed(kind.__mro__ if isinstance(kind, type) else ()):
        if "__init__" in vars(base) and base is not object:
            found |= _signature(base.__init__)
    return found


def _signature(constructor: Callable[..., None]) -> dict[str, Any]:
    return {key: each.default for key, each in inspect.signature(constructor).parameters.items()}
