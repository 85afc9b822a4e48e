"""The Python of docs/exports.md, run on the folders that its commands make."""

import pytest
import torch
from docs.blocks import ROOT, blocks
from models.families import build
from transformers import AutoTokenizer

from lit_compress.export import from_student, write

PYTHON = blocks(ROOT / "docs/exports.md", "python")
FOLDERS = {
    "compressed/student": "sparse",
    "compressed/student-onnx": "onnx-int8",
    "compressed/student-openvino": "openvino",
    "compressed/student-w8a8": "compressed-tensors",
}


def test_every_folder_has_a_snippet():
    assert [next(f for f in FOLDERS if f'"{f}"' in block.text) for block in PYTHON] == list(FOLDERS)


@pytest.mark.parametrize(("block", "folder"), list(zip(PYTHON, FOLDERS, strict=True)), ids=FOLDERS.values())
def test_a_snippet_loads_what_the_command_writes(block, folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = build("bert", vocab_size=len(tokenizer), max_position_embeddings=64)
    write(from_student(model, tokenizer), folder, FOLDERS[folder])
    names = {}
    exec(block.text, names)
    with torch.no_grad():
        expected = model(**tokenizer(["a text"], return_tensors="pt")).logits
        if "logits" not in names:
            names["logits"] = names["model"](**tokenizer(["a text"], return_tensors="pt")).logits
    assert (torch.as_tensor(names["logits"]) - expected).abs().max() <= 0.1 * expected.abs().max()
