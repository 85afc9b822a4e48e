"""Tiny files and data modules of every task but classification, and modules that learn them."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from lit_compress.data import (
    MaskedLanguageModeling,
    MultiLabelClassification,
    QuestionAnswering,
    RankedPairs,
    SentencePairs,
    SentenceTexts,
    TokenClassification,
)
from lit_compress.modules import LitStudent, Optimization

WORDS = ["the", "a", "is", "was", "film", "story", "plot", "actor", "scene", "very", "and", "but", "not", "it", "in"]
NAMES = ["good", "great", "fine", "lovely"]
TASKS = [
    "embedding",
    "embedding_ranking",
    "masked_lm",
    "multi_label_classification",
    "pretraining",
    "question_answering",
    "reranking",
    "reranking_lists",
    "token_classification",
]


def corpus(path: Path, documents: int = 40, seed: int = 0) -> Path:
    """A document a line, of two to five sentences."""
    draw = random.Random(seed)
    sentences = lambda: [" ".join(draw.choices(WORDS, k=draw.randrange(3, 8))).capitalize() + " ." for _ in range(draw.randrange(2, 6))]  # noqa: E501, E731  # fmt: skip
    path.write_text("".join(" ".join(sentences()) + "\n" for _ in range(documents)))
    return path


def squad(path: Path, questions: int = 24, impossible: bool = False, seed: int = 0) -> Path:
    """Contexts with one name in them, which is the answer; every third without, when there may be none."""
    draw = random.Random(seed)
    paragraphs = []
    for number in range(questions):
        words, name = draw.choices(WORDS, k=draw.randrange(8, 30)), draw.choice(NAMES)
        none = impossible and number % 3 == 0
        if not none:
            words.insert(draw.randrange(len(words)), name)
        context = " ".join(words)
        answers = [] if none else [{"text": name, "answer_start": f" {context} ".index(f" {name} ")}]
        question = {"id": f"q{number}", "question": "was it", "answers": answers, "is_impossible": none}
        paragraphs.append({"context": context, "qas": [question]})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def conll(path: Path, sentences: int = 40, seed: int = 0) -> Path:
    """Words, of which names are entities of two kinds and one or two words."""
    draw = random.Random(seed)
    lines = ["-DOCSTART- O", ""]
    for _ in range(sentences):
        for _ in range(draw.randrange(2, 7)):
            kind = draw.choice(["PER", "LOC", None, None])
            if kind is None:
                lines.append(f"{draw.choice(WORDS)} O")
            else:
                length = draw.randrange(1, 3)
                lines += [f"{NAMES[kind == 'PER']} {'BI'[i]}-{kind}" for i in range(length)]
        lines.append("")
    path.write_text("\n".join(lines) + "\n")
    return path


SHARES = {"good": 0.8, "great": 0.25}


def labelled(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Texts with any of two labels, each of which a word gives away, as lists in JSON lines."""
    draw = random.Random(seed)
    lines = []
    for _ in range(rows):
        words = draw.choices(WORDS, k=draw.randrange(2, 7))
        labels = [name for name, share in SHARES.items() if draw.random() < share]
        draw.shuffle(words := words + labels)
        lines.append(json.dumps({"text": " ".join(words), "labels": labels}) + "\n")
    path.write_text("".join(lines))
    return path


