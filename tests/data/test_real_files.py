"""Slices of real files, for who has them: SHARED_DATA names the folder; without it these tests are skipped."""

import os
from pathlib import Path

import pytest

from lit_compress.data import MaskedLanguageModeling, QuestionAnswering, TokenClassification
from lit_compress.functional.entities import entities

ROOT = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
BERT, ROBERTA = ROOT / "tokenizers" / "bert-base-uncased", ROOT / "tokenizers" / "roberta-base"


@pytest.fixture
def cut(tmp_path):
    """The first lines of a text file as a file of its own."""

    def first(name, lines, end=".txt"):
        import gzip

        path = ROOT / name
        if not path.is_file():
            pytest.skip(f"{path} is not here")
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            text = "".join(line for _, line in zip(range(lines), file, strict=False))
        (tmp_path / f"{path.stem}{end}").write_text(text)
        return str(tmp_path / f"{path.stem}{end}")

    return first


@pytest.fixture
def bert(tmp_path):
    from transformers import BertTokenizerFast

    if not BERT.is_dir():
        pytest.skip(f"{BERT} is not here")
    BertTokenizerFast(vocab=str(BERT / "vocab.txt"), model_max_length=512).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("ner/wnut17/wnut17train.conll", {"corporation", "creative-work", "group", "location", "person", "product"}),
        ("biomed/NCBI-disease-IOB/train.tsv", {"Disease"}),
        ("biomed/BC5CDR-IOB/train.tsv", {"Chemical", "Disease"}),
        ("biomed/ebmnlp_pico/dev.txt.gz", {"INT", "OUT", "PAR"}),
    ],
)
def test_entities(name, kinds, cut, bert, tmp_path):
    data = TokenClassification(cut(name, 6000), tokenizer=bert, max_length=64, cache_dir=str(tmp_path))
    data.setup("fit")
    assert {label.partition("-")[2] for label in data.labels} - {""} <= kinds
    batch = next(iter(data.val_dataloader()))
    tags = [data.labels[label] for label in batch.targets["labels"][batch.targets["labels"] >= 0].tolist()]
    assert entities(tags)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qa/squad_v1.1_dev/eval_part.json.gz", {"answer_marks": ["unique", "xquad"]}),
        ("qa/squad_v2.0_dev/eval_part.json.gz", {"answer_marks": ["unique", "xquad"], "no_answer": True}),
        ("qa/xquad.en.json", {}),
    ],
)
def test_questions(name, settings, bert, tmp_path):
    if not (ROOT / name).is_file():
        pytest.skip(f"{ROOT / name} is not here")
    data = QuestionAnswering(
        str(ROOT / name), tokenizer=bert, limit=60, val_fraction=0.03, cache_dir=str(tmp_path), **settings
    )
    data.setup("fit")
    found = 0
    for batch in data.val_dataloader():
        for row, example in enumerate(batch.meta["examples"]):
            start, end = int(batch.targets["start_positions"][row]), int(batch.targets["end_positions"][row])
            if 0 < start < batch.inputs["input_ids"].shape[1]:
                text = example["context"][batch.meta["char_start"][row, start] : batch.meta["char_end"][row, end]]
                found += any(answer in text for answer in example["answers"])
                assert any(answer in text for answer in example["answers"])
    assert found > 10


@pytest.mark.parametrize("packing", ["full_sentences", "segment_pairs"])
@pytest.mark.parametrize(
    "name", ["lm/wikitext-2/wiki.valid.tokens.gz", "lm/gutenberg_novels.txt.gz", "biomed/text/craft_fulltext.txt.gz"]
)
def test_texts(name, packing, cut, bert, tmp_path):
    data = MaskedLanguageModeling(cut(name, 300), tokenizer=bert, packing=packing, cache_dir=str(tmp_path))
    data.setup("fit")
    batches = list(data.train_dataloader())
    masked = sum(int((batch.targets["labels"] != -100).sum()) for batch in batches)
    tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert 0.12 < masked / tokens < 0.16  # special tokens, [UNK] among them, are never drawn
    if packing == "full_sentences":
        assert tokens / sum(len(batch.inputs["input_ids"]) for batch in batches) > 90
    else:
        labels = [label for batch in batches for label in batch.targets["next_sentence_label"].tolist()]
        assert 0.4 < sum(labels) / len(labels) < 0.8
