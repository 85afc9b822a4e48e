import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertTokenizerFast

from lit_compress.data import TextClassification
from lit_compress.errors import UserError

ROWS = "good film\t1\nbad film\t0\na great story\t1\nthe plot was awful\t0\n"


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path; one that says the same already stays as it is, and so does its cache."""

    def write_file(name, text):
        path = tmp_path / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return str(path)

    return write_file


@pytest.fixture
def make(tmp_path, tiny_model, write):
    """A data module on files: ``make(train="good\\t1\\n", ...)``, each with the header of :data:`ROWS`."""

    def build(train=ROWS, val=None, test=None, predict=None, header="sentence\tlabel\n", **settings):
        for split, text in {"train": train, "val": val, "test": test, "predict": predict}.items():
            if text is not None:
                settings.setdefault(f"{split}_file", write(f"{split}.tsv", header + text))
        defaults = {"tokenizer": str(tiny_model), "text_columns": ["sentence"], "cache_dir": str(tmp_path / "cache")}
        data = TextClassification(**defaults | settings)
        data.setup("fit")
        return data

    return build


def texts(data, loader):
    """What a loader's batches say, a line per example."""
    return [
        data.tokenizer.decode(ids, skip_special_tokens=True) for batch in loader for ids in batch.inputs["input_ids"]
    ]


def answers(loader):
    return torch.cat([batch.targets["labels"] for batch in loader]).tolist()


def train_texts(data):
    return set(texts(data, data.train_dataloader()))


def val_texts(data):
    return set(texts(data, data.val_dataloader()))


def numbered(count):
    """Rows that differ: every one has other letters."""
    letters = "abcdefghijklmnopqrst"
    return "".join(f"{letters[i // 20]} {letters[i % 20]}\t{i % 2}\n" for i in range(count))


def test_tiny_data_is_what_the_fixtures_promise(tiny_data, tiny_model):
    train, val = str(tiny_data / "train.tsv"), str(tiny_data / "val.tsv")
    data = TextClassification(train, val, tokenizer=str(tiny_model), text_columns=["sentence"], batch_size=8)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(answers(batches)) == 64
    assert sum(answers(batches)) == 32
    assert len(answers(data.val_dataloader())) == 16
    unknown = data.tokenizer.unk_token_id
    assert not any((batch.inputs["input_ids"] == unknown).any() for batch in batches)


def test_every_split(make):
    data = make(val="good\t1\nbad\t0\n", test="lovely\t1\ndull\t0\n", predict="boring\t0\nfunny\t1\n")
    assert train_texts(data) == {"good film", "bad film", "a great story", "the plot was awful"}
    assert val_texts(data) == {"good", "bad"}
    assert texts(data, data.test_dataloader()) == ["lovely", "dull"]
    assert texts(data, data.predict_dataloader()) == ["boring", "funny"]


def test_batches_are_padded_to_their_own_longest_row(make):
    rows = "".join(f"{'a ' * (1 + i % 9)}\t{i % 2}\n" for i in range(40))
    data = make(rows, val=ROWS, batch_size=4)
    widths = set()
    for batch in data.train_dataloader():
        lengths = batch.inputs["attention_mask"].sum(1)
        assert batch.inputs["input_ids"].shape[1] == lengths.max()
        assert ((batch.inputs["input_ids"] != data.tokenizer.pad_token_id).sum(1) == lengths).all()
        assert tuple(map(set, batch)) == ({"input_ids", "attention_mask", "token_type_ids"}, {"labels"}, {"index"})
        widths.add(lengths.max().item())
    assert len(widths) > 3


def test_batch_sizes(make):
    data = make(numbered(20), val=numbered(20), batch_size=8, eval_batch_size=5)
    assert [len(batch.targets["labels"]) for batch in data.train_dataloader()] == [8, 8, 4]
    assert [len(batch.targets["labels"]) for batch in data.val_dataloader()] == [5, 5, 5, 5]


def test_a_row_has_room_for_more_than_its_special_tokens(make):
    with pytest.raises(UserError, match=r"data\.max_length: 2 must be above 2 special tokens"):
        make("the plot was very good and funny\t1\nbad\t0\n", val=ROWS, max_length=2)


@pytest.mark.parametrize("max_length", [3, 4, 6])
def test_no_row_is_longer_than_max_length(make, max_length):
    data = make("the plot was very good and funny\t1\nbad\t0\n", val=ROWS, max_length=max_length)
    assert max(batch.inputs["input_ids"].shape[1] for batch in data.train_dataloader()) <= max_length


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["0", "1"], ["0", "1"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1", "-1", "0"], ["-1", "0", "1"]),
        (["pos", "neg", "neutral"], ["neg", "neutral", "pos"]),
        (["b", "10", "9", "a"], ["9", "10", "a", "b"]),
        (["NA", "null"], ["NA", "null"]),
        ([*"7301", "nan", *"5264"], [*"01234567", "nan"]),  # nan has no place among numbers
    ],
)
def test_labels_are_ordered_by_value_then_alphabet(make, values, labels):
    data = make("".join(f"good\t{value}\n" for value in values), val=f"bad\t{values[0]}\n")
    assert data.labels == labels
    assert sorted(answers(data.train_dataloader())) == list(range(len(labels)))
    assert answers(data.val_dataloader()) == [labels.index(values[0])]


