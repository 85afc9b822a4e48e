"""`lit_compress init`: the two files that it writes are accepted by `fit` as they are, and say why."""

import json
import shutil

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from lit_compress.cli import main

TEXTS = ["a good film", "a bad film", "a great story", "the plot was awful", "the actor was fine", "it was a dull film"]
SHORT = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"]


def table(*columns, sign=","):
    return "".join(sign.join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def rows(**columns):
    pairs = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in pairs)


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "encoder")
    return tmp_path


def settings(name="teacher.yaml"):
    with open(name, encoding="utf-8") as file:
        return yaml.safe_load(file)


def init(name, content, *options, model="encoder"):
    """What `init` makes of a file: the data section of both files."""
    if content is not None:
        with open(name, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    main(["init", name, *options, *(["--model", model] if model else [])])
    teacher, student = settings(), settings("student.yaml")
    assert teacher["data"] == student["data"]
    return teacher["data"]["class_path"], teacher["data"]["init_args"]


CONLL = "good B-GOOD\nfilm O\n\nthe O\nplot B-BAD\n\nfine O\nstory B-GOOD\n\ndull B-BAD\nfilm O\n\n" * 3
FITS = {
    "classification": ("train.csv", table(["text", *TEXTS * 4], ["label", *"101010" * 4])),
    "multi-label": ("train.jsonl", rows(text=TEXTS * 4, labels=[["a"], [], ["a", "b"], ["b"], ["a"], ["b"]] * 4)),
    "token classification": ("train.conll", CONLL),
    "regression": ("train.tsv", table(["text", *TEXTS * 4], ["score", *[0.5, 1, 2.5, 3, 4, 4.5] * 4], sign="\t")),
}


@pytest.mark.parametrize(("name", "content"), FITS.values(), ids=FITS)
def test_fit_takes_what_is_written(name, content, here, capsys):
    init(name, content)
    said = capsys.readouterr().out
    assert "Next: lit_compress fit --config teacher.yaml" in said
    assert f"lit_compress compress --model encoder --train {name} --run runs/fast" in " ".join(said.split())
    main(["fit", "--config=teacher.yaml", *SHORT])
    main(["fit", "--config=student.yaml", "--trainer.accelerator=cpu"])
    assert (here / "runs/student/model/config.json").is_file()


FILES = {
    "semicolons": ("a.csv", table(["text", *TEXTS], ["label", *"101010"], sign=";"), {"delimiter": ";"}),
    "no header": ("a.tsv", table("101010", TEXTS, sign="\t"), {"columns": ["column_1", "column_2"]}),
    "latin-1": (
        "a.csv",
        table(["text", *TEXTS], ["label", *"101010"]).replace("good", "caf\xe9").encode("latin-1"),
        {"encoding": "latin-1"},
    ),
}


@pytest.mark.parametrize(("name", "content", "options"), FILES.values(), ids=FILES)
def test_how_a_file_is_read(name, content, options, here):
    kind, found = init(name, content)
    assert kind == "TextClassification"
    assert found.items() >= options.items()


def test_the_encoding_of_class_folders(here):
    for name, text in {"food/1.txt": "caf\xe9 and cake", "food/2.txt": "tea", "money/1.txt": "\xa35 less"}.items():
        (here / "rows" / name).parent.mkdir(exist_ok=True, parents=True)
        (here / "rows" / name).write_bytes(text.encode("latin-1"))
    main(["init", "rows"])
    assert settings()["data"]["init_args"]["encoding"] == "latin-1"


def test_lengths_are_counted_in_tokens_where_the_tokenizer_is_here(here):
    long = [f"{' '.join(['story'] * 40)} {text}" for text in TEXTS]
    content = table(["text", *long], ["label", *"101010"])
    assert init("a.csv", content)[1]["max_length"] == 48
    assert "# tokens of the texts, 50 %: 45" in (here / "teacher.yaml").read_text()
    assert init("a.csv", content, "--overwrite=true", model=None)[1]["max_length"] == 64
    assert "words x 1.3" in (here / "teacher.yaml").read_text()
    assert settings()["model"]["init_args"]["pretrained"] == "google-bert/bert-base-uncased"


def test_names_of_classes_are_printed_as_they_are(here, capsys):
    init("a.csv", table(["text", *TEXTS], ["label", *[":heart:", "[b]"] * 3]))
    assert "2 classes: :heart: (3), [b] (3)" in capsys.readouterr().out


def test_a_validation_file_and_another_folder(here, capsys):
    content = table(["text", *TEXTS], ["label", *"101010"])
    for name in ("a.csv", "val.csv"):
        (here / name).write_text(content)
    main(["init", "a.csv", "--val=val.csv", "--output=mine"])
    made = settings("mine/teacher.yaml")
    assert made["run"] == "mine/runs/teacher"
    assert made["data"]["init_args"]["val_file"] == "val.csv"
    assert "val_fraction" not in made["data"]["init_args"]
    assert settings("mine/student.yaml")["model"]["init_args"]["teacher"] == "mine/runs/teacher/model"
    assert "lit_compress fit --config mine/student.yaml" in capsys.readouterr().out


def test_a_validation_file_that_cannot_be_read_is_one_line(here, caplog):
    (here / "a.csv").write_text(table(["text", *TEXTS], ["label", *"101010"]))
    (here / "val.csv").write_text("text;label\na film;1\nlong, dull;0\n")
    with pytest.raises(SystemExit) as caught:
        main(["init", "a.csv", "--val=val.csv"])
    assert "data.val_file: 'val.csv' cannot be read as csv" in str(caught.value.code)
    assert "data.delimiter" in str(caught.value.code)
    assert not caplog.messages  # `datasets` logs the same failure


def test_text_is_for_pretraining(here):
    kind, found = init("a.txt", "\n".join(TEXTS) + "\n")
    assert kind == "MaskedLanguageModeling"
    assert found["max_length"] == 128


@pytest.mark.parametrize("option", ["--task=embedding", "--task=classification", "--text_columns=[text]"])
def test_text_is_for_nothing_else(here, option):
    (here / "a.txt").write_text("\n".join(TEXTS) + "\n")
    with pytest.raises(SystemExit) as caught:
        main(["init", "a.txt", option])
    assert "text without columns" in str(caught.value.code)
    assert option.partition("=")[0] in str(caught.value.code)
    assert not (here / "teacher.yaml").exists()


def test_vectors_of_a_model_that_does_not_say_how_are_means(here, tiny_model):
    rows = [{"a": text, "b": text, "score": i / 9} for i, text in enumerate(TEXTS)]
    (here / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["init", "a.jsonl", "--task=embedding", f"--model={tiny_model}", "--text_columns=[a, b]"])
    assert settings()["data"]["init_args"]["pooling"] == "mean"
    main(["check", "teacher.yaml", "--trainer.accelerator=cpu", "--data.val_fraction=0.5"])


def test_questions(here):
    answers = [{"text": "film", "answer_start": 2}]
    questions = [{"id": str(i), "question": "what", "answers": answers if i else []} for i in range(20)]
    content = json.dumps({"data": [{"paragraphs": [{"context": "a film", "qas": questions}]}]})
    kind, found = init("a.json", content)
    assert kind == "QuestionAnswering"
    assert found["no_answer"] is True
    assert (found["max_length"], found["doc_stride"]) == (128, 42)


def test_a_saved_dataset_with_names_of_the_hub(here):
    names = ClassLabel(names=["O", "B-GOOD"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(names)})
    made = Dataset.from_dict({"tokens": [["good", "film"]] * 9, "ner_tags": [[1, 0]] * 9}, features=features)
    DatasetDict(train=made, validation=made).save_to_disk("saved")
    kind, found = init("saved", None)
    assert kind == "TokenClassification"
    assert "tag_column" not in found


def test_what_was_not_made_here_stays(here, capsys):
    (here / "student.yaml").write_text("mine: true\n")
    with pytest.raises(SystemExit) as caught:
        init("a.csv", table(["text", *TEXTS], ["label", *"101010"]), "--overwrite=true")
    assert "a file that lit_compress did not write" in str(caught.value.code)
    assert not (here / "teacher.yaml").exists()
    assert (here / "student.yaml").read_text() == "mine: true\n"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, [], "'a.csv' does not exist"),
        ("", [], "'a.csv' is empty"),
        ("text,label\ngood,1\nbad,0\n", ["--label_column=lable"], "--label_column: 'lable' is not a column"),
        ("text,label\ngood,1\nfine,1\n", [], "has the single value"),
        ("text,label\ngood,1\nbad,0\n", ["--val=b.csv"], "data.val_file: 'b.csv' does not exist"),
        ("text;words\na good film;a bad film\na bad plot;a good plot\n", ["--task=pretraining"], "as .txt"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(content, options, said, here):
    with pytest.raises(SystemExit) as caught:
        init("a.csv", content, *options)
    assert said in str(caught.value.code)
    assert "\n" not in str(caught.value.code)
    assert not (here / "teacher.yaml").exists()


def test_a_model_that_is_nowhere(here, capsys):
    content = "text,label\ngood,1\nbad,0\n"
    for wrong, said in (("./encodr", "--model: './encodr' does not exist"), ("runs", "--model: 'runs' is not a model")):
        (here / "runs").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as caught:
            init("a.csv", content, model=wrong)
        assert said in str(caught.value.code)
        assert not (here / "teacher.yaml").exists()
    capsys.readouterr()
    init("a.csv", content, model="owner/model")  # tests are offline
    assert "--model: 'owner/model' is not here, and the hub cannot be asked for it now" in capsys.readouterr().out
    assert settings()["model"]["init_args"]["pretrained"] == "owner/model"


def test_a_student_before_its_teacher_is_told_what_to_run_first(here):
    (here / "a.csv").write_text("text,label\n" + "good film,1\nbad film,0\n" * 9)
    main(["init", "a.csv", "--model=encoder", "--output=my files"])
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config=my files/student.yaml"])
    assert "so run that first: lit_compress fit --config 'my files/teacher.yaml'" in str(caught.value.code)
