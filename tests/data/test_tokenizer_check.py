"""The folder of a tokenizer, loaded by AutoTokenizer alone, gives the ids that the model sees in training."""

import json
import random

import pytest
import yaml
from data.test_vocabulary import KINDS, texts
from models.families import build
from tokenizers import processors
from transformers import (
    AlbertTokenizerFast,
    AutoModel,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    XLMRobertaTokenizerFast,
    XLNetTokenizerFast,
)

from lit_compress.cli import main
from lit_compress.data import MaskedLanguageModeling, QuestionAnswering, TextClassification, TokenClassification
from lit_compress.data.tokenizer_check import check_tokenizer
from lit_compress.errors import UserError

NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}


def model_of(kind):
    return json.loads(KINDS[kind]().to_str())["model"]


def bert(**options):
    return BertTokenizerFast(vocab=model_of("wordpiece")["vocab"], **NAMES, **options)


def roberta(**options):
    model = model_of("bytes")
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizerFast(vocab=model["vocab"], merges=merges, **options)


def unigram(kind):
    return kind(vocab=[tuple(entry) for entry in model_of("unigram")["vocab"]], **NAMES)


def generic():
    """ModernBERT's kind: byte-level BPE in a tokenizer.json without a class of its own."""
    made = KINDS["bytes"]()
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)


TOKENIZERS = {
    "wordpiece": bert,
    "wordpiece, cased": lambda: bert(do_lower_case=False),
    "byte-level": roberta,
    "byte-level, left": lambda: roberta(truncation_side="left", padding_side="left"),
    "byte-level, generic": generic,
    "sentencepiece XLM-R": lambda: unigram(XLMRobertaTokenizerFast),
    "sentencepiece ALBERT": lambda: unigram(AlbertTokenizerFast),
    "sentencepiece XLNet": lambda: unigram(XLNetTokenizerFast),
}


def sentences():
    draw = random.Random(0)
    return [[word.title() if draw.random() < 0.3 else word for word in text.split()] for text in texts()[:12]]


def tags(folder):
    lines = "\n\n".join("\n".join(f"{word}\tB-{'XY'[place % 2]}" for place, word in enumerate(s)) for s in sentences())
    (folder / "tags.txt").write_text(lines + "\n")
    return TokenClassification, {"train_file": str(folder / "tags.txt"), "max_length": 64}


def classes(folder):
    lines = [f"{' '.join(s)}\t{' '.join(s[::-1])}\t{place % 2}" for place, s in enumerate(sentences())]
    (folder / "classes.tsv").write_text("\n".join(["a\tb\tlabel", *lines]) + "\n")
    # Too short for some rows, so that the side of the truncation shows.
    return TextClassification, {
        "train_file": str(folder / "classes.tsv"),
        "text_columns": ["a", "b"],
        "max_length": 24,
    }


