import gzip
import itertools
import json

import pytest
import torch
from contracts.errors import error_of
from contracts.tasks import corpus
from contracts.training import fit
from datasets import Dataset
from lightning.pytorch import Trainer
from transformers import BertTokenizerFast

from lit_compress.data import MaskedLanguageModeling
from lit_compress.errors import UserError
from lit_compress.export import load_checkpoint
from lit_compress.modules import LitTeacher

LINES = "The film was good. It was great.\n\nA story is bad. The plot is not.\nThe actor was in it.\n"


@pytest.fixture
def write(tmp_path):
    def write_file(name, text=LINES):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write_file


@pytest.fixture
def make(tmp_path, tiny_model, write):
    def build(train=LINES, val=LINES, **settings):
        for split, text in {"train": train, "val": val}.items():
            if text is not None:
                settings.setdefault(f"{split}_file", write(f"{split}.txt", text))
        defaults = {"tokenizer": str(tiny_model), "max_length": 16, "cache_dir": str(tmp_path / "cache")}
        data = MaskedLanguageModeling(**defaults | settings)
        data.setup("fit")
        return data

    return build


def original(data, batch):
    """What the batch said before it was masked, a line per sequence."""
    ids = torch.where(batch.targets["labels"] == -100, batch.inputs["input_ids"], batch.targets["labels"])
    return [data.tokenizer.decode(row[row != data.tokenizer.pad_token_id]) for row in ids]


def texts(data, loader):
    return sorted(text for batch in loader for text in original(data, batch))


def test_full_sentences_are_packed_with_borders_between_documents(make):
    data = make(max_length=20)
    assert texts(data, data.train_dataloader()) == [
        "[CLS] the film was good. it was great. [SEP] a story is bad. [SEP]",
        "[CLS] the plot is not. [SEP] the actor was in it. [SEP]",
    ]


def test_blank_lines_can_be_the_borders(make):
    data = make(max_length=32, documents="blank_line")
    assert texts(data, data.train_dataloader()) == [
        "[CLS] the film was good. it was great. [SEP] a story is bad. the plot is not. the actor was in it. [SEP]"
    ]


def test_a_line_is_a_sequence(make):
    data = make(packing="line", max_length=6)
    assert texts(data, data.train_dataloader()) == [
        "[CLS] a story is bad [SEP]",
        "[CLS] the actor was in [SEP]",
        "[CLS] the film was good [SEP]",
    ]


def test_pairs(make, tmp_path):
    data = make(train_file=str(corpus(tmp_path / "corpus.txt")), packing="segment_pairs", max_length=24, batch_size=4)
    assert data.task.name == "pretraining"
    labels = []
    for batch in data.train_dataloader():
        labels += batch.targets["next_sentence_label"].tolist()
        for row, text in enumerate(original(data, batch)):
            assert text.count("[SEP]") == 2
            assert text.startswith("[CLS]")
            kinds = batch.inputs["token_type_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist()
            first = text.split("[SEP]")[0]
            assert kinds == sorted(kinds)
            assert kinds.count(0) == len(data.tokenizer.tokenize(first)) + 1
    assert {0, 1} == set(labels)


def test_masks_follow_epoch_and_sequence_alone(make, tmp_path):
    path = str(corpus(tmp_path / "corpus.txt"))

    def masks(epoch, **settings):
        data = make(train_file=path, mask_probability=0.3, **settings)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {
            text: labels[labels != -100].tolist()
            for batch in loader
            for text, labels in zip(original(data, batch), batch.targets["labels"], strict=True)
        }

    first = masks(0, batch_size=4)
    assert masks(0, batch_size=7) == first  # not who is beside it
    assert masks(0, batch_size=4, num_workers=1) == first
    assert masks(1, batch_size=4) != first


def test_masks_follow_the_seed_in_training_only(make, tmp_path, monkeypatch):
    batches = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = make(mask_probability=0.5)
        loader = data.val_dataloader()
        loader.sampler.set_epoch(int(seed))  # Lightning tells validation the epoch, too
        batches.append((next(iter(data.train_dataloader())).targets["labels"], next(iter(loader)).targets["labels"]))
    assert not torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])


def test_what_the_model_gets(make):
    data = make(mask_probability=0.5)
    batch = next(iter(data.train_dataloader()))
    assert tuple(map(set, batch)) == ({"input_ids", "attention_mask", "token_type_ids"}, {"labels"}, set())
    counted = batch.targets["labels"] != -100
    assert counted.any()
    assert not (counted & (batch.inputs["attention_mask"] == 0)).any()
    special = torch.tensor(data.tokenizer.all_special_ids)
    assert not torch.isin(batch.targets["labels"][counted], special).any()


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.tokens", "a.jsonl", "a.parquet", "folder"])
def test_formats(make, write, tmp_path, name):
    settings = {}
    if name == "folder":
        (tmp_path / name).mkdir()
        first, second = LINES.split("\n\n")
        for part, text in (("1.txt", first), ("2.txt.gz", second)):
            write(f"{name}/{part}", text)
    elif name.endswith(("jsonl", "parquet")):
        rows = {"body": LINES.splitlines()}
        settings["text_column"] = "body"
        if name.endswith("jsonl"):
            write(name, "".join(json.dumps({"body": row}) + "\n" for row in rows["body"]))
        else:
            Dataset.from_dict(rows).to_parquet(tmp_path / name)
    else:
        write(name)
    path = str(tmp_path / name)
    data = make(train_file=path, val_file=path, **settings)
    assert texts(data, data.train_dataloader()) == texts(make(), make().train_dataloader())


