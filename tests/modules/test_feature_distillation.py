from types import SimpleNamespace

import pytest
import torch
from contracts.errors import error_of
from contracts.training import data, fit, trainer
from lightning.pytorch import seed_everything
from models.families import build
from transformers import AutoModel

from lit_compress.export import load_checkpoint, student_from_checkpoint
from lit_compress.functional import attention_kl, attention_mse, hidden_mse, relation_kl
from lit_compress.models.projections import read_projections
from lit_compress.modules import (
    AttentionDistillation,
    HiddenDistillation,
    LitStudent,
    LogitDistillation,
    Optimization,
    RelationDistillation,
)
from lit_compress.tasks import Batch


@pytest.fixture
def make(tiny_teacher):
    def student(teacher, **terms):
        torch.manual_seed(0)
        optimization = Optimization(learning_rate=1e-2, weight_decay=0.1, warmup="0%")
        return LitStudent(
            str(tiny_teacher), str(teacher), distillation=terms, labels=["0", "1"], optimization=optimization
        )

    return student


@pytest.fixture
def batch():
    ids = torch.randint(5, 40, (4, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return Batch({"input_ids": ids, "attention_mask": mask}, {"labels": torch.tensor([0, 1, 1, 0])}, {})


# Hidden states


def states(*levels, shape=(2, 3, 4)):
    return SimpleNamespace(hidden_states=tuple(torch.full(shape, float(level)) for level in levels))


ALL = Batch({"attention_mask": torch.ones(2, 3, dtype=torch.long)}, {}, {})


@pytest.mark.parametrize(
    ("layer_map", "expected"),
    [
        ("uniform", (1 + 9 + 25) / 3),  # 0-0, 1-2, 2-4
        ("last", (16 + 25) / 2),  # 1-3, 2-4
        ("skip", (9 + 25) / 2),  # 1-2, 2-4
        ("drop_multiples", (1 + 9 + 25) / 3),
        ({2: 0}, 1),
    ],
)
def test_layer_maps_by_name(layer_map, expected):
    term = HiddenDistillation(layer_map=layer_map)
    assert term(states(0, 0, 0), states(1, 2, 3, 4, 5), ALL).item() == pytest.approx(expected)


def test_rosita_s_hidden_loss():
    """Sum over embeddings and layers, mean over all elements, padding too: its official code, section 2.5."""
    student, teacher = (SimpleNamespace(hidden_states=tuple(torch.randn(9, 2, 3, 4))) for _ in range(2))
    student.hidden_states = student.hidden_states[:7]
    teacher.hidden_states = tuple(torch.randn(13, 2, 3, 4))
    expected = sum(
        (ours - teacher.hidden_states[2 * i]).square().mean() for i, ours in enumerate(student.hidden_states)
    )
    term = HiddenDistillation(layer_map="drop_multiples", reduction="sum", mask_padding=False)
    got = term(student, teacher, Batch({"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}, {}, {}))
    assert torch.isclose(got, expected)


def test_normalized_layers_weigh_the_same():
    student, teacher = states(0, 0), states(1, 100)
    assert HiddenDistillation(normalize=True)(student, teacher, ALL).item() == pytest.approx(1.0, rel=1e-5)
    assert HiddenDistillation()(student, teacher, ALL).item() == pytest.approx(10001 / 2)


def test_a_gain_is_a_weight(make, batch, wide_teacher):
    term = HiddenDistillation(weight=1.5, projection=True, normalize=True)
    parts = make(wide_teacher, hidden=term).eval().losses(batch)
    assert (parts["loss"] - parts["task"]).item() == pytest.approx(1.5 * parts["hidden"].item(), rel=1e-5)


def test_a_projection_is_one_matrix_for_all_pairs(make, batch, wide_teacher):
    module = make(wide_teacher, hidden=HiddenDistillation(projection=True)).eval()
    weight = module.distillation["hidden"].projection.weight
    assert weight.shape == (48, 32)
    assert [name for name, _ in module.named_parameters() if "distillation" in name] == [
        "distillation.hidden.projection.weight"
    ]
    ours = module(batch, output_hidden_states=True).hidden_states
    inputs = batch.inputs
    theirs = module.teacher(**inputs, output_hidden_states=True).hidden_states
    pairs = {0: 0, 1: 2, 2: 3}
    mask = batch.inputs["attention_mask"]
    expected = sum(hidden_mse(ours[s] @ weight.T, theirs[t], mask) for s, t in pairs.items()) / 3
    assert torch.isclose(module.losses(batch)["hidden"], expected)


def test_a_projection_learns_with_the_student(make, wide_teacher, tiny_data, tiny_teacher, tmp_path):
    module = make(wide_teacher, hidden=HiddenDistillation(projection=True))
    weight = module.distillation["hidden"].projection.weight
    first = weight.detach().clone()
    run = fit(module, data(tiny_data, tiny_teacher), [], tmp_path)
    assert module.distillation["hidden"].projection.weight is weight
    assert not torch.equal(weight, first)
    assert any(p is weight for group in run.optimizers[0].param_groups for p in group["params"])


def test_other_widths_are_an_error_before_anything_is_trained(make, wide_teacher):
    message = error_of(make, wide_teacher, hidden=HiddenDistillation())
    assert "32 wide" in message
    assert "48" in message
    assert "projection" in message


def test_one_projection_cannot_serve_two_widths(tiny_teacher, wide_teacher):
    message = error_of(
        LitStudent,
        str(tiny_teacher),
        teachers={"small": str(tiny_teacher), "wide": str(wide_teacher)},
        distillation={"hidden": HiddenDistillation(projection=True)},
        labels=["0", "1"],
    )
    assert "[32, 48]" in message


# Attention maps


def test_attention_maps_are_those_before_dropout(make, batch, tiny_teacher):
    module = make(tiny_teacher, maps=AttentionDistillation()).train()
    maps = module(batch, output_attentions=True).attentions
    assert [tuple(one.shape) for one in maps] == [(4, 2, 6, 6)] * 2
    for one in maps:
        assert torch.allclose(one.sum(-1), torch.ones(()))
        assert (one[0] > 0).all()
        assert not one[1, :, :, 4:].any()


@pytest.mark.parametrize(("loss", "function"), [("mse", attention_mse), ("kl", attention_kl)])
def test_attention_terms_by_hand(make, batch, loss, function, tiny_teacher):
    module = make(tiny_teacher, maps=AttentionDistillation(loss=loss)).eval()
    with torch.no_grad():
        module.student.bert.encoder.layer[0].attention.self.query.weight.mul_(-30)
    inputs = batch.inputs
    ours = module(batch, output_attentions=True).attentions
    theirs = module.teacher(**inputs, output_attentions=True).attentions
    expected = sum(function(s, t, batch.inputs["attention_mask"]) for s, t in zip(ours, theirs, strict=True)) / 2
    got = module.losses(batch)["maps"]
    assert got > 0
    assert torch.isclose(got, expected)


def test_attention_maps_change_no_answer(make, batch, tiny_teacher):
    plain = make(tiny_teacher, kd=LogitDistillation()).eval()
    visible = make(tiny_teacher, maps=AttentionDistillation()).eval()
    assert torch.allclose(plain(batch).logits, visible(batch).logits, atol=1e-6)


def test_a_copy_has_equal_maps(make, batch, tiny_teacher):
    for loss in ("mse", "kl"):
        parts = make(tiny_teacher, maps=AttentionDistillation(loss=loss)).eval().losses(batch)
        assert parts["maps"].item() == pytest.approx(0, abs=1e-6)


def test_other_numbers_of_heads(make, batch, wide_teacher):
    message = error_of(make, wide_teacher, maps=AttentionDistillation())
    assert "2 attention heads and the teacher 3" in message
    parts = make(wide_teacher, maps=AttentionDistillation(heads="mean", loss="kl", layer_map="last")).losses(batch)
    assert parts["maps"] > 0


@pytest.mark.parametrize("layer_map", [{0: 0}, {3: 1}, {1: -3}])
def test_an_attention_map_that_does_not_exist(make, batch, layer_map, tiny_teacher):
    module = make(tiny_teacher, maps=AttentionDistillation(layer_map=layer_map))
    assert "no attention map" in error_of(module.losses, batch)


def test_what_is_saved_does_not_know_of_attention_maps(make, tiny_teacher, tiny_data, tmp_path):
    module = make(tiny_teacher, maps=AttentionDistillation())
    fit(module, data(tiny_data, tiny_teacher), [], tmp_path)
    checkpoint = load_checkpoint(tmp_path / "step=8.ckpt")
    assert "lit_compress_" not in checkpoint["lit_compress"]["config"]
    assert student_from_checkpoint(checkpoint).config._attn_implementation == "sdpa"
    module.student.save_pretrained(tmp_path / "model")
    assert "lit_compress_" not in (tmp_path / "model/config.json").read_text()


# Relations


def test_relations_of_other_widths_and_heads_by_hand(make, batch, wide_teacher):
    term = RelationDistillation(weight=2.0, relation_heads=4, teacher_layer=2)
    module = make(wide_teacher, relations=term).eval()
    inputs = batch.inputs
    ours = module(batch, output_hidden_states=True).hidden_states
    theirs = module.teacher(**inputs, output_hidden_states=True).hidden_states
    expected = 0.0
    for name in ("query", "key", "value"):
        student = getattr(module.student.bert.encoder.layer[1].attention.self, name)(ours[1])
        teacher = getattr(module.teacher.model.bert.encoder.layer[1].attention.self, name)(theirs[1])
        expected += relation_kl(student, teacher, 4, batch.inputs["attention_mask"])
    parts = module.losses(batch)
    assert torch.isclose(parts["relations"], expected)
    assert torch.isclose(parts["loss"], parts["task"] + 2 * expected)


def test_relations_reach_the_student_s_projections_only(make, batch, wide_teacher):
    module = make(wide_teacher, relations=RelationDistillation(relations=["value"], relation_heads=2)).train()
    module.losses(batch)["relations"].backward()
    attention = module.student.bert.encoder.layer[1].attention.self
    assert attention.value.weight.grad.abs().sum() > 0
    assert attention.query.weight.grad is None
    assert not any(p.grad is not None for p in module.teacher.model.parameters())


def test_relations_leave_no_hook_behind(make, batch, wide_teacher):
    module = make(wide_teacher, relations=RelationDistillation(relation_heads=2))
    module.losses(batch)
    for model in (module.student, module.teacher.model):
        assert not any(part._forward_hooks for part in model.modules())


def test_minilm_is_two_terms(make, batch, tiny_teacher):
    terms = {
        "attention": AttentionDistillation(loss="kl", layer_map={-1: -1}),
        "value_relation": RelationDistillation(relations=["value"], relation_heads=2),
    }
    module = make(tiny_teacher, **terms).eval()
    parts = module.losses(batch)
    assert parts["attention"].item() == pytest.approx(0, abs=1e-6)
    assert parts["value_relation"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        attention = module.student.bert.encoder.layer[1].attention.self
        attention.value.weight.mul_(5)
        attention.key.weight.mul_(-40)
    changed = module.losses(batch)
    assert changed["attention"] > 1e-4
    assert changed["value_relation"] > 1e-4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HiddenDistillation(layer_map="first"), ["layer_map", "'first'", "uniform, last, skip"]),
        (lambda: HiddenDistillation(layer_map={}), ["layer_map", "no pair"]),
        (lambda: HiddenDistillation(reduction="max"), ["reduction", "'max'"]),
        (lambda: AttentionDistillation(loss="cosine"), ["loss", "'cosine'"]),
        (lambda: AttentionDistillation(heads="some"), ["heads", "'some'"]),
        (lambda: RelationDistillation(relations=["query", "hidden"]), ["relations", "'hidden'"]),
        (lambda: RelationDistillation(relations=[]), ["relations", "[]"]),
        (lambda: RelationDistillation(relation_heads=0), ["relation_heads", "0"]),
    ],
)
def test_wrong_values_are_one_line(call, words):
    message = error_of(call)
    assert [word for word in words if word not in message] == []


def test_relation_heads_that_do_not_divide(make, wide_teacher):
    message = error_of(make, wide_teacher, relations=RelationDistillation(relation_heads=48))
    assert "48 does not divide both widths, 32 of the student and 48 of the teacher" in message
    assert "usable are 1, 2, 4, 8, 16" in message


def test_a_layer_that_does_not_exist_has_no_relations(make, wide_teacher):
    message = error_of(make, wide_teacher, relations=RelationDistillation(relation_heads=2, teacher_layer=4))
    assert "has no layer 4; it has 1 to 3" in message


def test_every_term_trains_at_once(make, wide_teacher, tiny_data, tiny_teacher, tmp_path):
    module = make(
        wide_teacher,
        kd=LogitDistillation(0.5),
        hidden=HiddenDistillation(projection=True, normalize=True),
        maps=AttentionDistillation(heads="mean"),
        relations=RelationDistillation(relation_heads=4),
    )
    seed_everything(7)
    run = trainer(tmp_path, [])
    run.fit(module, data(tiny_data, tiny_teacher))
    assert {f"train/{name}" for name in ("loss", "task", "kd", "hidden", "maps", "relations")} <= set(
        run.callback_metrics
    )


def test_a_compiled_student_gives_the_same_terms(make, batch, wide_teacher):
    losses = []
    for compiled in (False, True):
        module = make(
            wide_teacher,
            hidden=HiddenDistillation(projection=True),
            maps=AttentionDistillation(heads="mean"),
            relations=RelationDistillation(relation_heads=4),
        ).eval()
        if compiled:
            torch._dynamo.reset()
            module.student.compile(backend="aot_eager")
            with torch.no_grad():
                module(batch)  # validation comes first, and needs none of what the terms need
        parts = module.losses(batch)
        parts["loss"].backward()
        gradient = module.student.bert.encoder.layer[1].attention.self.query.weight.grad
        losses.append({name: part.item() for name, part in parts.items()} | {"gradient": gradient.norm().item()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("rows", [2, 8])
def test_relations_of_longformer_are_those_of_each_text(rows):
    # Its attention works on (tokens, batch, width), and fills windows: 6 tokens become 8.
    models = [build("longformer", AutoModel, num_hidden_layers=1, attention_window=[4]) for _ in range(2)]
    with torch.no_grad():
        for weight in models[1].parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    ids, mask = torch.randint(5, 30, (rows, 6)), torch.ones(rows, 6, dtype=torch.long)
    mask[0, 4:] = 0

    def term(chosen):
        outputs = []
        for model in models:
            with torch.no_grad(), read_projections(model, [-1]) as projections:
                model(input_ids=ids[chosen], attention_mask=mask[chosen])
            outputs.append(SimpleNamespace(projections=projections))
        return RelationDistillation(relation_heads=2)(*outputs, Batch({"attention_mask": mask[chosen]}, {}, {})).item()

    alone = [term(slice(row, row + 1)) for row in range(rows)]
    tokens = mask.sum(1).tolist()
    mean = sum(value * count for value, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert term(slice(None)) == pytest.approx(mean, rel=1e-4)
