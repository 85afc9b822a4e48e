"""What a model card says of the base model, and that its code runs as it stands."""

import re
import shutil

import pytest
import yaml
from contracts.training import student_config
from transformers import AutoModelForSequenceClassification

from lit_compress.cli import main
from lit_compress.models.model_card import base_metadata, card_head


@pytest.fixture
def base(tiny_teacher, tmp_path):
    return shutil.copytree(tiny_teacher, tmp_path / "org" / "base")


def head_of(folder):
    return "\n".join(card_head(AutoModelForSequenceClassification.from_pretrained(folder), "Title"))


def test_a_name_on_the_hub_is_the_base_model(base):
    model = AutoModelForSequenceClassification.from_pretrained(base)
    for name in ("bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"):
        model.config.name_or_path = name
        assert base_metadata(model) == {"base_model": name}
        assert f"\n- base model: {name}\n" in "\n".join(card_head(model, "Title"))
    for name in ("", "/gone/base", "runs/teacher/model", "../base"):
        model.config.name_or_path = name
        assert base_metadata(model) == {}


def test_a_folder_hands_on_what_its_card_names(base):
    known = {"base_model": ["org/first", "org/second"], "license": "other", "license_name": "mine"}
    (base / "README.md").write_text(f"---\n{yaml.safe_dump(known | {'language': 'en', 'tags': ['a']})}---\n# Base\n")
    text = head_of(base)
    assert yaml.safe_load(text.split("---\n")[1]) == {"library_name": "transformers", "tags": ["lit_compress"]} | known
    assert "- base model: org/first, org/second" in text
    assert "licence" not in text


@pytest.mark.parametrize("card", [None, "# No metadata\n", "---\na: [not closed\n---\n", "---\n- a list\n---\n"])
def test_an_unknown_licence_is_said(card, base):
    if card is not None:
        (base / "README.md").write_text(card)
    text = head_of(base)
    assert "- licence: not named here" in text
    assert "license:" not in text
    assert "base model:" not in text
    assert str(base) not in text


def test_of_a_run_wherever_it_is_exported(base, tiny_data, tmp_path, monkeypatch):
    """What was trained from a folder with a card; the folder was given by a path that looks like a name on the hub."""
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: org/first\n---\n")
    monkeypatch.chdir(tmp_path)
    config = student_config(base, tiny_data, trainer={"max_epochs": 1, "accelerator": "cpu"})
    config["model"]["init_args"] |= {"pretrained": "org/base", "teacher": None}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config=task.yaml", "--run=run"])
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    main(["export", "--run=../run", "--output=again"])
    main(["export", "--model=again", "--to=packed", "--output=packed"])
    for card in ("../run/model/README.md", "again/README.md", "packed/README.md"):
        front = yaml.safe_load((tmp_path / "other" / card).read_text().split("---\n")[1])
        assert (front["base_model"], front["license"]) == ("org/first", "mit")


@pytest.mark.parametrize(
    ("to", "packages"),
    [
        ("hf", []),
        ("sparse", []),
        ("packed", []),
        ("onnx", ["onnx", "onnxruntime"]),
        ("openvino", ["onnx", "openvino"]),
    ],
)
def test_the_code_of_every_card_runs_where_the_card_is(to, packages, finished, tmp_path, monkeypatch):
    for package in packages:
        pytest.importorskip(package)
    main(["export", f"--run={finished}", f"--to={to}", f"--output={tmp_path / to}"])
    code = re.search(r"```python\n(.*?)```", (tmp_path / to / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path / to)
    names = {}
    exec(code[1], names)
    outputs = names["outputs"]
    logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    assert tuple(logits.shape) == (1, 2)
