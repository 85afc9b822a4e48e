"""Questions and paragraphs of SQuAD as rows for rerankers and for sentence embeddings.

    python -m tools.squad_ranking --squad squad_v1.1_dev --output squad

`--squad` is a folder with ``train_part.json.gz`` and ``eval_part.json.gz``, whose articles differ.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from lit_compress.files import atomic_file

__all__ = ["main", "write_rows"]

_PARTS = {"train": "train_part.json.gz", "dev": "eval_part.json.gz"}


def write_rows(squad: Path, output: Path, split: str, questions: int, others: int) -> None:
    """Write ``rerank-SPLIT.jsonl`` (question, passage, label) and ``retrieve-SPLIT.jsonl`` (question, passage).

    Args:
        squad: folder with the two parts.
        output: folder to write into.
        split: ``train`` or ``dev``.
        questions: how many, drawn from all with a fixed seed.
        others: passages of the same article, drawn likewise, that a reranker has beside the one that answers.

    """
    with gzip.open(squad / _PARTS[split], "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    draw = random.Random(0)
    every = list(_questions(articles))
    chosen = draw.sample(every, min(questions, len(every)))
    pairs = [{"question": question, "passage": passages[place]} for question, passages, place in chosen]
    rows = []
    for pair, (question, passages, place) in zip(pairs, chosen, strict=True):
        wrong = [passage for index, passage in enumerate(passages) if index != place]
        drawn = draw.sample(wrong, min(others, len(wrong)))
        rows += [pair | {"label": 1}, *({"question": question, "passage": passage, "label": 0} for passage in drawn)]
    output.mkdir(parents=True, exist_ok=True)
    for name, content in {"rerank": rows, "retrieve": pairs}.items():
        with atomic_file(output / f"{name}-{split}.jsonl") as staging:
            staging.write_text("".join(f"{json.dumps(row)}\n" for row in content))


def _questions(articles: list[dict]) -> Iterator[tuple[str, list[str], int]]:
    """Each question, the different passages of its article, and which of them answers it."""
    for article in articles:
        passages = list(dict.fromkeys(paragraph["context"] for paragraph in article["paragraphs"]))
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                yield asked["question"].strip(), passages, passages.index(paragraph["context"])


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", required=True, type=Path, help="folder with the two parts")
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    parser.add_argument("--train", type=int, default=8000, help="questions to train on")
    parser.add_argument("--dev", type=int, default=300, help="questions to measure on")
    parser.add_argument("--negatives", type=int, default=3, help="wrong passages of a training question")
    parser.add_argument("--candidates", type=int, default=20, help="passages of a measured question")
    given = parser.parse_args()
    write_rows(given.squad, given.output, "train", given.train, given.negatives)
    write_rows(given.squad, given.output, "dev", given.dev, given.candidates - 1)


if __name__ == "__main__":
    main()
