import inspect
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from contracts.training import STEPS, data, differences, fit, student
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.cli import main
from lit_compress.commands import export_model
from lit_compress.errors import UserError
from lit_compress.export import fold, from_source, write
from lit_compress.export.command import Format, export
from lit_compress.files import atomic_folder
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
        path = folder / "checkpoints" / f"step={step}.ckpt"
        export(checkpoint=str(path), output=str(tmp_path / str(step)), unfinished=True)
    models = [AutoModelForSequenceClassification.from_pretrained(tmp_path / str(step)) for step in (1, STEPS - 1)]
    zeros = [sum(int((p == 0).sum()) for n, p in model.named_parameters() if ".layer." in n) for model in models]
    assert zeros[0] < zeros[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output": "out"}, ["--run", "--checkpoint"]),
        ({"output": "out", "run": "{run}", "model": "folder"}, ["--run", "--checkpoint"]),
        ({"output": "out", "run": "{run}", "checkpoint": "x.ckpt"}, ["checkpoint", "'x.ckpt'"]),
        ({"run": "{run}"}, ["--output"]),
        ({"run": "", "output": "out"}, ["--run"]),
        ({"run": "nowhere", "output": "out"}, ["--run", "'nowhere'"]),
        ({"checkpoint": "nowhere.ckpt", "output": "out"}, ["checkpoint", "'nowhere.ckpt'"]),
        ({"checkpoint": "", "output": "out"}, ["checkpoint"]),
        ({"run": "{run}", "output": "{run}"}, ["--output", "which is read"]),
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
    text = inspect.getdoc(export_model)
    assert [name for name in inspect.signature(export).parameters if f"{name}:" not in text] == []


@pytest.mark.parametrize("to", [name for name in get_args(Format) if name != "hf"])
def test_every_format_from_a_run_by_the_command(to, run, tmp_path, capsys):
    main(["export", f"--run={run[0]}", f"--to={to}", f"--output={tmp_path / 'out'}"])
    saved, following = capsys.readouterr().out.splitlines()[-2:]
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) / 1e6
    assert saved == f"Saved as {tmp_path / 'out'}, {size:.1f} MB"
    assert following == f"Next: lit_compress benchmark {tmp_path / 'out'}"
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names >= {"config.json", "tokenizer.json", "compression.json", "README.md"}
    assert len({path for path in names if path.endswith((".safetensors", ".onnx", ".xml"))}) == 1


def test_a_model_folder_is_a_source_too(run, tmp_path):
    export(run=str(run[0]), output=str(tmp_path / "first"))
    export(model=str(tmp_path / "first"), to="sparse", output=str(tmp_path / "second"))
    export(model=str(tmp_path / "second"), output=str(tmp_path / "third"))
    first, third = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "third"))
    assert differences(first, third) == []
    card = [(tmp_path / name / "compression.json").read_text() for name in ("first", "third")]
    assert card[0] == card[1]


@pytest.mark.parametrize(
    ("to", "module", "extra"),
    [
        ("onnx", "onnxruntime", "onnx"),
        ("onnx-int8", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("compressed-tensors", "compressed_tensors", "compressed-tensors"),
    ],
)
def test_a_missing_extra_is_named(to, module, extra, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'lit_compress\[{extra}\]'") as caught:
        export(run=str(run[0]), to=to, output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"linears": {"nowhere": {}}},
        {"linears": []},
        {"linears": {"{0}": {"scales": {"weight": [1e400]}}}},
        {"linears": {"{0}": {"scales": {"weight": [0.1] * 10**5}, "weight_quantizer": {"spec": {"bits": 8}}}}},
        {"linears": {"{0}": {"scales": {"weight": [-0.1]}, "weight_quantizer": {"spec": {"bits": 8}}}}},
        {"linears": {"{0}": {"scales": {"weight": [0.1]}, "weight_quantizer": {"spec": {"bits": 10**9}}}}},
        {"linears": {"{0}": {"scales": {"weight": [0.123]}, "weight_quantizer": {"spec": {"bits": 8}}}}},
        {"linears": {"{0}": {"scales": {"input": {"scale": 1.0, "zero_point": 300}}}}},
        {"attention": {"{0}": {"scales": {"evil": {"scale": 1.0, "zero_point": 0}}}}},
        {"embeddings": {"{0}": {"scales": {}}}},
    ],
)
def test_a_hostile_manifest_is_refused(change, run, tmp_path):
    export(run=str(run[0]), output=str(tmp_path / "model"))
    path = tmp_path / "model/compression.json"
    name = next(iter(json.loads(path.read_text())["linears"]))
    path.write_text(json.dumps(change).replace("{0}", name))
    with pytest.raises(UserError, match=r"compression\.json") as caught:
        export(model=str(tmp_path / "model"), to="sparse", output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["hf", "sparse", "onnx"])
def test_a_full_disk_leaves_what_was_there(to, run, tmp_path):
    export(run=str(run[0]), output=str(tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    folded = from_source(run=str(run[0]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(UserError, match="cannot be written") as caught:
            write(folded, tmp_path / "out", to, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_export_leaves_the_old_or_the_new_folder(tmp_path):
    with atomic_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("old")
    for moment in ("while it is written", "at the end"):
        child = os.fork()
        if child == 0:
            if moment == "at the end":
                Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
            with atomic_folder(tmp_path / "out", overwrite=True) as staging:
                (staging / "a").write_text("new")
                if moment == "while it is written":
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert (tmp_path / "out/a").read_text() == ("old" if moment == "while it is written" else "new")
