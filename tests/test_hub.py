"""A hub that does not answer: local mistakes are found without it, and it is given up on at once."""

import socket

import pytest
from huggingface_hub import constants

from lit_compress import hub
from lit_compress.cli import main
from lit_compress.data import TextClassification
from lit_compress.errors import UserError


@pytest.fixture
def silent(monkeypatch):
    """A server that takes connections and says nothing, in the hub's place."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "SECONDS", 0.6)
        hub._silence.cache_clear()
        yield server
        hub._silence.cache_clear()


def was_asked(server):
    try:
        server.accept()
    except BlockingIOError:
        return False
    return True


FIT = ["fit", "--model=LitTeacher", "--model.pretrained=owner/model", "--data=TextClassification"]


@pytest.mark.parametrize(
    ("files", "option", "message"),
    [
        ({}, "--data.train_file=missing.tsv", "data.train_file: 'missing.tsv' does not exist"),
        ({"a.csv": ""}, "--data.train_file=a.csv", "data.train_file: 'a.csv' is empty"),
        ({"a.xls": "x"}, "--data.train_file=a.xls", "data.train_file: 'a.xls' has an unknown format '.xls'"),
        (
            {"a.csv": "text;label\na;1\n"},
            "--data.train_file=a.csv",
            "data.text_columns: 'text' is not a column of 'a.csv'",
        ),
        ({"a.csv": "text,label\na,1\nb,0\n"}, "--data.val_file=b.csv", "data.val_file: 'b.csv' does not exist"),
    ],
)
def test_a_bad_file_is_named_before_the_hub_is_asked(silent, files, option, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--run=run", "--data.train_file=a.csv", f"--data.cache_dir={tmp_path}/cache", option])
    assert f"lit_compress: error: {message}" in str(ended.value)
    assert not was_asked(silent)
    assert not (tmp_path / "run").exists()


def test_a_hub_that_does_not_answer_is_one_line(silent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,0\nc,1\n")
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--run=run", "--data.train_file=a.csv", f"--data.cache_dir={tmp_path}/cache"])
    message = str(ended.value)
    assert "'owner/model' does not exist here, and the hub (http://127.0.0.1:" in message
    assert "\n" not in message
    assert was_asked(silent)
    assert not was_asked(silent)  # once
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_cache_is_taken_from_there(silent, monkeypatch, tmp_path, caplog):
    (config := tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(config))
    hub.check_hub("owner/model", "model.pretrained")
    assert "owner/model is taken from the cache" in caplog.text
    assert constants.HF_HUB_OFFLINE


def test_a_path_and_an_offline_process_ask_nothing(silent, monkeypatch, tmp_path):
    hub.check_hub(str(tmp_path), "model.pretrained")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.check_hub("owner/model", "model.pretrained")
    assert not was_asked(silent)


def test_a_tokenizer_of_the_hub_is_loaded_after_the_files_were_read(silent, tmp_path):
    data = TextClassification(str(tmp_path / "missing.csv"), tokenizer="owner/model")
    with pytest.raises(UserError, match=r"data\.train_file: "):
        data.check_sources()
    assert "missing.csv" in str(data)
    assert not was_asked(silent)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "no address"], ids=["nobody there", "no address"])
def test_an_address_that_is_none_is_one_line(endpoint, silent, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(
        UserError, match=rf"^model\.pretrained: 'owner/model' .*{endpoint}\) cannot be reached: [^\n]+$"
    ):
        hub.check_hub("owner/model", "model.pretrained")
