"""A bad file is named before a fit imports what trains, in the words of the data module."""

import gzip
import inspect
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lit_compress.data
from lit_compress import early_checks
from lit_compress.data.tables import load_table
from lit_compress.early_checks import check_files
from lit_compress.errors import UserError

ROOT = Path(__file__).parents[1]
TABLE = "text,label\na film,1\na story,0\n"
# Content of a file (None: there is none), its name, and what is said of it.
BAD = {
    "missing": ("a.csv", None, "data.train_file: 'a.csv' does not exist; give a file (.tsv .csv .jsonl .parquet)"),
    "empty": ("a.csv", b"", "data.train_file: 'a.csv' is empty"),
    "another delimiter": ("a.csv", b"text;label\na;1\n", "so set data.delimiter"),
    "no such column": (
        "a.csv",
        b"sentence,label\na,1\n",
        "'text' is not a column of 'a.csv'; it has ['sentence'",
    ),
    "a bad line": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n', "cannot be read as jsonl: Expecting"),
    "not UTF-8": ("a.csv", b"text,label\ncaf\xe9,1\n", "cannot be read as csv: 'utf-8' codec can't decode"),
    "not UTF-8 in JSON": ("a.jsonl", b'{"text": "caf\xe9", "label": 1}\n', "set data.encoding"),
    "unknown kind": ("a.xls", b"x", "has an unknown format '.xls'"),
    "damaged parquet": ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
    "damaged gzip": ("a.csv.gz", gzip.compress(b"text,label\n" + os.urandom(999))[:300], "cannot be read as csv"),
}


def processor_seconds(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    if content is not None:
        Path(name).write_bytes(content)


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_as_the_data_module_names_it(name, content, said, here, tiny_model):
    write(name, content)
    with pytest.raises(UserError) as early:
        check_files([f"--data.train_file={name}"])
    data = lit_compress.data.TextClassification(name, tokenizer=str(tiny_model), cache_dir=str(here / "cache"))
    with pytest.raises(UserError) as late:
        data.check_sources()
    assert said in str(early.value)
    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)


def test_it_takes_less_than_the_import_of_torch(here):
    seconds = {}
    seconds["torch"] = min(processor_seconds("-c", "import torch")[0] for _ in range(2))
    for what in ("missing", "empty", "another delimiter", "a bad line", "not UTF-8"):
        name, content, said = BAD[what]
        write(name, content)
        words = [
            "fit",
            "--model=LitTeacher",
            "--model.pretrained=owner/model",
            "--run=run",
            f"--data.train_file={name}",
        ]
        seconds[what], done = processor_seconds("-X", "importtime", "-m", "lit_compress", *words)
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 1
        assert line.startswith("lit_compress: error: data.")
        assert said in line
        assert not any(f" {heavy}\n" in done.stderr for heavy in ("torch", "lightning", "transformers", "datasets"))
        assert not Path("run").exists()
    assert max(seconds.values()) == seconds["torch"], seconds


OTHER = {
    "words and tags": ("TokenClassification", "a.txt", "a O\n".encode("utf-16"), [], "set data.encoding"),
    "SQuAD": ("QuestionAnswering", "a.json", b'{"data": [', [], "cannot be read: it is not JSON"),
    "text": ("MaskedLanguageModeling", "a.txt", b"caf\xe9", [], "set data.encoding"),
    "no text": ("MaskedLanguageModeling", "a.txt", None, [], "give a file or a folder of .txt files"),
    "a column of text": (
        "MaskedLanguageModeling",
        "a.csv",
        b"body\na\n",
        [],
        "data.text_column: 'text' is not a column",
    ),
    "labels": (
        "MultiLabelClassification",
        "a.csv",
        b"text,label\na,x\n",
        [],
        "data.label_column: 'labels' is not a column",
    ),
    "flags": (
        "MultiLabelClassification",
        "a.csv",
        b"text,x\na,1\n",
        ["--data.label_columns=[x, y]"],
        "data.label_columns: 'y' is not a column",
    ),
}


