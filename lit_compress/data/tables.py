"""Tables of text from local files, folders or the hub, as `datasets.Dataset`; and their tokenized, cached form."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_compress.data.json_dates import read_rows, without_dates
from lit_compress.errors import UserError, first_line
from lit_compress.extras import optional
from lit_compress.hub import check_hub
from lit_compress.sources import resolve_source
from lit_compress.text_files import (
    BUILDERS,
    check_text,
    column_names,
    csv_options,
    delimiter_hint,
    file_suffix,
    read_failure,
    saved_splits,
)

__all__ = [
    "cached_map",
    "generate_table",
    "load_saved",
    "load_table",
    "load_tokenizer",
    "tokenize",
]


def load_table(
    source: str,
    key: str,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8-sig",
    encoding_errors: str = "strict",
    cache_dir: str | None = None,
    delimiter: str | None = None,
    split: str = "train",
) -> Dataset:
    """Read a local file, a folder of ``save_to_disk``, or a folder of one text folder per class.

    It may be larger than memory.

    Tab-separated files are read as GLUE's are meant: no quoting, so a lone quotation mark is text. In every format
    "NA" and "null" are text, too, and dates in JSON.

    Args:
        source: ``.tsv``, ``.csv``, ``.jsonl``, ``.parquet`` (each also ``.gz``), a folder, or ``package:name/path``.
        key: config key named in errors.
        columns: names for the columns of a file without a header; None when the file has one.
        encoding: text encoding; ``utf-8-sig`` is UTF-8 with or without a byte order mark.
        encoding_errors: ``strict`` refuses bytes that are not text, ``replace`` puts a replacement character.
        cache_dir: where the Arrow copy goes; None is the `datasets` default.
        delimiter: between the fields of ``.csv``, ``.tsv`` and ``.txt``; None is a comma in ``.csv``, else a tab.
        split: which split to take of a saved ``DatasetDict``.

    Raises:
        UserError: missing, empty, unreadable or of an unknown kind.

    """
    names = column_names(source, key, columns, encoding, encoding_errors, delimiter)
    path = Path(resolve_source(source, key))
    if saved_splits(source, key) is not None:
        return load_saved(source, key, split)
    if path.is_dir():
        return _load_folder(path, source, key, encoding, encoding_errors, cache_dir)
    suffix = file_suffix(path)
    builder = BUILDERS[suffix]
    options: dict[str, Any] = {}
    if builder != "parquet":
        options = {"encoding": encoding, "encoding_errors": encoding_errors}
    if builder == "csv":
        options |= csv_options(suffix, columns, delimiter)
        # Every column is text: types guessed from values would turn "007" into 7, and differ between files.
        options["features"] = Features({name: Value("string") for name in names or ()})
    try:
        table = load_dataset(builder, data_files=str(path), split="train", cache_dir=cache_dir, **options)
    except (DatasetGenerationError, OSError, ValueError, EOFError) as error:
        hint = delimiter_hint([*options.get("features", ())])
        raise UserError(f"{key}: {source!r} cannot be read as {suffix[1:]}: {read_failure(error)}{hint}") from error
    assert isinstance(table, Dataset)
    if builder == "json" and (features := without_dates(table.features)) != table.features:
        # No cast, which would write a date in another way than the file does.
        names = {"names": (*features,)}
        return generate_table(read_rows, source, key, cache_dir, features, encoding, encoding_errors, **names)
    if len(table) == 0:
        raise UserError(f"{key}: {source!r} has a header and no rows")
    return table


def load_saved(source: str, key: str, split: str) -> Dataset:
    """The rows of a folder of ``save_to_disk``.

    Args:
        source: folder of a ``Dataset`` or a ``DatasetDict``.
        key: config key named in errors.
        split: which of a ``DatasetDict``.

    Raises:
        UserError: there is no such split, or the files cannot be read.

    """
    splits = saved_splits(source, key)
    if splits and split not in splits:
        raise UserError(
            f"{key}: {source!r} has no split {split!r}; it has {', '.join(splits)}, each of which is a folder that can "
            "be given"
        )
    try:
        saved = load_from_disk(resolve_source(source, key))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {source!r} cannot be read: {read_failure(error)}") from error
    table = saved[split] if isinstance(saved, DatasetDict) else saved
    if len(table) == 0:
        raise UserError(f"{key}: {source!r} has no rows")
    return table


def load_tokenizer(source: str, key: str, words: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a hub name, a folder or a package.

    Args:
        source: where it is.
        key: config key named in errors.
        words: read words that come one by one as words of a sentence, with a space before each (byte-level BPE).

    Raises:
        UserError: there is none.

    """
    path = resolve_source(source, key)
    if sentencepiece := _sentencepiece_file(Path(path)):
        # Without it Transformers reads the file as one of tiktoken's, and asks for that.
        optional(
            "sentencepiece", "sentencepiece", f"{key}: {source!r}, which has {sentencepiece} and no tokenizer.json,"
        )
    check_hub(path, key)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if words and getattr(tokenizer, "add_prefix_space", None) is False:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, add_prefix_space=True)
            _put_spaces(tokenizer)
    except Exception as error:  # whatever a foreign folder makes Transformers raise is that folder's fault
        raise UserError(f"{key}: no tokenizer in {source!r}: {first_line(error)}") from error
    # Where there are no files, Transformers makes one of special tokens alone up from the configuration.
    if {*tokenizer.get_vocab()} <= {*tokenizer.all_special_tokens}:
        raise UserError(f"{key}: no tokenizer in {source!r}; give a folder with its files, or a hub name")
    return tokenizer