def test_the_end_of_the_corpus_is_held_out(make):
    lines = [f"{a} {b} film" for a, b in itertools.product("abcde", "fghij")]
    data = make("\n".join(lines) + "\n", val=None, packing="line", val_fraction=0.2)
    assert texts(data, data.val_dataloader()) == [f"[CLS] {line} [SEP]" for line in lines[-5:]]
    assert len(texts(data, data.train_dataloader())) == 20


def test_predictions_keep_the_masks_and_the_order_of_the_file(make, write):
    data = make(predict_file=write("p.txt", "the film was [MASK]\na [MASK] story it was\n"), eval_batch_size=1)
    rows = [data.tokenizer.decode(ids) for batch in data.predict_dataloader() for ids in batch.inputs["input_ids"]]
    assert rows == ["[CLS] the film was [MASK] [SEP]", "[CLS] a [MASK] story it was [SEP]"]


# --- streams


def stream(make, tmp_path, root, steps=12, stop=None, ckpt_path=None, **settings):
    path = str(corpus(tmp_path / "corpus.txt", documents=30))
    data = make(train_file=path, streaming=True, batch_size=4, **settings)
    torch.manual_seed(3)
    module = LitTeacher(data.tokenizer_name, task=data.task)
    seen = []
    module.on_train_batch_end = lambda outputs, batch, index: seen.append(batch.targets["labels"])
    callbacks = []
    fit(module, data, callbacks, root, max_steps=stop or steps, max_epochs=-1, ckpt_path=ckpt_path)
    return module, seen


def test_a_stream_goes_on_over_the_corpus_and_resumes_exactly(make, tmp_path):
    whole, seen = stream(make, tmp_path, tmp_path / "whole", steps=14)
    assert len(seen) == 14  # more than one pass: 30 documents are about 40 sequences
    for killed_at in (3, 12):
        path = tmp_path / "whole" / f"step={killed_at}.ckpt"
        resumed, rest = stream(make, tmp_path, tmp_path / f"r{killed_at}", steps=14, ckpt_path=path)
        assert [row.tolist() for row in rest] == [row.tolist() for row in seen[killed_at:]]
        assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    state = load_checkpoint(tmp_path / "whole" / "step=14.ckpt")["MaskedLanguageModeling"]
    assert state["positions"][0][0] >= 1


def test_a_stream_in_another_process_is_the_same(make, tmp_path):
    _, alone = stream(make, tmp_path, tmp_path / "a", steps=4)
    _, helped = stream(make, tmp_path, tmp_path / "b", steps=4, num_workers=1)
    assert [row.tolist() for row in alone] == [row.tolist() for row in helped]


def test_ranks_share_a_stream(make, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_compress.data.streaming.StreamedBatches.BLOCK", 4)
    path = str(corpus(tmp_path / "corpus.txt", documents=16))
    found = []
    for rank in (None, 0, 1):
        data = make(train_file=path, streaming=True, packing="line", batch_size=4, val=LINES)
        monkeypatch.setattr(data, "ranks", lambda rank=rank: (1, 0) if rank is None else (2, rank))
        batches = data.train_dataloader().batches
        count = 4 if rank is None else 2  # one pass over the 16 lines
        found.append([t for batch, _ in itertools.islice(batches, count) for t in original(data, batch)])
    assert sorted(found[0]) == sorted(found[1] + found[2])
    assert not set(found[1]) & set(found[2])


def test_a_stream_needs_an_end(make, tmp_path):
    data = make(streaming=True)
    data.trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(UserError, match=r"^trainer\.max_steps"):
        data.train_dataloader()


def test_a_stream_does_not_resume_on_another_number_of_ranks(make):
    loader = make(streaming=True).train_dataloader()
    with pytest.raises(UserError, match=r"^data\.streaming: .* 2 processes .* 1"):
        loader.load_state_dict({"positions": [[0, 0, 0], [0, 1, 0]]})


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"a film\n" * 9 + b"na\xefve film\n", "data.encoding"),
        ("a.txt.gz", gzip.compress(b"a film\n" * 9)[:-9], "Compressed file ended"),
        ("a.jsonl", b'{"text": "a film"}\n' * 9 + b'{"text": "a fi\n', "JSON"),
        ("a.txt", b"\n \n" * 9, "has no text"),
        ("a.jsonl", b'{"text": null}\n' * 9, "has no text"),
    ],
    ids=["latin-1", "cut", "no json", "blank", "null"],
)
def test_a_stream_that_cannot_be_read_is_said_in_one_line(make, tmp_path, name, content, said, workers):
    (tmp_path / name).write_bytes(content)

    def read():
        data = make(train_file=str(tmp_path / name), streaming=True, num_workers=workers, batch_size=2)
        return [*itertools.islice(data.train_dataloader(), 99)]

    message = error_of(read)
    assert message.startswith(f"data.train_file: '{tmp_path / name}' ")
    assert said in message
    assert "data.encoding_errors" not in message  # which has no effect on a stream