@pytest.mark.parametrize(("kind", "name", "content", "options", "said"), OTHER.values(), ids=OTHER)
def test_files_of_other_tasks(kind, name, content, options, said, here):
    write(name, content)
    with pytest.raises(UserError) as caught:
        check_files([f"--data={kind}", "--data.train_file", name, *options])
    assert said in str(caught.value)


def test_configurations_compose_and_the_last_option_wins(here):
    write("a.csv", TABLE.encode())
    data = {"class_path": "lit_compress.data.TextClassification", "init_args": {"train_file": "a.csv"}}
    Path("data.yaml").write_text(yaml.safe_dump({"data": data}))
    Path("columns.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"label_column": "lable"}}}))
    check_files(["--config", "data.yaml"])
    with pytest.raises(UserError, match=r"^data\.label_column: 'lable' is not a column"):
        check_files(["--config", "data.yaml", "-c=columns.yaml"])
    check_files(["--config", "data.yaml", "-c=columns.yaml", "--data.init_args.label_column", "label"])
    with pytest.raises(UserError, match=r"^data\.val_file: 'b\.csv' does not exist"):
        check_files(["--config", "data.yaml", "--data.val_file=b.csv"])
    check_files(["--config", "data.yaml", "--data.val_file=b.csv", "--data.val_file=null"])


LEFT_TO_THE_PARSER = {
    "a configuration is asked for": ["--data.train_file=missing.csv", "--print_config"],
    "help is asked for": ["--data.train_file=missing.csv", "--data.help=TextClassification"],
    "a class of another package": ["--data=mine.Data", "--data.train_file=missing.csv"],
    "a configuration is missing": ["--config=missing.yaml", "--data.train_file=missing.csv"],
    "a configuration is not YAML": ["--config=a.csv", "--data.train_file=missing.csv"],
    "an option that adds": ["--data.text_columns+=sentence", "--data.train_file=missing.csv"],
    "options as one": ['--data.init_args={"train_file": "missing.csv"}'],
    "a value that is none": ["--data.train_file=[1]"],
}


@pytest.mark.parametrize("words", LEFT_TO_THE_PARSER.values(), ids=LEFT_TO_THE_PARSER)
def test_what_is_not_understood_is_left_to_the_parser(words, here):
    write("a.csv", b"data: [")
    check_files(words)


READ = {
    "lines": '{"text": "a", "label": 1}\n\n{"label": 0, "text": "b"}\n',
    "a byte order mark": '\ufeff{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n',
    "a list": json.dumps([{"text": "a", "label": 1}, {"text": "b", "label": 0}], indent=1),
    "rows over several lines": "".join(json.dumps({"text": x, "label": 1}, indent=1) + "\n" for x in "ab"),
    "a column that begins later": '{"text": "a"}\n{"text": "b", "label": 0}\n',
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_json_that_is_read_is_not_refused(name, content, here):
    write(name, gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    assert len(load_table(name, "data.train_file", cache_dir=str(here / "cache"))) == 2
    check_files([f"--data.train_file={name}"])


def test_what_is_longer_than_the_beginning_is_left_to_the_data_module(here, monkeypatch):
    monkeypatch.setattr("lit_compress.text_files._BEGINNING", 10)
    write("a.jsonl", b'{"text": "a", "label": 1}\n{"te')
    check_files(["--data.train_file=a.jsonl"])


def test_the_columns_are_those_of_the_classes():
    # Of these the columns depend on the split, which they say themselves.
    by_split = {"RankedPairs", "SentencePairs", "SentenceTexts"}
    modules = {name for name in lit_compress.data.__all__ if "train_file" in parameters(name)}
    assert {*early_checks.COLUMNS} == modules - by_split
    for name, columns in early_checks.COLUMNS.items():
        assert {option: parameters(name).get(option, ("text",)) for option in columns} == columns


def parameters(name):
    found = inspect.signature(getattr(lit_compress.data, name)).parameters
    return {option: parameter.default for option, parameter in found.items()}
