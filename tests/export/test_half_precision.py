"""Exports in 16-bit floating point."""

import json
from functools import partial

import onnx
import onnxruntime
import pytest
import torch
from contracts.training import STEPS, data, fit, student
from export.quantized import tiny_tokenizer
from models.families import FAMILIES, batch, build
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import lit_compress.export.half_precision
import lit_compress.export.onnx
from lit_compress.cli import main
from lit_compress.errors import UserError
from lit_compress.export import from_student, write
from lit_compress.export.command import export
from lit_compress.export.half_precision import HalfOptions, write_hf_half, write_onnx_half
from lit_compress.models.folded import Folded
from lit_compress.models.folder import load_whole_model
from lit_compress.models.sentence_embedding import add_dense, give_embeddings
from lit_compress.strategies import MagnitudePruning

FP16 = partial(write_hf_half, options=HalfOptions(dtype="fp16"))
BF16 = partial(write_hf_half, options=HalfOptions(dtype="bf16"))
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_teacher, tiny_data):
    """A run folder with a checkpoint, and its folded model's folder in fp32."""
    folder = tmp_path_factory.mktemp("run")
    fit(student(tiny_teacher), data(tiny_data, tiny_teacher), [MagnitudePruning()], folder / "checkpoints")
    (folder / "checkpoints" / f"step={STEPS}.ckpt").rename(folder / "checkpoints" / "last.ckpt")
    main(["export", f"--run={folder}", f"--output={folder / 'fp32'}"])
    return folder


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_weights_of_hf_are_the_rounded_ones_and_transformers_loads_them_so(dtype, run, tmp_path):
    main(["export", f"--model={run / 'fp32'}", f"--dtype={dtype}", f"--output={tmp_path / 'out'}"])
    whole, half = (load_file(folder / "model.safetensors") for folder in (run / "fp32", tmp_path / "out"))
    assert whole.keys() == half.keys()
    assert all(torch.equal(half[name], whole[name].to(TORCH[dtype])) for name in whole)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(TORCH[dtype]).removeprefix("torch.")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype == TORCH[dtype]


