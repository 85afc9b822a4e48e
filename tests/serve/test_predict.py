"""`lit_compress predict` on all tasks: the file's order, the model's own answers, resuming after an interruption."""

import errno
import json
import shutil
import sys
import time

import pytest
import torch
import yaml
from processes import Python
from pyarrow import parquet
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export.command import write
from lit_compress.export.source import from_source
from lit_compress.serve import predict, prediction_file
from lit_compress.serve.records import Records

predict_module = sys.modules[predict.__module__]
TEXTS = ["good film", "bad", "the story is dull and cold", "a", "very good plot", "cold film", "warm", "the actor"] * 3


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\n" + "\n".join(TEXTS) + "\n")
    return path


def columns(file, output, model, **options):
    predict(str(file), str(output), model=str(model), **{"data": {"text_columns": ["sentence"]}, **options})
    return parquet.read_table(output).to_pydict()


@torch.inference_mode()
def probabilities(folder) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for text in TEXTS])


def test_classification_from_a_folder(tiny_teacher, texts, tmp_path):
    got = columns(texts, tmp_path / "out.parquet", tiny_teacher)
    expected = probabilities(tiny_teacher)
    assert got["row"] == list(range(24))
    both = torch.tensor([got["probability_0"], got["probability_1"]]).T
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-6)
    assert got["label"] == [str(label) for label in expected.argmax(-1).tolist()]


def test_a_longest_input_beyond_the_positions(short_teacher, texts, tmp_path):
    options = {"text_columns": ["sentence"]}
    with pytest.raises(UserError, match=r"^--data\.max_length: 128 is above 12, the longest input of --model"):
        columns(texts, tmp_path / "out.parquet", short_teacher, data=options | {"max_length": 128})
    given = columns(texts, tmp_path / "given.parquet", short_teacher, data=options | {"max_length": 12})
    assert columns(texts, tmp_path / "out.parquet", short_teacher, data=options) == given
    assert len(given["row"]) == 24


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_from_the_export_for_a_runtime(tiny_teacher, texts, tmp_path, to, package):
    pytest.importorskip(package)
    pytest.importorskip("onnx")
    folder = write(from_source(model=str(tiny_teacher)), tmp_path / to, to)
    got = columns(texts, tmp_path / "out.parquet", folder)
    expected = probabilities(tiny_teacher)[:, 1].tolist()
    assert got["probability_1"] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match="--engine: 'eager' has nothing to run"):
        columns(texts, tmp_path / "other.parquet", folder, engine="eager")


def test_regression(tiny_model, texts, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    got = columns(texts, tmp_path / "out.parquet", tmp_path / "model")
    assert list(got) == ["row", "value"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.inference_mode():
        value = model.eval()(**tokenizer(TEXTS[2], return_tensors="pt")).logits.item()
    assert got["value"][2] == pytest.approx(value, rel=1e-5)


def test_tags_of_sentences_that_are_empty_or_longer_than_a_window(tiny_model, tmp_path):
    model = AutoModelForTokenClassification.from_pretrained(tiny_model, id2label={0: "O", 1: "B-X"})
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    sentences = [["good", "film"], [], ["bad"] * 9, ["the", "actor", "is"]]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"tokens": words}) + "\n" for words in sentences))
    data = {"max_length": 6, "batch_size": 2}
    got = columns(rows, tmp_path / "out.parquet", tmp_path / "model", data=data, part_rows=1)
    assert [len(tags) for tags in got["tags"]] == [2, 0, 9, 3]
    assert set(got["tags"][2]) <= {"O", "B-X"}


def test_answers_with_their_places(tiny_model, tmp_path):
    torch.manual_seed(3)
    AutoModelForQuestionAnswering.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    contexts = ["the film was good", "the story is very bad and the actor was in a great scene" * 2, "a"]
    rows = tmp_path / "rows.jsonl"
    lines = [{"id": f"q{i}", "question": "it was", "context": text} for i, text in enumerate(contexts)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"max_length": 14, "doc_stride": 2}
    got = columns(rows, tmp_path / "out.parquet", tmp_path / "model", data=data)
    assert got["id"] == ["q0", "q1", "q2"]
    for context, answer, start, end in zip(contexts, got["answer"], got["start"], got["end"], strict=True):
        assert answer == context[start:end] != ""


