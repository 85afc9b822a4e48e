"""A tokenizer with fewer tokens, that still cuts a corpus into the same ones.

It works on ``tokenizer.json``, the description that every fast tokenizer has. Why the cuts stay the same, by kind:

- WordPiece takes the longest token at each place; what it took is kept. Of a word that it gave up on, whatever it took
  before giving up is kept too: without it, a shorter token might get further.
- Byte pair encoding merges in a fixed order; with a token all tokens that it can be merged from are kept, and with them
  their merges. Other merges were never made in the corpus.
- Unigram takes the most probable cut; it is still there, and no other has become more probable. What an unknown
  character costs follows from the least probable token, so that one is kept as well.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer

from lit_compress.errors import UserError

__all__ = ["kept_ids", "trimmed"]

_BATCH = 1000  # texts


def kept_ids(tokenizer: Tokenizer, texts: Iterable[str], characters: bool = True) -> list[int]:
    """Ids that a corpus needs, in ascending order.

    Args:
        tokenizer: the backend of a fast tokenizer; without truncation and padding.
        texts: the corpus.
        characters: keep every token of a single character or byte, so that other words can still be spelled.

    Raises:
        UserError: a kind of tokenizer that is not known here.

    """
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    kind = model["type"]
    vocabulary: dict[str, int] = _vocabulary(model)
    needed = {int(token["id"]) for token in description.get("added_tokens") or []}
    unknown = model.get("unk_token")
    used: set[int] = set()
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=True):
            used.update(encoding.ids)
        if kind == "WordPiece":
            needed |= _given_up(tokenizer, batch, model, vocabulary)
    if characters:
        prefix = model.get("continuing_subword_prefix") or ""
        needed |= {i for token, i in vocabulary.items() if _is_character(token, prefix)}
    if kind == "BPE":
        used |= _merged_from(used | needed, model, vocabulary)
    if kind == "Unigram":
        scores = [score for _, score in model["vocab"]]
        needed |= {model["unk_id"], scores.index(min(scores))} - {None}
    if unknown in vocabulary:
        needed.add(vocabulary[unknown])
    return sorted(used | needed)


def trimmed(tokenizer: Tokenizer, keep: list[int]) -> Tokenizer:
    """The tokenizer with the tokens of some ids, renumbered in their order.

    Args:
        tokenizer: the backend of a fast tokenizer.
        keep: ids in ascending order, with all added tokens among them.

    Raises:
        UserError: a kind of tokenizer that is not known here.

    """
    description = copy.deepcopy(json.loads(tokenizer.to_str()))
    model, new = description["model"], {old: index for index, old in enumerate(keep)}
    _vocabulary(model)
    if model["type"] == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if set(_merge(merge, model)) <= set(model["vocab"])]
    for token in description.get("added_tokens") or []:
        token["id"] = new[token["id"]]
    if padding := description.get("padding"):
        padding["pad_id"] = new[padding["pad_id"]]
    _renumber(description.get("post_processor"), new)
    return Tokenizer.from_str(json.dumps(description))


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] in ("WordPiece", "BPE"):
        return model["vocab"]
    if model["type"] == "Unigram":
        return {token: index for index, (token, _) in enumerate(model["vocab"])}
    raise UserError(f"--model: its tokenizer is a {model['type']}; known are WordPiece, BPE and Unigram")


def _renumber(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """Ids in what puts special tokens around a text."""
    if processor is None:
        return
    for inner in processor.get("processors") or []:
        _renumber(inner, new)
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new[old] for old in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], new[processor[name][1]]]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_character(token: str, prefix: str) -> bool:
    """One character, alone or within a word, or a byte of byte fallback."""
    return len(token) == 1 or len(token.removeprefix(prefix)) == 1 or (len(token) == 6 and token.startswith("<0x"))


def _merge(merge: Any, model: dict[str, Any]) -> tuple[str, str, str]:
    """Left, right and result; older files write a merge as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _merged_from(used: set[int], model: dict[str, Any], vocabulary: dict[str, int]) -> set[int]:
    """Ids of all tokens that the used ones can have been merged from."""
    parts: dict[str, set[str]] = {}
    for merge in model["merges"]:
        left, right, result = _merge(merge, model)
        parts.setdefault(result, set()).update((left, right))
    tokens = {index: token for token, index in vocabulary.items()}
    found: set[str] = set()
    waiting = [tokens[index] for index in used if index in tokens]
    while waiting:
        token = waiting.pop()
        if token not in found:
            found.add(token)
            waiting += parts.get(token, ())
    return {vocabulary[token] for token in found if token in vocabulary}


def _given_up(tokenizer: Tokenizer, texts: list[str], model: dict[str, Any], vocabulary: dict[str, int]) -> set[int]:
    """Ids of what WordPiece took of words before it found that they cannot be written with its tokens."""
    prefix, most = model["continuing_subword_prefix"], model["max_input_chars_per_word"]
    normalizer: Any = tokenizer.normalizer
    splitter: Any = tokenizer.pre_tokenizer
    found: set[int] = set()
    for text in texts:
        text = text if normalizer is None else normalizer.normalize_str(text)
        words = [(text, None)] if splitter is None else splitter.pre_tokenize_str(text)
        for word, _ in words:
            taken: list[int] = []
            start = 0
            while start < len(word) <= most:
                begin = prefix if start else ""
                ends = (end for end in range(len(word), start, -1) if begin + word[start:end] in vocabulary)
                if (end := next(ends, None)) is None:
                    found.update(taken)
                    break
                taken.append(vocabulary[begin + word[start:end]])
                start = end
    return found
