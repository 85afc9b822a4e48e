"""The snippets of docs/serving.md, run as they stand on the page, in a folder with a finished run."""

import re
import shutil

import pytest
import torch
from docs.blocks import ROOT, blocks
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.export.command import export

PAGE = ROOT / "docs/serving.md"
SNIPPETS = blocks(PAGE, "python")
NAMES = re.findall(r"^### (.+)$", PAGE.read_text().partition("## Loading an export")[2], re.MULTILINE)
# What is exported before a snippet, and the package that it needs.
FORMATS = {
    "sparse": ("sparse", "torch"),
    "packed": ("packed", "torch"),
    "compressed-tensors": ("compressed-tensors", "compressed_tensors"),
    "ONNX": ("onnx", "onnxruntime"),
    "OpenVINO": ("openvino", "openvino"),
}
# Both round the weights of this model, which was never trained for it.
ROUNDED = ("packed", "compressed-tensors")


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_teacher):
    """The current folder, with what `fit` leaves in runs/student/model."""
    shutil.copytree(tiny_teacher, tmp_path / "runs/student/model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "block"), list(zip(NAMES, SNIPPETS, strict=True)), ids=NAMES)
def test_a_snippet_gives_the_model_s_probabilities(name, block, folder):
    if name in FORMATS:
        to, package = FORMATS[name]
        pytest.importorskip(package)
        export(model="runs/student/model", output=f"runs/student/{to}", to=to)
    names: dict = {}
    exec(compile(block.text, block.place, "exec"), names)
    model = AutoModelForSequenceClassification.from_pretrained("runs/student/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("runs/student/model")
    batch = tokenizer(["a clever and warm film", "dull"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits.softmax(-1)
    rounding = {"rtol": 0.0, "atol": 0.05} if name in ROUNDED else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.as_tensor(names["probabilities"]), expected, **rounding)
    assert names["labels"] == [model.config.id2label[index] for index in expected.argmax(-1).tolist()]


def test_there_is_something_to_run():
    assert SNIPPETS