def _sentencepiece_file(folder: Path) -> str | None:
    """The name of a tokenizer's SentencePiece file; None where there is none, or a tokenizer.json as well."""
    if (folder / "tokenizer.json").is_file():
        return None
    names = ("spm.model", "spiece.model", "sentencepiece.bpe.model")
    return next((name for name in names if (folder / name).is_file()), None)


def _put_spaces(tokenizer: Any) -> None:
    """Do what ``add_prefix_space`` says where Transformers (5.23) does not: in its class for any tokenizer.json."""
    backend = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    before = content["pre_tokenizer"] or {}
    if before.get("type") == "ByteLevel" and not before["add_prefix_space"]:
        before["add_prefix_space"] = True
        backend.pre_tokenizer = Tokenizer.from_str(json.dumps(content)).pre_tokenizer


def tokenize(
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Sequence[str],
    max_length: int,
    description: str,
    label: tuple[Callable[[dict[str, list[Any]]], list[Any]], Any] | None = None,
) -> Dataset:
    """Token ids and their ``length`` for each row, and ``labels``; cached as Arrow.

    The cache key is the content: rows, tokenizer, columns, length and labels. (Left to itself `datasets` hashes the
    pickled tokenizer, which changes with its first use.)

    Args:
        table: rows of text.
        tokenizer: turns one or two texts into ids.
        text_columns: one column, or two for pairs.
        max_length: longest input in tokens.
        description: what the progress bar says.
        label: the function that turns columns of rows into a target for each, and what that function depends on.

    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [[str(text) for text in rows[column]] for column in text_columns]
        pairs = texts[1] if len(texts) > 1 else None
        encoded = dict(tokenizer(texts[0], pairs, truncation=True, max_length=max_length))
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        if label is not None:
            encoded["labels"] = label[0](rows)
        return encoded

    depends_on = [list(text_columns), max_length, label and label[1], "tokenize-1"]
    return cached_map(table, encode, tokenizer, depends_on, description)


def cached_map(
    table: Dataset,
    function: Callable[..., dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    depends_on: Any,
    description: str,
    with_indices: bool = False,
) -> Dataset:
    """New columns in the place of the old ones, cached as Arrow under what they follow from.

    Args:
        table: rows.
        function: from columns of some rows (and their numbers) to new columns, not necessarily as many rows.
        tokenizer: part of the key.
        depends_on: JSON types; whatever else the result depends on, and a version of the function.
        description: what the progress bar says.
        with_indices: whether the function takes the rows' numbers.

    """
    # Two tokenizers of one vocabulary differ in what they give: DistilBERT's has no token types.
    reads = [_vocabulary_of(tokenizer), tokenizer.model_input_names, tokenizer.truncation_side]
    fingerprint = Hasher.hash([table._fingerprint, reads, depends_on])
    return table.map(
        function,
        batched=True,
        with_indices=with_indices,
        remove_columns=table.column_names,
        new_fingerprint=fingerprint,
        desc=description,
    )


def generate_table(
    function: Callable[..., Iterator[dict[str, Any]]],
    source: str,
    key: str,
    cache_dir: str | None,
    features: Features,
    encoding: str,
    errors: str,
    **options: Any,
) -> Dataset:
    """Rows that ``function(path, encoding, errors, **options)`` yields from a file, cached until the file changes.

    Raises:
        UserError: what the function raises, or that the file is missing, empty or no text.

    """
    path = check_text(source, key, "a file", encoding, errors)
    # No list: `datasets` takes a list among the arguments for shards and calls the function once for each entry.
    stamp = f"{path.stat().st_mtime_ns} {path.stat().st_size}"
    arguments = {"path": str(path), "stamp": stamp, "encoding": encoding, "errors": errors, **options}
    try:
        table = Dataset.from_generator(function, features, cache_dir=cache_dir, gen_kwargs=arguments)  # type: ignore[arg-type]
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise UserError(f"{key}: {cause}") from error
        raise UserError(f"{key}: {source!r} cannot be read: {read_failure(error)}") from error
    except ValueError as error:  # what `datasets` makes of a generator that yields nothing
        raise UserError(f"{key}: {source!r} has no rows") from error
    assert isinstance(table, Dataset)
    return table


def _vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return Hasher.hash([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    # Truncation and padding are set by each call and are not a property of the tokenizer.
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    text = backend.to_str()
    if truncation:
        backend.enable_truncation(**truncation)
    if padding:
        backend.enable_padding(**padding)
    return text


def _load_folder(
    folder: Path, source: str, key: str, encoding: str, encoding_errors: str, cache_dir: str | None
) -> Dataset:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [(str(path), name) for name in classes for path in sorted((folder / name).glob("*.txt"))]
    if not files:
        raise UserError(f"{key}: the folder {source!r} has no class folders with .txt files")

    # Sizes and times are part of the arguments so that `datasets` notices a changed file and reads it again.
    stamps = [(path, name, Path(path).stat().st_mtime_ns, Path(path).stat().st_size) for path, name in files]
    options = {"files": stamps, "encoding": encoding, "errors": encoding_errors}
    try:
        table = Dataset.from_generator(_read_texts, gen_kwargs=options, cache_dir=cache_dir)  # type: ignore[arg-type]
    except DatasetGenerationError as error:
        raise UserError(f"{key}: a file in {source!r} cannot be read as {encoding}: {read_failure(error)}") from error
    assert isinstance(table, Dataset)
    return table


def _read_texts(files: list[tuple[str, str, int, int]], encoding: str, errors: str) -> Iterator[dict[str, str]]:
    for path, name, *_ in files:
        yield {"text": Path(path).read_text(encoding=encoding, errors=errors), "label": name}