def test_a_label_belongs_to_its_text(make):
    data = make("good\tpos\nbad\tneg\n" * 4, val="bad\tneg\ngood\tpos\n", batch_size=3)
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        words = texts(data, [batch])
        assert batch.targets["labels"].tolist() == [{"bad": 0, "good": 1}[word] for word in words]
        assert batch.targets["labels"].dtype == torch.long


def with_names(tmp_path, split, names, **columns):
    path = tmp_path / f"{split}.parquet"
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def test_named_labels_keep_their_order(make, tmp_path):
    train = with_names(tmp_path, "train", ["positive", "negative"], sentence=["good", "bad"], label=[0, 1])
    data = make(None, val="bad\tnegative\n", train_file=train)
    assert data.labels == ["positive", "negative"]
    assert answers(data.val_dataloader()) == [1]


def test_named_labels_of_two_files_meet_by_name(make, tmp_path):
    train = with_names(tmp_path, "train", ["positive", "negative"], sentence=["good", "bad"], label=[0, 1])
    val = with_names(tmp_path, "val", ["negative", "positive"], sentence=["awful"], label=[0])
    data = make(None, train_file=train, val_file=val)
    assert answers(data.val_dataloader()) == [data.labels.index("negative")]


def test_pairs(make):
    header = "id\tone\ttwo\tlabel\n"
    rows = "7\tgood film\tbad plot\t1\n8\tthe story\tthe scene\t0\n"
    data = make(rows, val=rows, header=header, text_columns=["one", "two"])
    assert val_texts(data) == {"good film bad plot", "the story the scene"}
    (batch,) = data.val_dataloader()
    assert batch.inputs["token_type_ids"].sum(1).tolist() == [3, 3]


def test_regression(make):
    data = make("good\t4.75\nbad\t-1\nfilm\t3e-1\n", val="bad\t2\n", task="regression")
    labels = answers(data.train_dataloader())
    assert data.labels is None
    assert sorted(labels) == pytest.approx([-1.0, 0.3, 4.75])
    assert next(iter(data.val_dataloader())).targets["labels"].dtype == torch.float32


def test_a_folder_per_class(make, tmp_path):
    for name, text in (("pos", "good film"), ("neg", "bad film")):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "0.txt").write_text(text)
    folder = str(tmp_path / "texts")
    data = make(None, train_file=folder, val_file=folder, text_columns=["text"])
    assert data.labels == ["neg", "pos"]
    assert dict(zip(texts(data, data.val_dataloader()), answers(data.val_dataloader()), strict=True)) == {
        "bad film": 0,
        "good film": 1,
    }


def test_a_file_without_a_header(make):
    rows = "gj04\t1\t\tgood film\nbc\t0\t*\tbad film\n"
    data = make(rows, val=rows, header="", columns=["source", "label", "mark", "sentence"])
    assert data.labels == ["0", "1"]
    assert train_texts(data) == {"good film", "bad film"}


def test_without_a_validation_file_a_fixed_share_is_held_out(make):
    first = make(numbered(50), val_fraction=0.2)
    train, val = train_texts(first), val_texts(first)
    assert (len(train), len(val)) == (40, 10)
    assert not train & val
    again, other = make(numbered(50), val_fraction=0.2), make(numbered(50), val_fraction=0.2, split_seed=1)
    assert (train_texts(again), val_texts(again)) == (train, val)
    assert val_texts(other) != val