def test_onnx_in_fp16_takes_and_gives_what_fp32_does(run, tmp_path):
    main(["export", f"--model={run / 'fp32'}", "--to=onnx", "--dtype=fp16", f"--output={tmp_path / 'out'}"])
    path = tmp_path / "out/onnx/model_fp16.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    kinds = {each.data_type for each in onnx.load(path).graph.initializer if each.name.endswith("weight")}
    assert kinds == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(path)
    assert {each.type for each in session.get_inputs()} == {"tensor(int64)"}
    assert {each.type for each in session.get_outputs()} == {"tensor(float)"}
    given = batch(3, 5) | {"token_type_ids": torch.zeros(3, 5, dtype=torch.long)}
    found = session.run(None, {each.name: given[each.name].numpy() for each in session.get_inputs()})[0]
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(run / "fp32")(**given).logits
    assert float((torch.tensor(found) - expected).abs().max()) <= 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_a_run_is_compared_on_its_validation_data(to, finished, tmp_path, capsys):
    main(["export", f"--run={finished}", f"--to={to}", "--dtype=fp16", "--strict=true", f"--output={tmp_path / 'out'}"])
    words = "100.0 % of predictions as PyTorch's on 16 examples"
    assert words in capsys.readouterr().out
    assert words in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_a_model_that_computes_something_else_is_refused(to, finished, tmp_path, monkeypatch):
    rounded = lit_compress.export.half_precision._round

    def wrong(model, dtype):
        rounded(model, dtype)
        with torch.no_grad():
            model.classifier.weight.mul_(-1)

    monkeypatch.setattr(lit_compress.export.half_precision, "_round", wrong)
    with pytest.raises(UserError, match="differs from PyTorch"):
        export(run=str(finished), to=to, dtype="fp16", output=str(tmp_path / "out"))
    for module in (lit_compress.export.half_precision, lit_compress.export.onnx):
        monkeypatch.setattr(module, "check_structure", lambda *given, **options: None)
    with pytest.raises(UserError, match="The difference begins in the head; export in fp32"):
        export(run=str(finished), to=to, dtype="fp16", strict=True, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    onnx_fp16 = partial(write_onnx_half, options=HalfOptions(dtype="fp16"))
    write(from_student(build(family), tokenizer), tmp_path / "onnx", onnx_fp16)
    for writer in (FP16, BF16):
        if family == "xlnet":  # makes its parameters in fp32, whatever it is asked for
            with pytest.raises(UserError, match=r"'transformer.mask_emb' of a XLNet.* in torch.float32"):
                write(from_student(build(family), tokenizer), tmp_path / "hf", writer)
            assert not (tmp_path / "hf").exists()
        else:
            write(from_student(build(family), tokenizer), tmp_path / "hf", writer, overwrite=True)


def test_tied_weights_stay_tied(tmp_path):
    model = build("bert", auto=AutoModelForMaskedLM, vocab_size=5000)  # type: ignore[arg-type]
    folded = from_student(model, tiny_tokenizer(tmp_path))
    write(folded, tmp_path / "out", FP16)
    assert (tmp_path / "out/model.safetensors").stat().st_size < 1.5 * 5000 * 16 * 2


@pytest.mark.parametrize("writer", [FP16, BF16], ids=["fp16", "bf16"])
def test_the_projection_of_a_sentence_encoder_stays_as_its_file_is(writer, tmp_path):
    model = build("bert", auto=AutoModel)  # type: ignore[arg-type]
    dense = {"out_features": 12, "bias": True, "activation": "Tanh"}
    model.config.sentence_embedding = {"pooling": "mean", "normalize": False, "max_length": 16, "dense": dense}
    projection = torch.nn.init.normal_(add_dense(model).weight).clone()
    give_embeddings(model)
    with torch.no_grad():
        expected = model(**batch()).sentence_embedding
    write(Folded(model=model, manifest={}, tokenizer=tiny_tokenizer(tmp_path)), tmp_path / "out", writer)
    assert torch.equal(load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"], projection)
    with torch.no_grad():
        found = load_whole_model(str(tmp_path / "out"), "model")(**batch()).sentence_embedding
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_a_weight_beyond_fp16_is_refused_and_nothing_is_written(tmp_path):
    model = build("bert")
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e5
    folded = from_student(model, tiny_tokenizer(tmp_path))
    with pytest.raises(UserError, match=r"'classifier.weight' has 1e\+05, and fp16 holds at most 6.55e\+04") as caught:
        write(folded, tmp_path / "new/out", FP16)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"to": "onnx", "dtype": "bf16"}, ["--dtype", "'bf16'", "ONNX Runtime", "fp16"]),
        ({"to": "hf", "dtype": "int8"}, ["--dtype", "'int8'", "fp32 or fp16 or bf16"]),
        ({"to": "packed", "dtype": "fp16"}, ["--dtype", "'fp16'", "int8 or fp8"]),
        ({"to": "openvino", "dtype": "fp16"}, ["--dtype", "openvino", "hf and onnx and packed"]),
        ({"to": "hf", "strict": True}, ["--strict", "no effect on hf", "--dtype fp16 or bf16"]),
        ({"to": "hf", "dtype": "fp32", "check": "rows.csv"}, ["--check", "no effect on hf"]),
        ({"to": "onnx", "dtype": "fp16", "processor": "vnni"}, ["--processor", "no effect on onnx"]),
    ],
)
def test_what_has_no_effect_is_one_line(arguments, words, run, tmp_path):
    with pytest.raises(UserError) as caught:
        export(model=str(run / "fp32"), output=str(tmp_path / "out"), **arguments)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not (tmp_path / "out").exists()