def answers(folder):
    rows = [
        {
            "id": str(place),
            "question": f" {s[0]} {s[1]}",
            "context": " ".join(s),
            "answers": {"text": [s[2]], "answer_start": [" ".join(s).index(s[2])]},
        }
        for place, s in enumerate(sentences())
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QuestionAnswering, {"train_file": str(folder / "answers.jsonl"), "max_length": 48, "doc_stride": 4}


def words(folder):
    (folder / "words.txt").write_text("\n".join(" ".join(s) for s in sentences()) + "\n")
    return MaskedLanguageModeling, {"train_file": str(folder / "words.txt"), "max_length": 24}


TASKS = {"tags": tags, "classes": classes, "answers": answers, "words": words}


def module(task, tokenizer, folder):
    tokenizer.save_pretrained(folder / "source")
    kind, settings = TASKS[task](folder)
    data = kind(tokenizer=str(folder / "source"), val_fraction=0.5, **settings)
    data.setup("validate")
    return data


# Question answering refuses tokenizers that pad on the left, which has a test of its own.
PADS_LEFT = ("sentencepiece XLNet", "byte-level, left")


@pytest.mark.parametrize(
    ("task", "kind"),
    [(task, kind) for task in TASKS for kind in TOKENIZERS if not (task == "answers" and kind in PADS_LEFT)],
)
def test_a_saved_tokenizer_reads_as_training_does(task, kind, tmp_path):
    data = module(task, TOKENIZERS[kind](), tmp_path)
    assert list(data.token_examples())
    data.tokenizer.save_pretrained(tmp_path / "saved")
    check_tokenizer(tmp_path / "saved", data)
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
    if task == "tags":
        row, table = data._dataset("val")[0], data.table("val")
        assert plain(table[0]["tokens"], is_split_into_words=True)["input_ids"] == row["input_ids"]
        # Words of a sentence, not of a list.
        assert plain(" ".join(table[0]["tokens"]))["input_ids"] == row["input_ids"]
    if task == "classes":
        row, table = data._dataset("val")[0], data.table("val")
        assert plain(table[0]["a"], table[0]["b"], truncation=True, max_length=24)["input_ids"] == row["input_ids"]


@pytest.mark.parametrize(
    ("kind", "task", "change", "named"),
    [
        ("byte-level", "tags", {"add_prefix_space": False}, "add_prefix_space True in training, False there"),
        ("wordpiece", "words", {"do_lower_case": False}, "do_lower_case"),
        ("byte-level", "classes", {"truncation_side": "left"}, "truncation_side 'right' in training, 'left' there"),
        ("byte-level", "classes", {"padding_side": "left"}, "padding_side"),
        ("byte-level", "answers", {"sep_token": "<s>"}, "sep_token_id"),
        ("wordpiece", "classes", {"model_max_length": 16}, "model_max_length"),
    ],
)
def test_what_reads_otherwise_is_named(kind, task, change, named, tmp_path):
    data = module(task, TOKENIZERS[kind](), tmp_path)
    damage(data.tokenizer.save_pretrained, tmp_path / "saved", change)
    with pytest.raises(UserError, match=named) as caught:
        check_tokenizer(tmp_path / "saved", data)
    assert "\n" not in str(caught.value)
    assert "data.tokenizer" in str(caught.value)


def damage(save, folder, change):
    save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_run_and_its_exports(tmp_path, monkeypatch, capsys):
    tokenizer = roberta()
    model = build("roberta", AutoModel, vocab_size=len(tokenizer), max_position_embeddings=80, pad_token_id=1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    kind, settings = tags(tmp_path)
    config = {
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(tmp_path / "model")}},
        "data": {"class_path": kind.__name__, "init_args": settings | {"val_fraction": 0.5}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", f"--config={tmp_path / 'task.yaml'}"]
    run = tmp_path / "run"
    main([*fit, f"--run={run}"])
    data = kind(tokenizer=str(tmp_path / "model"), **settings | {"val_fraction": 0.5})
    data.setup("validate")
    seen, table = data._dataset("val")["input_ids"], data.table("val")["tokens"]
    for name in ("hf", "sparse"):
        main(["export", f"--run={run}", f"--output={tmp_path / name}", f"--to={name}"])
        plain = AutoTokenizer.from_pretrained(tmp_path / name)
        assert [plain(words, is_split_into_words=True)["input_ids"] for words in table] == list(seen)

    (tmp_path / "tags.txt").rename(tmp_path / "away.txt")
    capsys.readouterr()
    main(["export", f"--run={run}", f"--output={tmp_path / 'unchecked'}"])
    said = (
        f"was not compared on the run's validation examples: data.train_file: '{tmp_path / 'tags.txt'}' does not exist"
    )
    assert said in capsys.readouterr().out
    (tmp_path / "away.txt").rename(tmp_path / "tags.txt")

    # A run of an earlier version kept a tokenizer that reads otherwise, and no other.
    (run / "tokenizer").rename(run / "away")
    damage(lambda folder: None, run / "model", {"add_prefix_space": False})
    main(["export", f"--run={run}", f"--output={tmp_path / 'again'}"])
    plain = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [plain(words, is_split_into_words=True)["input_ids"] for words in table] == list(seen)
    (run / "away").rename(run / "tokenizer")

    save = PreTrainedTokenizerBase.save_pretrained
    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "save_pretrained",
        lambda self, folder, **options: damage(lambda f: save(self, f, **options), folder, {"add_prefix_space": False}),
    )
    for command in (
        ["export", f"--run={run}", f"--output={tmp_path / 'other'}"],
        [*fit, f"--run={tmp_path / 'other'}"],
    ):
        with pytest.raises(SystemExit, match="add_prefix_space"):
            main(command)
        assert not (tmp_path / "other").exists()