def test_hold_out_does_not_follow_the_seed_of_the_run(make, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    one = make(numbered(50))
    order = texts(one, one.train_dataloader())
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    other = make(numbered(50))
    assert val_texts(one) == val_texts(other)
    assert texts(other, other.train_dataloader()) != order


def test_limit_draws_rows_from_training_only(make):
    data, same = (make(numbered(60), val=numbered(20), limit=10) for _ in range(2))
    assert len(train_texts(data)) == 10
    assert len(val_texts(data)) == 20
    assert train_texts(data) == train_texts(same)
    assert train_texts(data) != train_texts(make(numbered(60), val=numbered(20), limit=10, split_seed=1))
    assert len(train_texts(make(numbered(60), val=numbered(20), limit=1000))) == 60


def test_limit_and_hold_out_do_not_lose_labels(make):
    # The classes are those of the file, not those of the rows that happen to be drawn.
    assert make(val=ROWS, limit=1).labels == ["0", "1"]
    rows = "good\t1\n" * 9 + "bad\t0\n"
    assert all(make(rows, val_fraction=0.1, split_seed=seed).labels == ["0", "1"] for seed in range(12))


def test_predict_keeps_the_order_of_the_file_and_needs_no_labels(make, write):
    rows = [f"{'a ' * (i % 7)}{letter}" for i, letter in enumerate("qwertzuiop")]
    data = make(predict_file=write("unlabelled.tsv", "\n".join(["sentence", *rows]) + "\n"), eval_batch_size=3)
    batches = list(data.predict_dataloader())
    assert texts(data, batches) == rows
    assert not any(batch.targets for batch in batches)


def test_a_second_instance_does_not_tokenise_again(make, monkeypatch):
    first = make(val=ROWS, predict=ROWS)
    first.predict_dataloader()
    expected = texts(first, first.train_dataloader())

    def refuse(*args, **kwargs):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(type(first.tokenizer), "__call__", refuse)
    second = make(val=ROWS, predict=ROWS, batch_size=1)
    assert val_texts(second) == val_texts(first)
    assert sorted(texts(second, second.train_dataloader())) == sorted(expected)
    with pytest.raises(AssertionError, match="tokenized again"):
        make(val=ROWS, max_length=3)


def test_what_is_cached_follows_the_labels_of_training(make):
    # The same validation file under other training files: its labels have other ids.
    val = "bad\t1\n"
    assert answers(make("good\t1\nbad\t0\n", val=val).val_dataloader()) == [1]
    assert answers(make("good\t1\nbad\t0\nfilm\t-1\n", val=val).val_dataloader()) == [2]


def test_what_is_cached_follows_the_text_columns(make):
    header, rows = "one\ttwo\tlabel\n", "good\tbad\t1\nfilm\tplot\t0\n"
    assert val_texts(make(rows, val=rows, header=header, text_columns=["one"])) == {"good", "film"}
    assert val_texts(make(rows, val=rows, header=header, text_columns=["two"])) == {"bad", "plot"}


def test_what_is_cached_follows_the_vocabulary(make, tmp_path):
    ids = [next(iter(make("good\t1\nbad\t0\n", val="good\t1\n").val_dataloader())).inputs["input_ids"]]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bad", "good"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(tmp_path / "other")
    data = make("good\t1\nbad\t0\n", val="good\t1\n", tokenizer=str(tmp_path / "other"))
    ids.append(next(iter(data.val_dataloader())).inputs["input_ids"])
    assert ids[1].tolist() == [[2, 6, 3]]
    assert ids[0].tolist() != ids[1].tolist()


def test_workers_give_the_same_batches(make):
    alone, helped = (
        make(numbered(20), val=ROWS, batch_size=4),
        make(numbered(20), val=ROWS, batch_size=4, num_workers=1),
    )
    assert texts(alone, alone.train_dataloader()) == texts(helped, helped.train_dataloader())


def test_opening_a_loader_leaves_the_global_generator(make):
    data = make(val=ROWS)
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("loader_first", [True, False])
def test_training_continues_in_the_middle_of_an_epoch(make, loader_first):
    def build():
        return make(numbered(20), val=ROWS, batch_size=4)

    left = build()
    batches = iter(left.train_dataloader())
    for _ in range(2):
        next(batches)
    rest = texts(left, batches)

    left = build()
    batches = iter(left.train_dataloader())
    for _ in range(2):
        next(batches)
    resumed = build()
    # Lightning restores the data module before or after it opens the loader: that depends on the callbacks.
    if loader_first:
        loader = resumed.train_dataloader()
        resumed.load_state_dict(left.state_dict())
    else:
        resumed.load_state_dict(left.state_dict())
        loader = resumed.train_dataloader()
    assert texts(resumed, loader) == rest
    assert len(texts(resumed, loader)) == 20


def test_local_folder_in_the_place_of_a_hub_dataset(make, tmp_path):
    folder = tmp_path / "owner" / "dataset"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("sentence,label\ngood,1\nbad,0\n")
    (folder / "validation.csv").write_text("sentence,label\nfilm,1\n")
    data = make(None, hub=str(folder))
    assert train_texts(data) == {"good", "bad"}
    assert val_texts(data) == {"film"}
    with pytest.raises(UserError, match=r"^data\.hub: .*nope"):
        make(None, hub=str(folder), hub_val_split="nope")


@pytest.mark.parametrize(
    ("settings", "key", "part"),
    [
        ({"train": None, "val": None}, "data", "data.train_file or data.hub"),
        ({"hub": "owner/name"}, "data", "data.train_file or data.hub"),
        ({"train": None, "hub": "owner/name"}, "data.hub", "'owner/name'"),
        ({"tokenizer": None}, "data.tokenizer", "missing"),
        ({"tokenizer": "owner/no-such-model"}, "data.tokenizer", "'owner/no-such-model'"),
        ({"text_columns": []}, "data.text_columns", "[]"),
        ({"text_columns": ["a", "b", "c"]}, "data.text_columns", "['a', 'b', 'c']"),
        ({"max_length": 0}, "data.max_length", "0"),
        ({"max_length": 1}, "data.max_length", "1"),  # [CLS] and [SEP] alone are longer
        ({"batch_size": 0}, "data.batch_size", "0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size", "0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size", "-1"),
        ({"limit": 0}, "data.limit", "0"),
        ({"val_fraction": 0.0}, "data.val_fraction", "0.0"),
        ({"val_fraction": 1.0}, "data.val_fraction", "1.0"),
        ({"train_file": "missing.tsv"}, "data.train_file", "'missing.tsv' does not exist"),
        ({"val_file": "missing.tsv"}, "data.val_file", "'missing.tsv' does not exist"),
        ({"test_file": "missing.tsv"}, "data.test_file", "'missing.tsv' does not exist"),
        ({"predict_file": "missing.tsv"}, "data.predict_file", "'missing.tsv' does not exist"),
        ({"val": ""}, "data.val_file", "val.tsv"),
        ({"text_columns": ["text"]}, "data.text_columns", "'text' is not a column"),
        ({"label_column": "target"}, "data.label_column", "'target' is not a column"),
        ({"val": "good\t1\nbad\t7\n"}, "data.val_file", "label '7' in row 2"),
        ({"test": "good\t1\nbad\t\n"}, "data.test_file", "label '' in row 2"),
        ({"train": "good\t1\nbad\t1\n", "val": ROWS}, "data.label_column", "['1']"),
        ({"train": "good\t1\n"}, "data.val_fraction", ""),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_mistake_names_its_key_in_one_line(make, settings, key, part):
    with pytest.raises(UserError) as caught:
        make(**settings)
    message = str(caught.value)
    assert message.startswith(f"{key}: ")
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", "1e999", "good", "", "1,5"])
def test_a_target_that_is_no_finite_number(make, split, value):
    rows = {"train": "good\t4.75\nbad\t1.0\n", "val": "good\t4.75\nbad\t1.0\n"}
    rows[split] += f"film\t{value}\n"
    with pytest.raises(UserError, match=r"^data\.label_column: .* row 3 .*not a finite number") as caught:
        make(**rows, task="regression")
    assert f"{split}.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.tsv", "sentence\tlabel\ngood\t1\nbad\t0\nfilm\t\n"),
        ("train.tsv", "sentence\tlabel\ngood\t1\nbad\t0\nfilm\n"),
        ("train.jsonl", '{"sentence":"good","label":1}\n{"sentence":"bad","label":0}\n{"sentence":"a","label":null}\n'),
        ("train.jsonl", '{"sentence":"good","label":1}\n{"sentence":"bad","label":0}\n{"sentence":null,"label":1}\n'),
    ],
    ids=["empty label", "no label", "null label", "null text"],
)
def test_a_missing_value_is_no_class_and_no_word(make, write, name, content):
    with pytest.raises(UserError, match=r"^data\.(train_file|text_columns|label_column): .*row 3") as caught:
        make(None, train_file=write(name, content), val=ROWS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_label_is_not_the_class_none(make, write, split):
    right = '{"sentence":"good","label":"None"}\n{"sentence":"bad","label":"x"}\n'
    files = {f"{name}_file": write(f"{name}.jsonl", right) for name in ("train", "val", "test")}
    write(f"{split}.jsonl", right + '{"sentence":"film","label":null}\n')
    with pytest.raises(UserError, match=rf"^data\.label_column: no label in row 3 of .*{split}\.jsonl"):
        make(None, None, **files)


@pytest.mark.parametrize("split", ["test", "predict"])
def test_a_split_that_was_not_given(make, split):
    with pytest.raises(UserError, match=rf"^data\.{split}_file: missing"):
        getattr(make(), f"{split}_dataloader")()


def test_empty_texts_are_counted_and_said_once(tmp_path, tiny_model, caplog):
    (tmp_path / "a.csv").write_text("text,label\ngood,1\n,0\n  ,1\nbad,0\n")
    files = {"train_file": str(tmp_path / "a.csv"), "val_file": str(tmp_path / "a.csv")}
    data = TextClassification(**files, tokenizer=str(tiny_model), cache_dir=str(tmp_path / "cache"))
    data.check_sources()
    _ = data.task
    data.setup("fit")
    data.setup("validate")
    said = [record.getMessage() for record in caplog.records if "empty" in record.getMessage()]
    assert [line.partition(" and are read")[0] for line in said] == [
        f"data.text_columns: 2 of 4 rows to {split} have an empty 'text'" for split in ("train", "val")
    ]