def test_a_rank_waits_for_its_first_text(make, write, monkeypatch):
    monkeypatch.setattr("lit_compress.data.streaming.StreamedBatches.BLOCK", 2)
    data = make(train_file=write("a.txt", "a film\nit was\n\n\n"), streaming=True, packing="line", batch_size=2)
    for rank in range(3):
        monkeypatch.setattr(data, "ranks", lambda rank=rank: (3, rank))
        batch, _ = next(iter(data.train_dataloader().batches))
        assert sorted(original(data, batch)) == ["[CLS] a film [SEP]", "[CLS] it was [SEP]"]


# --- mistakes


@pytest.mark.parametrize(
    ("settings", "key", "part"),
    [
        ({"mask_probability": 0.0}, "data.mask_probability", "0.0"),
        ({"mask_probability": 1.0}, "data.mask_probability", "1.0"),
        ({"packing": "words"}, "data.packing", "'words'"),
        ({"documents": "page"}, "data.documents", "'page'"),
        ({"packing": "line", "documents": "blank_line"}, "data.documents", "no effect"),
        ({"random_next_probability": 0.3}, "data.random_next_probability", "no effect"),
        ({"short_sequence_probability": 2.0, "packing": "segment_pairs"}, "data.short_sequence_probability", "2.0"),
        ({"max_length": 3}, "data.max_length", "3"),
        ({"streaming": True, "limit": 3}, "data.limit", "trainer.max_steps"),
        ({"streaming": True, "val": None}, "data.val_file", "stream"),
        ({"streaming": True, "num_workers": 2}, "data.num_workers", "2"),
        ({"train": "\n\n \n"}, "data.train_file", "no text"),
        ({"train": ""}, "data.train_file", "is empty"),
        ({"train_file": "missing.txt"}, "data.train_file", "does not exist"),
        ({"packing": "segment_pairs", "train": "the film\na story\n"}, "data.documents", "follow each other"),
        ({"packing": "segment_pairs", "train": "It is bad. It is good.\n"}, "data.documents", "two documents"),
    ],
)
def test_mistakes(make, settings, key, part):
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert str(caught.value).startswith(f"{key}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column(make, write):
    with pytest.raises(UserError, match=r"^data\.text_column: 'text' is not a column of .*body"):
        make(train_file=write("a.jsonl", '{"body": "the film"}\n'))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("value", ["5", '["the film"]'])
def test_a_column_without_texts(make, write, streaming, value):
    with pytest.raises(UserError, match=r"^data\.text_column: 'text' of .*a\.jsonl.* holds no texts"):
        make(train_file=write("a.jsonl", f'{{"text": {value}}}\n' * 9), streaming=streaming).train_dataloader()


def test_a_missing_column_of_a_stream(make, write):
    data = make(train_file=write("a.jsonl", '{"body": "the film"}\n'), streaming=True)
    with pytest.raises(UserError, match=r"^data\.text_column: 'text' is not a column of .*body"):
        data.train_dataloader()


def test_a_table_that_cannot_be_streamed(make, write):
    with pytest.raises(UserError, match=r"^data\.train_file: .*streamed"):
        make(train_file=write("a.tsv", "text\nthe film\n"), streaming=True)


def test_bytes_that_are_no_text(make, tmp_path):
    (tmp_path / "latin.txt").write_bytes("café was good\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"^data\.train_file: .*latin\.txt") as caught:
        make(train_file=str(tmp_path / "latin.txt"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_mask(make, tmp_path):
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good"])}
    BertTokenizerFast(vocab=vocabulary, mask_token=None).save_pretrained(tmp_path / "maskless")
    with pytest.raises(UserError, match=r"^data\.tokenizer: .*mask"):
        make(tokenizer=str(tmp_path / "maskless"))


@pytest.mark.parametrize("split", ["limit", "eval_limit"])
def test_fewer_lines_are_whole_documents(make, split):
    text = "".join(f"film {n} one\nfilm {n} two\nfilm {n} three\n\n" for n in range(30))
    data = make(text, text, documents="blank_line", **{split: 20})
    lines = data.table("train" if split == "limit" else "val")["text"][:]
    assert 20 <= len(lines) <= 24
    documents = [part.split("\n") for part in "\n".join(lines).strip("\n").split("\n\n")]
    numbers = [int(document[0].split()[1]) for document in documents]
    assert documents == [[f"film {n} {word}" for word in ("one", "two", "three")] for n in numbers]
    assert numbers != list(range(len(numbers)))
