"""The texts that the compressed model answers in another way than the dense one."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lightning.pytorch import LightningDataModule

from lit_compress.data.text_data import TextData
from lit_compress.report.section import Section, Table
from lit_compress.report.summary import own_name
from lit_compress.tasks import Outcomes

__all__ = ["changed", "changed_answers"]

_MOST = 20
_LETTERS = 300  # of a text


def changed_answers(before: Outcomes, after: Outcomes, data: LightningDataModule) -> dict[str, Any] | None:
    """``{"count": changed answers, "rows": [{"text", "dense", "own", "right"}]}``, at most 20.

    Those that became wrong come first; of numbers, those that moved most.

    Args:
        before: of the dense model.
        after: of the compressed model, on the same data.
        data: that both were asked about.

    Returns:
        None for a task whose answers are not words, and for a data module that has no tokenizer.

    """
    if not before.answers or not isinstance(data, TextData):
        return None
    pairs = list(zip(before.answers, after.answers, strict=True))
    units = [unit for unit, (old, new) in enumerate(pairs) if old != new]
    shown = sorted(units, key=lambda unit: _change(before, after, unit))[:_MOST]
    examples = range(len(pairs)) if after.examples is None else after.examples
    words = _words(data, {int(examples[unit]) for unit in shown})
    rows = []
    for unit in shown:
        text = words[int(examples[unit])]
        old, new, right = _shown((*pairs[unit], after.gold[unit]), text)
        joined = (" | " if isinstance(pairs[unit][0], str | float) else " ").join(text)
        rows.append({"text": joined, "dense": old, "own": new, "right": right})
    return {"count": len(units), "rows": rows}


def changed(results: Mapping[str, Any]) -> Section | None:
    """The part of a report that shows them."""
    found = results.get("changed")
    if not found or not found["rows"]:
        return None
    unit = results["comparison"]["unit"]
    shown = "all of them" if found["count"] == len(found["rows"]) else f"{len(found['rows'])} of them, worst first"
    return Section(
        name="changed",
        title="Changed predictions",
        lines=(f"{found['count']:,} of {results['comparison']['units']:,} {unit} have another prediction; {shown}:",),
        tables=(
            Table(
                header=("as the tokenizer read it", "dense", own_name(results), "right"),
                rows=[(row["text"], row["dense"], row["own"], row["right"]) for row in found["rows"]],
            ),
        ),
    )


def _change(before: Outcomes, after: Outcomes, unit: int) -> float:
    """What to sort by: how far a number moved, else how much better an answer became; the least first."""
    old, new = before.answers[unit], after.answers[unit]
    if isinstance(old, float) and isinstance(new, float):
        return -abs(old - new)
    return 0.0 if before.goodness is None or after.goodness is None else after.goodness[unit] - before.goodness[unit]


def _shown(answers: Sequence[Any], words: Sequence[str]) -> list[str]:
    """Answers of dense, of compressed and the right one as texts; of tags those that differ, each after its word."""
    old, new, _ = answers
    if isinstance(old, float):
        return [f"{answer:.3g}" for answer in answers]
    if isinstance(old, str):
        return [answer or "no answer" for answer in answers]
    places = [place for place, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    names = [words[place] if place < len(words) else f"word {place + 1}" for place in places]
    return [", ".join(f"{name} {tags[place]}" for name, place in zip(names, places, strict=True)) for tags in answers]


def _words(data: TextData, wanted: set[int]) -> dict[int, list[str]]:
    """Number of an example, in the order of the data, to its words where each has a tag, else to its texts."""
    found, number = {}, 0
    for batch in data.val_dataloader():
        starts = batch.meta.get("word_starts")
        for row, ids in enumerate(batch.inputs["input_ids"].tolist()):
            if number in wanted:
                cuts = None if starts is None else starts[row].nonzero()[:, 0].tolist()
                found[number] = _texts(data.tokenizer, ids) if cuts is None else _cut(data.tokenizer, ids, cuts)
            number += 1
    return found


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    parts = groupby(ids, key=lambda token: token == tokenizer.sep_token_id)
    texts = [tokenizer.decode(list(part), skip_special_tokens=True).strip() for _, part in parts]
    return [text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…" for text in texts if text]


def _cut(tokenizer: Any, ids: Sequence[int], starts: Sequence[int]) -> list[str]:
    ends = [*starts[1:], len(ids)]
    pieces = (ids[start:end] for start, end in zip(starts, ends, strict=True))
    return [tokenizer.decode(piece, skip_special_tokens=True).strip() for piece in pieces]