def test_an_interruption_costs_no_row_twice(tiny_teacher, texts, tmp_path, monkeypatch):
    seen: list[int] = []
    add = Records.add

    def counting(self, predictions):
        seen.append(len(predictions))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return add(self, predictions)

    monkeypatch.setattr(Records, "add", counting)
    options = {"data": {"text_columns": ["sentence"], "batch_size": 4}, "part_rows": 4}
    with pytest.raises(KeyboardInterrupt):
        columns(texts, tmp_path / "out.parquet", tiny_teacher, **options)
    assert not (tmp_path / "out.parquet").exists()
    seen[:] = [0] * 4
    got = columns(texts, tmp_path / "out.parquet", tiny_teacher, **options)
    # Three batches were predicted, and the last record of the third had not been followed by another row yet.
    assert sum(seen) == 24 - 8
    monkeypatch.undo()
    assert got == columns(texts, tmp_path / "whole.parquet", tiny_teacher, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.tsv", "whole.parquet"]


def test_what_is_gone_on_with_is_the_same_to_the_last_digit(tiny_model, tmp_path, monkeypatch):
    """Rounding of a text depends on the others of its batch, so that a resumed run must have the same batches."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "".join(f"{'good film ' * (1 + number * 7 % 11)}\n" for number in range(50)))
    batches: list[list[int]] = []
    add = Records.add

    def stopping(self, predictions):
        batches.append(predictions[:, 0].tolist())
        if len(batches) == 4:
            raise KeyboardInterrupt
        return add(self, predictions)

    monkeypatch.setattr(Records, "add", stopping)
    options = {"model": str(tmp_path / "model"), "data": {"batch_size": 8}, "part_rows": 5}
    with pytest.raises(KeyboardInterrupt):
        predict(str(rows), str(tmp_path / "out.csv"), **options)
    first = batches[:3]
    predict(str(rows), str(tmp_path / "out.csv"), **options)
    assert batches[4] == first[2]  # 20 rows were written, the last four of which began a batch of eight
    monkeypatch.undo()
    predict(str(rows), str(tmp_path / "whole.csv"), **options)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_part_is_written_when_the_last_one_is_old(tiny_teacher, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_file, "PART_SECONDS", 0.0)
    monkeypatch.setattr(prediction_file.PredictionFile, "finish", lambda self: None)
    options = {"data": {"text_columns": ["sentence"], "batch_size": 4}, "model": str(tiny_teacher)}
    predict(str(texts), str(tmp_path / "out.csv"), **options)
    assert len(list((tmp_path / ".out.csv.parts").glob("part-*"))) > 1


def test_a_killed_process_leaves_nothing_half_written(tiny_teacher, tmp_path):
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\n" + "\n".join(TEXTS * 60) + "\n")
    output, parts = tmp_path / "out.parquet", tmp_path / ".out.parquet.parts"
    arguments = [f"--file={rows}", f"--model={tiny_teacher}", f"--output={output}", "--part_rows=16"]
    data = ["--data.text_columns=[sentence]", "--data.batch_size=16"]
    process = Python(["-m", "lit_compress", "predict", *arguments, *data])
    try:
        while len(list(parts.glob("part-*"))) < 3:
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not output.exists()
    main(["predict", *arguments, *data])
    got = parquet.read_table(output).to_pydict()
    assert got["row"] == list(range(len(TEXTS) * 60))
    assert not parts.exists()
    again = columns(
        rows, tmp_path / "whole.parquet", tiny_teacher, data={"text_columns": ["sentence"], "batch_size": 16}
    )
    assert got == again


def test_a_changed_file_is_not_gone_on_with(tiny_teacher, texts, tmp_path, monkeypatch):
    def stop(self, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Records, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            columns(texts, tmp_path / "out.parquet", tiny_teacher, part_rows=4)
    texts.write_text(texts.read_text() + "one more\n")
    with pytest.raises(UserError, match="file"):
        columns(texts, tmp_path / "out.parquet", tiny_teacher, part_rows=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher, tiny_data):
    """A finished run; its training file is gone afterwards."""
    folder = tmp_path_factory.mktemp("predict")
    train = folder / "train.tsv"
    train.write_text((tiny_data / "train.tsv").read_text())
    config = {
        "model": {"class_path": "LitStudent", "init_args": {"pretrained": str(tiny_teacher)}},
        "data": {
            "class_path": "TextClassification",
            "init_args": {
                "train_file": str(train),
                "val_file": str(tiny_data / "val.tsv"),
                "text_columns": ["sentence"],
                "batch_size": 16,
                "max_length": 16,
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={folder / 'task.yaml'}", f"--run={folder / 'run'}"])
    return folder / "run"


def test_from_a_run_and_from_its_checkpoint(run, texts, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint.csv"
    main(
        [
            *("predict", f"--config={run / 'config.yaml'}", "--ckpt_path=last"),
            *(f"--data.predict_file={texts}", f"--output={checkpoint}"),
        ]
    )
    (run.parent / "train.tsv").rename(run.parent / "gone.tsv")
    try:
        main(["predict", f"--run={run}", f"--file={texts}", f"--output={tmp_path / 'run.csv'}"])
    finally:
        (run.parent / "gone.tsv").rename(run.parent / "train.tsv")
    assert "24 rows saved" in capsys.readouterr().out
    one, other = (path.read_text().splitlines() for path in (checkpoint, tmp_path / "run.csv"))
    assert len(one) == len(other) == 25
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a.split(",")[:2] == b.split(",")[:2]
        assert [float(x) for x in a.split(",")[2:]] == pytest.approx([float(x) for x in b.split(",")[2:]], rel=1e-5)


def test_options_of_the_data_on_the_command_line(tiny_teacher, texts, tmp_path):
    main(
        [
            *("predict", f"--model={tiny_teacher}", f"--file={texts}", f"--output={tmp_path / 'out.jsonl'}"),
            *("--data.text_columns=[sentence]", "--data.max_length=8"),
        ]
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(24))
    assert set(rows[0]) == {"row", "label", "probability_0", "probability_1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": None}, "either --run or --model"),
        ({"run": "x"}, "either --run or --model"),
        ({"model": "/nowhere/at/all"}, "--model"),
        ({"data": {"text_colums": ["sentence"]}}, "--data"),
        ({"data": {}}, "text_columns"),
        ({"file": "missing.tsv"}, "missing.tsv"),
        ({"output": "out.txt"}, "must end in"),
        ({"model": None, "run": "/nowhere/at/all"}, "--run"),
    ],
)
def test_mistakes_are_one_line(options, words, tiny_teacher, texts, tmp_path):
    given = {"file": str(texts), "output": str(tmp_path / "out.csv"), "model": str(tiny_teacher)}
    given |= {"data": {"text_columns": ["sentence"]}, **options}
    with pytest.raises(UserError, match=words) as caught:
        predict(**given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_run_without_a_model_is_not_looked_for_on_the_hub(texts, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(
        "data: {class_path: lit_compress.data.TextClassification, init_args: {}}\n"
    )
    for run, words in ((tmp_path / "nosuch", "has no config.yaml"), (tmp_path / "run", "has no folder 'model'")):
        with pytest.raises(UserError, match=words):
            predict(str(texts), str(tmp_path / "out.csv"), run=str(run))


def test_a_mistake_in_the_data_leaves_nothing_behind(tiny_teacher, texts, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="'sentences' is not a column"):
        columns(texts, tmp_path / "out.parquet", tiny_teacher, data={"text_columns": ["sentences"]})
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_without_such_a_head(tiny_model, texts, tmp_path):
    with pytest.raises(UserError, match="BertModel"):
        predict(str(texts), str(tmp_path / "out.csv"), model=str(tiny_model))


def test_one_text_is_shown(tiny_teacher, run, capsys):
    main(["predict", f"--model={tiny_teacher}", "--text", "good film"])
    shown = json.loads(capsys.readouterr().out)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    with torch.inference_mode():
        tokens = AutoTokenizer.from_pretrained(tiny_teacher)("good film", return_tensors="pt")
        expected = model(**tokens).logits[0].softmax(-1).tolist()
    assert [shown["probability_0"], shown["probability_1"]] == pytest.approx(expected, rel=1e-5)
    main(["predict", f"--run={run}", "--text=good film"])
    assert set(json.loads(capsys.readouterr().out)) == {"label", "probability_0", "probability_1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text=a", "--file=rows.csv"], "--text: is predicted and shown; leave out --file and --output"),
        (["--file=rows.csv"], "--output: missing"),
        ([], "--file: missing"),
        (["--text=a", "--data.text_columns=[a, b]"], "--text: the model reads 2 texts, a, b; give --file"),
    ],
)
def test_what_one_text_cannot_be_with(options, message, tiny_teacher):
    with pytest.raises(SystemExit, match=message):
        main(["predict", f"--model={tiny_teacher}", *options])


@pytest.mark.parametrize("rows", [5, 8])
def test_what_could_not_be_joined_for_want_of_room_is_joined_later(rows, tiny_teacher, tmp_path, monkeypatch):
    file = tmp_path / "rows.tsv"
    file.write_text("sentence\n" + "\n".join(TEXTS[:rows]) + "\n")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    options = {"data": {"text_columns": ["sentence"], "batch_size": 4}}
    with monkeypatch.context() as patch:
        patch.setattr(prediction_file.PredictionFile, "_join_parquet", full)
        with pytest.raises((UserError, OSError), match="No space left"):
            columns(file, tmp_path / "out.parquet", tiny_teacher, **options)
    assert columns(file, tmp_path / "out.parquet", tiny_teacher, **options)["row"] == list(range(rows))


def test_a_fingerprint_is_of_all_files_of_a_folder(tmp_path):
    (tmp_path / "saved" / "train").mkdir(parents=True)
    file = tmp_path / "saved" / "train" / "data.arrow"
    file.write_text("one")
    before = predict_module.fingerprint(str(tmp_path / "saved"))
    file.write_text("another")
    assert predict_module.fingerprint(str(tmp_path / "saved")) != before


@pytest.fixture
def tagger(tiny_model, tmp_path):
    model = AutoModelForTokenClassification.from_pretrained(tiny_model, id2label={0: "O", 1: "B-X"})
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def from_config(tmp_path, model, data, *arguments):
    """`predict --config` of a trained model, which is what `fit` leaves."""
    config = {
        "run": str(tmp_path / "run"),
        "model": {"class_path": "LitTeacher", "init_args": {"pretrained": str(model)}},
        "data": data,
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    }
    (tmp_path / "predict.yaml").write_text(yaml.safe_dump(config))
    main(["predict", f"--config={tmp_path / 'predict.yaml'}", *arguments])


def test_sentences_without_words_have_rows_from_a_config_too(tagger, tmp_path):
    sentences = [[], [], ["good", "film"], [], ["bad"]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"tokens": words}) + "\n" for words in sentences))
    data = {"class_path": "TokenClassification", "init_args": {"predict_file": str(tmp_path / "rows.jsonl")}}
    from_config(tmp_path, tagger, data, f"--output={tmp_path / 'out.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row"], len(row["tags"])) for row in rows] == [(0, 0), (1, 0), (2, 2), (3, 0), (4, 1)]
    (tmp_path / "rows.jsonl").write_text('{"tokens": []}\n')
    with pytest.raises(SystemExit, match=r"data\.predict_file: no row of .* makes an example; give --model"):
        from_config(tmp_path, tagger, data, f"--output={tmp_path / 'none.jsonl'}")
    predict(str(tmp_path / "rows.jsonl"), str(tmp_path / "none.jsonl"), model=str(tagger))
    assert (tmp_path / "none.jsonl").read_text() == '{"row": 0, "tags": []}\n'


def test_parts_of_other_columns_are_not_gone_on_with_from_a_config(tiny_teacher, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('{"a": "good film", "b": "bad film"}\n' * 3)
    options = {"predict_file": str(tmp_path / "rows.jsonl"), "text_columns": ["a"]}
    data = {"class_path": "TextClassification", "init_args": options}

    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prediction_file.PredictionFile, "finish", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            from_config(tmp_path, tiny_teacher, data, f"--output={tmp_path / 'out.csv'}")
    assert (tmp_path / ".out.csv.parts").is_dir()
    options["text_columns"] = ["b"]
    with pytest.raises(SystemExit, match=r"parts of another model, file or setting"):
        from_config(tmp_path, tiny_teacher, data, f"--output={tmp_path / 'out.csv'}")


@pytest.mark.parametrize(
    "options",
    [{"delimiter": ";"}, {"encoding": "utf-16"}, {"columns": ["sentence", "label"]}],
    ids=["delimiter", "encoding", "columns"],
)
def test_one_text_is_read_whatever_the_files_of_the_run_are_like(options, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"] |= options
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    main(["predict", f"--run={tmp_path / 'run'}", "--text=good film"])
    assert "label" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("column", [0, "words"])
def test_one_sentence_is_read_whatever_the_column_of_the_run(column, tagger, tmp_path, capsys):
    shutil.copytree(tagger, tmp_path / "run" / "model")
    data = {"class_path": "lit_compress.data.TokenClassification", "init_args": {"token_column": column}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    main(["predict", f"--run={tmp_path / 'run'}", "--text=good film"])
    assert len(json.loads(capsys.readouterr().out)["tags"]) == 2
