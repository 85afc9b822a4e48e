import inspect

import pytest
import torch
from contracts.training import STEPS, data, fit, student
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.export import fold
from lit_compress.export.run import export
from lit_compress.strategies import MagnitudePruning


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_teacher, tiny_data):
    """A run folder with a checkpoint, and the module it is of."""
    folder = tmp_path_factory.mktemp("run")
    module = student(tiny_teacher)
    fit(module, data(tiny_data, tiny_teacher), [MagnitudePruning()], folder / "checkpoints")
    (folder / "checkpoints" / f"step={STEPS}.ckpt").rename(folder / "checkpoints" / "last.ckpt")
    return folder, module.student


@pytest.mark.parametrize("source", ["run", "checkpoint"])
def test_a_run_or_a_checkpoint_becomes_a_folder(source, run, tmp_path):
    folder, model = run
    given = {"run": folder, "checkpoint": folder / "checkpoints" / "last.ckpt"}[source]
    export(**{source: str(given)}, output=str(tmp_path / "out"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    expected = fold(model).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size > 0
    assert not list(folder.glob("model"))


def test_an_earlier_checkpoint_is_an_earlier_student(run, tmp_path):
    folder, _ = run
    for step in (1, STEPS - 1):
        export(checkpoint=str(folder / "checkpoints" / f"step={step}.ckpt"), output=str(tmp_path / str(step)))
    models = [AutoModelForSequenceClassification.from_pretrained(tmp_path / str(step)) for step in (1, STEPS - 1)]
    zeros = [sum(int((p == 0).sum()) for n, p in model.named_parameters() if ".layer." in n) for model in models]
    assert zeros[0] < zeros[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output": "out"}, ["--run", "--checkpoint"]),
        ({"output": "out", "run": "{run}", "checkpoint": "x.ckpt"}, ["--run", "--checkpoint"]),
        ({"run": "{run}"}, ["--output"]),
        ({"run": "", "output": "out"}, ["--run"]),
        ({"run": "nowhere", "output": "out"}, ["--run", "'nowhere'"]),
        ({"checkpoint": "nowhere.ckpt", "output": "out"}, ["checkpoint", "'nowhere.ckpt'"]),
        ({"checkpoint": "", "output": "out"}, ["checkpoint"]),
        ({"run": "{run}", "output": "{run}"}, ["--output", "--overwrite"]),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(arguments, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        export(**{name: value.format(run=run[0]) for name, value in arguments.items()})
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_is_gone(run, tmp_path):
    checkpoint = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["lit_compress"]["tokenizer"] = "/no/longer/here"
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    with pytest.raises(UserError, match=r"tokenizer.*/no/longer/here") as caught:
        export(checkpoint=str(tmp_path / "moved.ckpt"), output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_argument_is_explained():
    text = inspect.getdoc(export)
    assert [name for name in inspect.signature(export).parameters if f"{name}:" not in text] == []
