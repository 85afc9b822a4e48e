"""Documents to sequences of tokens: whole sentences one after the other, or pairs of segments."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

__all__ = ["group_documents", "pack_sentences", "segment_pairs", "split_sentences"]

_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?=[\"'(\[]*[A-Z0-9])")

Sentences = list[list[int]]


def split_sentences(text: str) -> list[str]:
    """Sentences by their punctuation; good enough to cut at, not meant to be right about every "Dr.".

    Example:
        >>> split_sentences("It was good. Was it? Yes , it was .")
        ['It was good.', 'Was it?', 'Yes , it was .']

    """
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def group_documents(texts: Iterable[str], by_line: bool) -> list[str]:
    """Documents from lines: each line is one, or those between blank lines are.

    Example:
        >>> group_documents(["a", "b", " ", "c"], by_line=False)
        ['a b', 'c']

    """
    documents: list[list[str]] = [[]]
    for text in texts:
        if text.strip():
            documents[-1].append(text.strip())
        if by_line or not text.strip():
            documents.append([])
    return [" ".join(lines) for lines in documents if lines]


def pack_sentences(documents: Sequence[Sentences], room: int, separator: int) -> Iterator[list[int]]:
    """Sequences of at most ``room`` tokens: sentences one after the other, across documents with a separator between.

    RoBERTa's ``FULL-SENTENCES`` (arXiv 1907.11692, section 4.2). Only a sentence longer than ``room`` is cut.

    Args:
        documents: token ids of each document's sentences.
        room: longest sequence, without the special tokens at its ends.
        separator: token between documents.

    Example:
        >>> list(pack_sentences([[[1, 2], [3]], [[4, 5, 6]]], 4, 0))
        [[1, 2, 3], [4, 5, 6]]
        >>> list(pack_sentences([[[1]], [[2]]], 4, 0))
        [[1, 0, 2]]

    """
    sequence: list[int] = []
    for document in documents:
        border = [separator] if sequence else []
        for sentence in document:
            for start in range(0, len(sentence), room):
                piece = sentence[start : start + room]
                if len(sequence) + len(border) + len(piece) > room:
                    yield sequence
                    sequence, border = [], []
                sequence += border + piece
                border = []
    if sequence:
        yield sequence


def segment_pairs(
    documents: Sequence[Sentences],
    room: int,
    generator: np.random.Generator,
    random_next: float = 0.5,
    short: float = 0.1,
) -> Iterator[tuple[list[int], list[int], int]]:
    """First segment, second segment, and whether the second is from elsewhere (1) or follows the first (0).

    BERT's own making of pairs (arXiv 1810.04805): sentences of a document are collected up to a length, split at a
    random place, and with ``random_next`` the second part comes from another document; the part not used is used next.

    Args:
        documents: token ids of each document's sentences.
        room: longest pair, without special tokens.
        generator: draws lengths, splits and other documents.
        random_next: probability of a second segment from another document.
        short: probability that a pair aims at a random shorter length.

    """
    documents = [document for document in documents if document]
    for number, document in enumerate(documents):
        target = _target(room, short, generator)
        chunk: Sentences = []
        position = 0
        while position < len(document):
            chunk.append(document[position])
            position += 1
            if position < len(document) and sum(map(len, chunk)) < target:
                continue
            split = int(generator.integers(1, len(chunk))) if len(chunk) > 1 else 1
            first = [token for sentence in chunk[:split] for token in sentence]
            # A sentence alone has nothing that follows it.
            elsewhere = len(documents) > 1 and (
                generator.random() < random_next or (len(chunk) == 1 and random_next > 0)
            )
            if elsewhere:
                other = documents[(number + int(generator.integers(1, len(documents)))) % len(documents)]
                start = int(generator.integers(len(other)))
                second = _up_to(other[start:], max(target - len(first), 1))
                position -= len(chunk) - split
            else:
                second = [token for sentence in chunk[split:] for token in sentence]
            if first and second:
                yield *_shortened(first, second, room, generator), int(elsewhere)
            chunk, target = [], _target(room, short, generator)


def _target(room: int, short: float, generator: np.random.Generator) -> int:
    return int(generator.integers(2, room + 1)) if generator.random() < short else room


def _up_to(sentences: Sentences, length: int) -> list[int]:
    tokens: list[int] = []
    for sentence in sentences:
        tokens += sentence
        if len(tokens) >= length:
            break
    return tokens


def _shortened(
    first: list[int], second: list[int], room: int, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Both cut at a random end, the longer one first, until they fit."""
    while (surplus := len(first) + len(second) - room) > 0:
        longer = first if len(first) > len(second) else second
        # Down to the other's length at once, then in turns: as token by token, but not as slow.
        count = min(max(abs(len(first) - len(second)), 1), surplus)
        front = int(generator.binomial(count, 0.5))
        longer[:] = longer[front : len(longer) - (count - front)]
    return first, second
