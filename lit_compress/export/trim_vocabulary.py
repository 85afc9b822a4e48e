"""`lit_compress trim-vocabulary`: a model without the tokens that a corpus never uses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_compress.console import say
from lit_compress.data.tables import load_tokenizer
from lit_compress.data.vocabulary import kept_ids, trimmed
from lit_compress.errors import UserError, first_line
from lit_compress.export.source import from_source
from lit_compress.files import atomic_folder, check_folder
from lit_compress.models.folded import Folded
from lit_compress.models.folder import load_whole_model
from lit_compress.models.hf_folder import write_hf
from lit_compress.models.sentence_embedding import DENSE, add_dense, give_embeddings
from lit_compress.models.shapes import apply_shapes, shapes_of
from lit_compress.sources import resolve_package
from lit_compress.text_files import open_text

__all__ = ["trim_vocabulary"]

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def trim_vocabulary(
    model: str = "",
    corpus: str | list[str] = "",
    output: str = "",
    characters: bool = True,
    overwrite: bool = False,
) -> None:
    """Leave out the tokens that a corpus never uses, in tokenizer, embeddings and decoder.

    Options: :func:`lit_compress.commands.models.trim_vocabulary`.
    """
    for name, given in (("--model", model), ("--corpus", corpus), ("--output", output)):
        if not given:
            raise UserError(f"trim-vocabulary: give {name}")
    model = resolve_package(model, "--model")
    files = [corpus] if isinstance(corpus, str) else corpus
    check_folder(output, overwrite, inputs=(model, *files))
    folded = from_source(model=model)
    tokenizer: Any = folded.tokenizer
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"--model: the tokenizer in {model!r} is not a fast one; it must have a {_TOKENIZER}")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    keep = kept_ids(backend, _lines(files), characters)
    embeddings: Any = folded.model.get_input_embeddings()
    rows: int = embeddings.weight.shape[0]
    keep = sorted({*keep, *_configured(folded.model.config, rows)})
    if keep[-1] >= rows:
        raise UserError(f"--model: its tokenizer makes the id {keep[-1]} and its embeddings have {rows} rows")
    smaller = trimmed(backend, keep)
    _check_same(backend, smaller, keep, files)
    with atomic_folder(output, overwrite) as staging:
        write_hf(_trim_model(folded, keep), staging)
        _write_tokenizer(staging, smaller, keep)
        _check_loaded(load_tokenizer(str(staging), "--output"), smaller, files)
        load_whole_model(str(staging), "--output")  # what cannot be loaded must not appear
    say(f"{len(keep):,} of {rows:,} tokens are left; saved as {output}")


def _lines(files: list[str]) -> Iterator[str]:
    for name in files:
        if not Path(name).is_file():
            raise UserError(f"--corpus: {name!r} does not exist; give text files with one text a line")
        try:
            with open_text(name, "utf-8-sig", "strict") as lines:
                for line in lines:
                    yield line.rstrip("\r\n")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"--corpus: {name!r} cannot be read as UTF-8: {first_line(error)}") from error


def _configured(config: PretrainedConfig, rows: int) -> set[int]:
    """Ids that the configuration names, of padding for example."""
    values = (value for name, value in config.to_dict().items() if name.endswith("_token_id"))
    flat = (each for value in values for each in (value if isinstance(value, list) else [value]))
    return {value for value in flat if isinstance(value, int) and 0 <= value < rows}


def _trim_model(folded: Folded, keep: list[int]) -> Folded:
    """A model of the smaller vocabulary with the rows that are left; whatever else it has is the same."""
    model, index = folded.model, torch.tensor(keep)
    old: dict[str, Tensor] = model.state_dict()
    new = {position: number for number, position in enumerate(keep)}
    config: Any = type(model.config).from_dict(model.config.to_dict())
    config.vocab_size = len(keep)
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            renumbered = [new.get(each) for each in value] if isinstance(value, list) else new.get(value)
            setattr(config, name, renumbered)
    config._attn_implementation = model.config._attn_implementation
    smaller: Any = type(model)(config)
    if (shapes := shapes_of(config)) is not None:
        apply_shapes(smaller, shapes)
    if hasattr(model, DENSE):
        add_dense(smaller)
    if hasattr(model, "pooler") and model.pooler is None:
        smaller.pooler = None  # the class makes one that the model has not
    state = {name: _rows(name, old[name], tuple(value.shape), index) for name, value in smaller.state_dict().items()}
    smaller.load_state_dict(state)
    give_embeddings(smaller)
    manifest = json.loads(json.dumps(folded.manifest))
    for name, entry in manifest.get("embeddings", {}).items():
        scales = (entry.get("scales") or {}).get("weight", ())
        if len(scales) > 1 and smaller.get_submodule(name) is smaller.get_input_embeddings():
            entry["scales"]["weight"] = [scales[position] for position in keep]
            entry["weight_quantizer"]["spec"]["rows"] = len(keep)
    return Folded(model=smaller.eval(), manifest=manifest, tokenizer=folded.tokenizer)


def _rows(name: str, tensor: Tensor, shape: tuple[int, ...], keep: Tensor) -> Tensor:
    differing = [axis for axis in range(tensor.ndim) if tensor.shape[axis] != shape[axis]]
    if not differing:
        return tensor
    if len(differing) > 1 or shape[differing[0]] != len(keep):
        raise UserError(f"trim-vocabulary: {name!r} follows from the vocabulary in a way that is not known here")
    return tensor.index_select(differing[0], keep)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, keep: list[int]) -> None:
    """Put the smaller tokenizer in the place of the saved one, of which no file with old ids may stay."""
    for name in (
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "added_tokens.json",
    ):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save(str(folder / _TOKENIZER))
    path = folder / _TOKENIZER_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content.get("added_tokens_decoder"), dict):
        new = {str(old): str(number) for number, old in enumerate(keep)}
        decoder = content["added_tokens_decoder"]
        content["added_tokens_decoder"] = {new[old]: token for old, token in decoder.items() if old in new}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_same(before: Tokenizer, after: Tokenizer, keep: list[int], files: list[str]) -> None:
    for text in _lines(files):
        first, second = before.encode(text), after.encode(text)
        if first.ids != [keep[each] for each in second.ids] or first.offsets != second.offsets:
            raise UserError(f"trim-vocabulary: {text[:60]!r} would be cut into other tokens; nothing was written")


def _check_loaded(loaded: PreTrainedTokenizerBase, meant: Tokenizer, files: list[str]) -> None:
    """What Transformers builds from the written files must be what was written."""
    for number, text in enumerate(_lines(files)):
        if number == 1000:
            return
        if loaded(text, truncation=False)["input_ids"] != meant.encode(text).ids:
            raise UserError(f"trim-vocabulary: Transformers reads {_TOKENIZER} differently: {text[:60]!r}")
