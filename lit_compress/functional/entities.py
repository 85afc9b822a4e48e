"""Entities in a sequence of tags: IOB1, IOB2 and BIOES, read by the rules of CoNLL's evaluation script."""

from collections.abc import Sequence

__all__ = ["Entity", "entities", "is_entity_tag", "write_tags"]

Entity = tuple[str, int, int]


def entities(tags: Sequence[str]) -> list[Entity]:
    """Kind, first word and word after the last of every entity.

    ``B-`` and ``S-`` always begin one; ``I-`` and ``E-`` do so after ``O``, after an end, and after another kind. So
    one rule reads all three schemes, and a model's impossible sequences as CoNLL's script does.

    Example:
        >>> entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
        [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]

    """
    found: list[Entity] = []
    start, last, last_kind = -1, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        begins = prefix != "O" and (prefix in "BS" or last in "OES" or kind != last_kind)
        if start >= 0 and (begins or prefix == "O"):
            found.append((last_kind, start, position))
            start = -1
        if begins:
            start = position
        last, last_kind = prefix, kind
    return found


def write_tags(tags: Sequence[str], scheme: str) -> list[str]:
    """The same entities in another scheme, ``IOB2`` or ``BIOES``.

    Example:
        >>> write_tags(["I-PER", "I-PER", "B-PER", "O"], "BIOES")
        ['B-PER', 'E-PER', 'S-PER', 'O']

    """
    written = ["O"] * len(tags)
    for kind, start, end in entities(tags):
        written[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
        if scheme == "BIOES":
            written[end - 1] = f"S-{kind}" if end - start == 1 else f"E-{kind}"
    return written


def is_entity_tag(tag: str) -> bool:
    """Whether a tag can be part of IOB1, IOB2 or BIOES (a part of speech is not).

    Example:
        >>> [is_entity_tag(tag) for tag in ("O", "B-PER", "NN", "I-")]
        [True, True, False, False]

    """
    return tag == "O" or (tag[:2] in ("B-", "I-", "E-", "S-") and len(tag) > 2)