def pairs(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Two texts and the fraction of words that both have."""
    draw = random.Random(seed)
    lines = ["sentence1\tsentence2\tscore"]
    for _ in range(rows):
        first = draw.sample(WORDS, k=draw.randrange(3, 8))
        kept = draw.randrange(len(first) + 1)
        second = first[:kept] + draw.choices(NAMES, k=len(first) - kept)
        lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{5 * kept / len(first):.3f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def answered(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """A text, one that shares its words, and one that does not; every fourth text belongs to two."""
    draw = random.Random(seed)
    lines = []
    for row in range(rows):
        first = draw.sample(WORDS, k=4)
        second = " ".join([*first[:2], draw.choice(NAMES)]) if row % 4 or not row else json.loads(lines[-1])["positive"]
        one = {"anchor": " ".join(first), "positive": second, "negative": " ".join(draw.sample(WORDS, k=3))}
        lines.append(json.dumps(one))
    path.write_text("\n".join(lines) + "\n")
    return path


def documents(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Queries with four documents each, of which a score says how many words they share."""
    draw = random.Random(seed)
    lines = ["query\tdocument\tlabel"]
    for row in range(rows):
        if row % 4 == 0:
            query = draw.sample(WORDS, k=3)
        shared = (row % 4, draw.randrange(4))[row % 4 == 0]
        lines.append(f"{' '.join(query)}\t{' '.join([*query[:shared], draw.choice(NAMES)])}\t{shared}")
    path.write_text("\n".join(lines) + "\n")
    return path


def texts(path: Path, rows: int = 64, seed: int = 0) -> Path:
    """A text a line, and blank ones."""
    draw = random.Random(seed)
    path.write_text("".join(" ".join(draw.choices(WORDS, k=draw.randrange(2, 9))) + "\n\n" for _ in range(rows)))
    return path


def sentence_texts(folder: Path, tokenizer: Path, **options: Any) -> SentenceTexts:
    """Texts to train on and scored pairs to validate on."""
    folder.mkdir(parents=True, exist_ok=True)
    train, val = texts(folder / "texts.txt"), pairs(folder / "pairs.tsv", seed=1)
    given = {"pooling": "mean", "score_range": (0, 5), "max_length": 16, "batch_size": 16} | options
    return SentenceTexts(str(train), str(val), tokenizer=str(tokenizer), **given)


SUFFIXES = {
    "embedding": "tsv",
    "embedding_ranking": "jsonl",
    "question_answering": "json",
    "reranking": "tsv",
    "reranking_lists": "jsonl",
    "multi_label_classification": "jsonl",
}


def data(task: str, folder: Path, tokenizer: Path, **options: Any) -> Any:
    """A data module on files in a folder, which are made when they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = {"text_columns": ["sentence1", "sentence2"], "label_column": "score", "score_range": (0, 5)}
    ranked = {"text_columns": ["anchor", "positive", "negative"], "pooling": "mean", "normalize": False}
    listed = {"text_columns": ["anchor", "positive", "negative"]}
    kind, make, defaults = {
        "embedding": (SentencePairs, pairs, {"max_length": 16, "pooling": "mean"} | scored),
        "embedding_ranking": (SentencePairs, answered, {"max_length": 16} | ranked),
        "masked_lm": (MaskedLanguageModeling, corpus, {"max_length": 16}),
        "multi_label_classification": (MultiLabelClassification, labelled, {"max_length": 16}),
        "pretraining": (MaskedLanguageModeling, corpus, {"max_length": 24, "packing": "segment_pairs"}),
        "question_answering": (QuestionAnswering, squad, {"max_length": 24, "doc_stride": 8}),
        "reranking": (RankedPairs, documents, {"max_length": 24, "score_range": (0, 3)}),
        "reranking_lists": (RankedPairs, answered, {"max_length": 24, "label_column": None} | listed),
        "token_classification": (TokenClassification, conll, {"max_length": 16}),
    }[task]
    files = {}
    for number, split in enumerate(("train", "val")):
        path = folder / f"{task}-{split}.{SUFFIXES.get(task, 'txt')}"
        files[f"{split}_file"] = str(path if path.exists() else make(path, seed=number))
    return kind(**files | {"tokenizer": str(tokenizer), "batch_size": 8} | defaults | options)


def student(task: str, pretrained: Path, datamodule: Any, teacher: Path | None = None, **options: Any) -> LitStudent:
    """A student for the task of a data module; its new head is the same each time."""
    torch.manual_seed(1)
    settings = {"learning_rate": 1e-2, "weight_decay": 0.1, "warmup": "0%"} | options
    return LitStudent(
        str(pretrained),
        teacher=str(teacher) if teacher else None,
        labels=datamodule.labels,
        task=datamodule.task,
        optimization=Optimization(**settings),
    )
