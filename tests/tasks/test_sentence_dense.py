"""The projection of a sentence encoder (Dense of sentence-transformers): read, applied, trained and exported."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from contracts import tasks
from contracts.errors import error_of
from contracts.training import fit
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

from lit_compress.cli import main
from lit_compress.export import load_checkpoint, student_from_checkpoint
from lit_compress.models.load import load_model
from lit_compress.models.sentence_embedding import SentenceDense
from lit_compress.modules import LitStudent
from lit_compress.tasks import EmbeddingTask

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)

TEXTS = ["a good film", "the plot is very dull and the actor was not in it"]


def saved(folder, tiny_model, normalize=True, activation=None, **options):
    """A model of sentence-transformers with a projection of 32 to 12, and what it makes of the texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(0)
    inner = Transformer(str(tiny_model), max_seq_length=24)
    dense = Dense(32, 12, activation_function=activation or nn.Tanh(), **options)
    modules = [inner, Pooling(32, "mean"), dense, *([Normalize()] if normalize else [])]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(folder))
    return folder, model.encode(TEXTS)


def vectors(model, folder):
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).sentence_embedding.numpy()


@pytest.mark.parametrize(
    ("normalize", "options"), [(True, {}), (False, {"bias": False}), (True, {"activation": nn.Identity()})]
)
def test_it_is_applied_as_sentence_transformers_does(normalize, options, tmp_path, tiny_model):
    folder, expected = saved(tmp_path / "model", tiny_model, normalize, **options)
    model = load_model(str(folder), EmbeddingTask(), "model").eval()
    assert expected.shape == (2, 12)
    assert np.abs(vectors(model, folder) - expected).max() < 1e-5


@pytest.mark.parametrize("to", ["hf", "packed", "sparse", "onnx", "onnx-int8", "compressed-tensors"])
def test_every_format_keeps_it(to, tmp_path, tiny_model):
    from sentence_transformers import SentenceTransformer

    folder, expected = saved(tmp_path / "model", tiny_model)
    out, file = tmp_path / "out", tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    main(["export", f"--model={folder}", f"--output={out}", f"--to={to}"])
    main(["predict", f"--model={out}", f"--file={file}", f"--output={tmp_path / 'v.npy'}"])
    found = np.load(tmp_path / "v.npy")
    assert found.shape == (2, 12)
    exact = to in ("hf", "sparse", "onnx")
    assert np.abs(found - expected).max() < (1e-5 if exact else 0.2)
    assert [*json.loads((out / "2_Dense" / "config.json").read_text())] == [
        "in_features", "out_features", "bias", "activation_function",
    ]  # fmt: skip
    if to == "hf":
        assert np.abs(SentenceTransformer(str(out), device="cpu").encode(TEXTS) - expected).max() < 1e-5
        _, info = AutoModel.from_pretrained(out, output_loading_info=True)  # the encoder's file is as it was
        assert not info["unexpected_keys"]


def test_a_student_learns_it_and_its_checkpoint_has_it(tmp_path, tiny_model):
    folder, _ = saved(tmp_path / "model", tiny_model)
    datamodule = tasks.data("embedding", tmp_path / "data", tiny_model)
    module = LitStudent(str(folder), task=datamodule.task, tokenizer=str(folder), teacher=str(folder))
    before = module.student.get_parameter("sentence_dense.weight").detach().clone()
    fit(module, datamodule, [], tmp_path, max_epochs=1)
    learned = module.student.get_parameter("sentence_dense.weight").detach()
    assert not torch.equal(before, learned)
    written = load_file(tmp_path / "run" / "model" / "2_Dense" / "model.safetensors")
    assert torch.equal(written["linear.weight"], learned)
    again = student_from_checkpoint(load_checkpoint(tmp_path / f"step={module.trainer.global_step}.ckpt"))
    assert np.abs(vectors(again, folder) - vectors(module.student.eval(), folder)).max() < 1e-6


def test_another_width_of_the_teacher_is_told_by_its_vectors(tmp_path, tiny_model):
    folder, _ = saved(tmp_path / "model", tiny_model)
    datamodule = tasks.sentence_texts(tmp_path / "data", tiny_model)
    options = {"task": datamodule.task, "tokenizer": str(tiny_model), "teacher": str(folder)}
    said = error_of(lambda: LitStudent(str(tiny_model), **options))
    assert "the student is 32 wide and the teacher 12" in said


def test_what_is_not_known_of_it_is_refused(tmp_path, tiny_model):
    folder, _ = saved(tmp_path / "model", tiny_model)
    (folder / "2_Dense" / "model.safetensors").rename(tmp_path / "weights")
    assert "it has no 2_Dense/model.safetensors" in error_of(load_model, str(folder), EmbeddingTask(), "model")
    settings = json.loads((folder / "2_Dense" / "config.json").read_text())
    for key, value, message in (
        ("use_residual", True, "its Dense has {'use_residual': True}"),
        ("activation_function", "torch.nn.Softplus", "one of Identity, Tanh, ReLU, GELU, Sigmoid"),
        ("activation_function", "mine.Act", "its Dense has {'activation_function': 'mine.Act'}"),
        ("out_features", "many", "out_features, a number"),
    ):
        (folder / "2_Dense" / "config.json").write_text(json.dumps(settings | {key: value}))
        assert message in error_of(load_model, str(folder), EmbeddingTask(), "model")


def test_vectors_are_in_fp32_whatever_the_precision():
    torch.manual_seed(0)
    dense, given = SentenceDense(8, 4, True, "Identity"), torch.randn(3, 8)
    nn.init.normal_(dense.weight)
    expected = dense(given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense(given), expected)
