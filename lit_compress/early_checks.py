"""What is wrong with the files of a `fit`, before the seconds that it takes to import what trains.

The data module says the same, and more, once there is one. What is not understood here is left to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_compress.shipped_configs import config_path
from lit_compress.sources import resolve_source
from lit_compress.text_files import (
    BUILDERS,
    TYPED,
    check_json,
    check_text,
    column_names,
    file_suffix,
    header_hint,
    require_columns,
)

__all__ = ["check_files"]

# Columns that a class of `lit_compress.data` reads unless an option names others.
COLUMNS: dict[str, dict[str, Any]] = {
    "TextClassification": {"text_columns": ("text",), "label_column": "label"},
    "MultiLabelClassification": {"text_columns": ("text",), "label_column": "labels"},
    "MaskedLanguageModeling": {"text_column": "text"},
    "QuestionAnswering": {},
    "TokenClassification": {},
}
_READING = ("encoding", "encoding_errors", "columns", "delimiter", "label_columns")
_SPLITS = ("train", "val", "test", "predict")
_NO_FIT = ("--print_config", "--help", "-h")


def check_files(words: Sequence[str]) -> None:
    """Look at the beginning of each file that the data is to be read from.

    Args:
        words: of the command line, after `fit`.

    Raises:
        UserError: a file is missing, empty, unreadable, or has not the columns that it needs.

    """
    if any(word.startswith(_NO_FIT) or ".help" in word for word in words):
        return
    try:
        settings = _data_of(words)
    except (OSError, UnicodeError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return  # the parser says what is wrong about a configuration
    kind = str(settings.get("class_path", "TextClassification")).removeprefix("lit_compress.data.")
    if kind not in COLUMNS:
        return
    files = {split: settings.get(f"{split}_file") for split in _SPLITS}
    options = COLUMNS[kind] | {name: settings[name] for name in (*COLUMNS[kind], *_READING) if name in settings}
    if all(_is_text(value) for value in (*options.values(), *files.values())):
        for split, source in files.items():
            if source:
                _check(kind, options, source, split)


def _check(kind: str, options: Mapping[str, Any], source: str, split: str) -> None:
    key = f"data.{split}_file"
    suffix = file_suffix(Path(source))
    encoding = options.get("encoding", "utf-8-sig"), options.get("encoding_errors", "strict")
    if Path(resolve_source(source, key)).is_dir():
        return
    if kind == "QuestionAnswering" and suffix == ".json":
        check_json(source, key, *encoding)
    elif kind == "TokenClassification" and suffix not in TYPED:
        check_text(source, key, "a file", *encoding)
    elif kind == "MaskedLanguageModeling" and (suffix == ".txt" or suffix not in BUILDERS):
        check_text(source, key, "a file or a folder of .txt files", *encoding)
    else:
        names = column_names(source, key, _list(options.get("columns")), *encoding, options.get("delimiter"))
        for name, column in _columns(kind, options, split) if names else ():
            hint = "" if name == "text_column" else header_hint(names or ())
            require_columns(names or (), source, {name: column}, hint)


def _columns(kind: str, options: Mapping[str, Any], split: str) -> Iterator[tuple[str, str]]:
    """The options that name columns, each with a column that must be there."""
    for name in COLUMNS[kind]:
        if name == "label_column" and split == "predict":
            continue
        option = "label_columns" if name == "label_column" and options.get("label_columns") else name
        yield from ((option, column) for column in _list(options[option]))


def _data_of(words: Sequence[str]) -> dict[str, Any]:
    """What a command line and its configurations say about the data: `class_path`, and its options.

    Raises:
        LookupError: it is said in a form that the parser alone reads.

    """
    found: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        option, given, value = word.partition("=")
        if option not in ("-c", "--config", "--data") and not option.startswith("--data."):
            continue
        value = value if given else next(rest, "")
        if option in ("-c", "--config"):
            found |= _section(yaml.safe_load(Path(config_path(value, "--config")).read_text(encoding="utf-8")))
        elif option in ("--data", "--data.class_path"):
            found["class_path"] = value
        else:
            name = option.removeprefix("--data.").removeprefix("init_args.")
            if name.endswith("+") or name in ("init_args", "dict_kwargs"):
                raise LookupError(option)
            found[name] = yaml.safe_load(value) if value.startswith("[") or value == "null" else value
    return found


def _section(content: dict[str, Any]) -> dict[str, Any]:
    data: Any = content.get("data") or {}
    section: dict[str, Any] = {"class_path": data} if isinstance(data, str) else data
    if {*section} - {"class_path", "init_args"} or any(str(key).startswith("data.") for key in content):
        raise LookupError("data")
    named = {"class_path": section["class_path"]} if "class_path" in section else {}
    return (section.get("init_args") or {}) | named


def _is_text(value: Any) -> bool:
    return value is None or all(isinstance(each, str) for each in _list(value))


def _list(value: Any) -> list[Any]:
    """One value or several as several."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
