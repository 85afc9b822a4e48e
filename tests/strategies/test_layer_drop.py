import pytest
import torch
from contracts.training import STEPS, data, fit, student, trainer
from lightning.pytorch import LightningModule
from models.families import build
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.errors import UserError
from lit_compress.export import fold, load_checkpoint, save_folder, student_from_checkpoint
from lit_compress.models import drop_layers, encoder_layers, kept_layers
from lit_compress.models.layout import LAYOUTS
from lit_compress.modules import LitStudent
from lit_compress.strategies import (
    GradualLayerDropping,
    LayerDropping,
    LowRankEmbedding,
    MagnitudePruning,
    QuantAwareTraining,
    StructuredPruning,
)
from lit_compress.strategies.layer_drop import spread


@pytest.fixture
def pretrained(tmp_path, tiny_model):
    """Makes a folder with a tiny model of a family, of six layers, and the tokenizer of the tiny data."""

    def save(family="bert", change=None):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 130}
        sizes |= {"num_hidden_layers": None, LAYOUTS[family].layers_key: 6}
        sizes |= {"max_position_embeddings": None} if family == "xlnet" else {}
        model = build(family, **sizes)
        if change:
            change(model)
        folder = tmp_path / "pretrained"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def prepared(folder, tiny_data, strategies, stage="fit", **kwargs):
    """The student of a module after setup alone."""
    module, datamodule = student(folder), data(tiny_data, folder)
    run = trainer(folder.parent, strategies, **kwargs)
    datamodule.setup(stage)
    run.datamodule = datamodule
    for strategy in strategies:
        strategy.setup(run, module, stage)
    return module.student


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"drop": 2}, [0, 1, 2, 3]),
        ({"drop": 0.3333}, [0, 1, 2, 3]),
        ({"drop": 0.01}, [0, 1, 2, 3, 4]),
        ({"drop": 2, "which": "bottom"}, [2, 3, 4, 5]),
        ({"drop": 3, "which": "symmetric"}, [0, 1, 5]),
        ({"drop": 2, "which": "alternate-odd"}, [0, 1, 3, 5]),
        ({"drop": 2, "which": "alternate-even"}, [0, 1, 2, 4]),
        ({"keep": [0, 2, 5]}, [0, 2, 5]),
    ],
)
def test_what_is_kept(options, kept, pretrained, tiny_data):
    folder = pretrained()
    model = prepared(folder, tiny_data, [LayerDropping(**options)])
    assert kept_layers(model) == kept
    assert model.config.num_hidden_layers == len(kept)
    source = encoder_layers(AutoModelForSequenceClassification.from_pretrained(folder))
    for layer, index in zip(encoder_layers(model), kept, strict=True):
        expected = source[index].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("which", ["aggregation", "contribution"])
def test_a_fraction_of_the_layers_whatever_the_rule(which, pretrained, tiny_data):
    assert len(kept_layers(prepared(pretrained(), tiny_data, [LayerDropping(drop=0.5, which=which)]))) == 3


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (LayerDropping(drop=5), "LayerDropping.drop: 1 of 6 layers are left"),
        (LayerDropping(keep=[2]), "LayerDropping.keep: 1 of 6 layers are left"),
        (GradualLayerDropping(drop=5), "GradualLayerDropping.drop: 1 of 6 layers are left"),
        (LayerDropping(drop=4), None),
        (GradualLayerDropping(drop=4), None),
    ],
)
def test_less_than_a_quarter_of_the_layers_is_said(strategy, said, pretrained, tiny_data, tmp_path, caplog):
    folder = pretrained()
    fit(student(folder), data(tiny_data, folder), [strategy], tmp_path / "run")
    found = [record.getMessage() for record in caplog.records if " are left" in record.getMessage()]
    assert [message.partition(",")[0] for message in found] == ([said] if said else [])


def still(*indices):
    """Make layers of a ModernBERT pass on what comes in: the residual is all that is left."""

    def change(model):
        with torch.no_grad():
            for index in indices:
                model.model.layers[index].attn.Wo.weight.zero_()
                model.model.layers[index].mlp.Wo.weight.zero_()

    return change


def test_layers_that_contribute_nothing_go(pretrained, tiny_data):
    folder = pretrained("modernbert", still(2, 4))
    strategy = LayerDropping(drop=2, which="contribution", examples=7)
    assert kept_layers(prepared(folder, tiny_data, [strategy])) == [0, 1, 3, 5]
    by_threshold = LayerDropping(threshold=1 - 1e-9, which="contribution")
    assert kept_layers(prepared(folder, tiny_data, [by_threshold])) == [0, 1, 3, 5]


def test_a_threshold_without_effect_shows_the_similarities(pretrained, tiny_data):
    for threshold, what in ((-0.9, "no layer"), (1 - 1e-12, "every layer")):
        with pytest.raises(UserError, match=rf"LayerDropping.threshold: similarities from \d\.\d+ to .* leave {what}"):
            prepared(pretrained(), tiny_data, [LayerDropping(threshold=threshold, which="contribution")])


@pytest.mark.parametrize(("which", "kept"), [("aggregation", [0, 1, 2, 3, 4]), ("variance", [0, 2, 3, 4, 5])])
def test_layers_with_the_smallest_weights_go(which, kept, pretrained, tiny_data):
    def change(model):
        # Layer 5: small but varied. Layer 1: large and all the same.
        with torch.no_grad():
            for parameter in encoder_layers(model)[5].parameters():
                parameter.mul_(0.5)
            for parameter in encoder_layers(model)[1].parameters():
                parameter.fill_(0.3)

    assert kept_layers(prepared(pretrained(change=change), tiny_data, [LayerDropping(1, which)])) == kept


# RoBERTa and its kin and ELECTRA have BERT's layers.
@pytest.mark.parametrize("family", ["bert", "distilbert", "xlnet", "albert", "mpnet", "modernbert", "deberta-v2"])
def test_every_family_trains_with_fewer_layers(family, pretrained, tiny_data, tmp_path):
    folder = pretrained(family)
    module = student(folder, folder)
    targets = ["*.ff.*"] if family == "xlnet" else None
    strategies = [LayerDropping(drop=2), MagnitudePruning(end="50%", targets=targets)]
    strategies += [QuantAwareTraining(start="50%", freeze_observers="75%", targets=targets)]
    strategies += [GradualLayerDropping(drop=2)] if family != "albert" else []
    run = fit(module, data(tiny_data, folder), strategies, tmp_path / "run", max_epochs=1)
    assert run.global_step == STEPS // 2
    assert fold(module.student).config.num_hidden_layers == (4 if family == "albert" else 2)
    again = student_from_checkpoint(load_checkpoint(tmp_path / "run" / f"step={STEPS // 2}.ckpt"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.student.state_dict().items())


def test_albert_can_only_lose_its_top(pretrained, tiny_data):
    folder = pretrained("albert")
    for options in ({"drop": 2, "which": "bottom"}, {"drop": 2, "which": "contribution"}, {"keep": [0, 2]}):
        with pytest.raises(UserError, match=r"^LayerDropping\.(which|keep): .*ALBERT stores one layer"):
            prepared(folder, tiny_data, [LayerDropping(**options)])
    with pytest.raises(UserError, match=r"^GradualLayerDropping\.drop: ALBERT stores one layer"):
        prepared(folder, tiny_data, [GradualLayerDropping(drop=1)])


def test_the_same_student_is_not_dropped_again(pretrained, tiny_data, tmp_path):
    folder = pretrained()
    module, datamodule = student(folder), data(tiny_data, folder)
    run = fit(module, datamodule, [LayerDropping(drop=3, which="contribution")], tmp_path / "run", max_epochs=1)
    kept = kept_layers(module.student)
    expected = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
    for _ in range(2):
        (found,) = run.validate(module, datamodule, verbose=False)
        assert {name: pytest.approx(value) for name, value in found.items()} == expected
        assert kept_layers(module.student) == kept


@pytest.mark.parametrize("options", [{"drop": 3, "which": "bottom"}, {"drop": 3, "which": "contribution"}])
@pytest.mark.parametrize("listed", [True, False])
def test_a_checkpoint_brings_its_layers(options, listed, pretrained, tiny_data, tmp_path):
    folder = pretrained()
    module, datamodule = student(folder), data(tiny_data, folder)
    run = fit(module, datamodule, [LayerDropping(**options)], tmp_path / "run", max_epochs=1)
    expected = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
    # In another process, with the strategies or without any, on a model that was just loaded.
    fresh = student(folder)
    callbacks = [LayerDropping(**options)] if listed else []
    (found,) = trainer(tmp_path, callbacks).validate(
        fresh, datamodule, ckpt_path=tmp_path / "run" / "step=4.ckpt", verbose=False, weights_only=True
    )
    assert {name: pytest.approx(value) for name, value in found.items()} == expected
    assert kept_layers(fresh.student) == kept_layers(module.student)


def test_loading_a_module_from_a_checkpoint(pretrained, tiny_data, tmp_path):
    folder = pretrained("modernbert")
    module = student(folder)
    fit(module, data(tiny_data, folder), [LayerDropping(keep=[0, 2, 3]), GradualLayerDropping(1)], tmp_path / "run")
    path = tmp_path / "run" / f"step={STEPS}.ckpt"
    again = LitStudent.load_from_checkpoint(path, weights_only=True)
    assert again.student.config.layer_types == module.student.config.layer_types
    batch = {"input_ids": torch.randint(5, 30, (2, 20)), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    with torch.inference_mode():
        expected = module.student.eval()(**batch).logits
        assert torch.equal(again.student.eval()(**batch).logits, expected)
        assert torch.equal(student_from_checkpoint(load_checkpoint(path))(**batch).logits, expected)


@pytest.mark.parametrize("other", [{"drop": 3}, {"keep": [0, 1, 5]}, None])
def test_resuming_with_other_layers_is_an_error(other, pretrained, tiny_data, tmp_path):
    folder = pretrained()
    fit(student(folder), data(tiny_data, folder), [LayerDropping(keep=[0, 2])], tmp_path / "run", max_epochs=1)
    callbacks = [LayerDropping(**other)] if other else []
    if other is None:  # without the strategy the checkpoint decides
        module = student(folder)
        fit(module, data(tiny_data, folder), callbacks, tmp_path / "on", ckpt_path=tmp_path / "run" / "step=4.ckpt")
        assert kept_layers(module.student) == [0, 2]
        return
    with pytest.raises(UserError, match=r"ckpt_path: the checkpoint has layers \[0, 2\]") as caught:
        fit(
            student(folder), data(tiny_data, folder), callbacks, tmp_path / "on",
            ckpt_path=tmp_path / "run" / "step=4.ckpt",
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_all_layers_is_not_for_fewer(pretrained, tiny_data, tmp_path):
    folder = pretrained()
    fit(student(folder), data(tiny_data, folder), [], tmp_path / "run", max_epochs=1)
    with pytest.raises(UserError, match="ckpt_path: the checkpoint has layers all"):
        fit(
            student(folder), data(tiny_data, folder), [LayerDropping(drop=1)], tmp_path / "on",
            ckpt_path=tmp_path / "run" / "step=4.ckpt",
        )  # fmt: skip


def test_contribution_needs_a_fit_or_its_checkpoint(pretrained, tiny_data, tmp_path):
    folder = pretrained()
    with pytest.raises(UserError, match="measured in fit; give the ckpt_path"):
        trainer(tmp_path, [LayerDropping(drop=1, which="contribution")]).validate(
            student(folder), data(tiny_data, folder), verbose=False
        )


def test_contribution_needs_a_data_module(pretrained, tiny_data, tmp_path):
    folder = pretrained()
    datamodule = data(tiny_data, folder)
    datamodule.setup("fit")
    with pytest.raises(UserError, match="needs a data module"):
        trainer(tmp_path, [LayerDropping(drop=1, which="contribution")]).fit(
            student(folder), datamodule.train_dataloader(), datamodule.val_dataloader()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "drop: give one of drop, threshold and keep, not none"),
        ({"drop": 1, "keep": [0]}, "drop: give one of .* not drop and keep"),
        ({"drop": 0}, "drop: 0 must be a whole number of 1 or more, or a fraction"),
        ({"drop": 1, "which": "middle"}, "which: 'middle' must be one of top, bottom, .* variance"),
        ({"keep": [0], "which": "bottom"}, "which: 'bottom' has no effect on keep"),
        ({"threshold": 0.9}, "threshold: 0.9 has no effect on which: top"),
        ({"threshold": 1.5, "which": "contribution"}, "threshold: 1.5 must be between -1 and 1"),
        ({"drop": 1, "examples": 9}, "examples: 9 has no effect on which: top"),
        ({"drop": 1, "which": "contribution", "examples": 0}, "examples: 0 must be 1 or more"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=rf"^LayerDropping\.{message}") as caught:
        LayerDropping(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        ([LayerDropping(drop=6)], r"LayerDropping\.drop: of 6 layers top can drop 1 to 5, not 6"),
        ([LayerDropping(4, "alternate-odd")], r"LayerDropping\.drop: .* alternate-odd can drop 1 to 3, not 4"),
        ([LayerDropping(6, "variance")], r"LayerDropping\.drop: .* 1 to 5 can be dropped, not 6"),
        ([LayerDropping(keep=[0, 9])], r"LayerDropping\.keep: \[0, 9\] must be ascending"),
        ([LayerDropping(keep=[0, 1, 2, 3, 4, 5])], r"LayerDropping\.keep: .* are all layers"),
        ([LayerDropping(drop=1), LayerDropping(drop=2)], "LayerDropping is there more than once"),
        ([GradualLayerDropping(drop=1), LayerDropping(drop=1)], "LayerDropping must come before"),
        ([GradualLayerDropping(drop=6)], r"GradualLayerDropping\.drop: 6 leaves none of 6 layers; give at most 5"),
        ([LayerDropping(drop=4), GradualLayerDropping(drop=2)], r"GradualLayerDropping\.drop: 2 leaves none of 2"),
        ([GradualLayerDropping(1, end="9 epochs")], r"GradualLayerDropping\.end: step 36 comes after training ends"),
    ],
)
def test_what_does_not_fit_the_model(strategies, message, pretrained, tiny_data, tmp_path):
    folder = pretrained()
    with pytest.raises(UserError, match=f"^(compression: )?{message}") as caught:
        fit(student(folder), data(tiny_data, folder), strategies, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", [LayerDropping(drop=1), GradualLayerDropping(drop=1)])
def test_only_encoders_have_layers(strategy, tmp_path):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.student = nn.Linear(2, 2)

    with pytest.raises(UserError, match=r"LayerDropping of model\.pretrained: 'Linear' is not one of bert, "):
        strategy.setup(trainer(tmp_path, [strategy]), Module(), "fit")


def test_masks_and_quantizers_go_with_fewer_layers_in_any_order(pretrained, tiny_data, tmp_path):
    folder = pretrained()
    states = []
    for order in (1, -1):
        module = student(folder)
        strategies = [LayerDropping(drop=3), MagnitudePruning(end="50%"), QuantAwareTraining(start="50%")][::order]
        fit(module, data(tiny_data, folder), strategies, tmp_path / str(order))
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert set(states[0]) == set(states[1])


def test_layers_and_what_is_in_them_go_together(pretrained, tiny_data, tmp_path):
    # ROSITA's three: fewer layers, fewer heads and neurons in them, a smaller table.
    folder = pretrained()
    module, datamodule = student(folder), data(tiny_data, folder)
    strategies = [
        LayerDropping(keep=[0, 1, 3, 4, 5]),
        GradualLayerDropping(drop=2, end="50%"),
        StructuredPruning(heads=1, neurons=0.5, scope="global", pruning_steps=2, criterion="magnitude", end="50%"),
        LowRankEmbedding(rank=4),
    ]
    fit(module, datamodule, strategies, tmp_path / "run")
    model = module.student.eval()
    batch = {"input_ids": torch.randint(5, 30, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    saved = save_folder(model, datamodule.tokenizer, tmp_path / "model")
    again = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    with torch.inference_mode():
        assert torch.allclose(again(**batch).logits, model(**batch).logits, atol=1e-5)
    shapes = again.config.quantization_config["shapes"]
    assert len(encoder_layers(again)) == len(shapes["heads"]) == 3
    # Such a model can lose layers again: what its configuration says of each layer follows.
    drop_layers(again, [0, 2])
    assert again.config.quantization_config["shapes"]["heads"] == [shapes["heads"][index] for index in (0, 2)]
    again.save_pretrained(tmp_path / "next")
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "next").eval()
    with torch.inference_mode():
        assert torch.equal(last(**batch).logits, again(**batch).logits)


@pytest.mark.parametrize(("rows", "chosen"), [(2, [0]), (6, [0, 3, 6]), (20, list(range(10))), (99, list(range(10)))])
def test_batches_are_taken_from_everywhere(rows, chosen):
    loader = [{"input_ids": torch.full((2, 1), number)} for number in range(10)]
    assert [int(batch["input_ids"][0]) for batch in spread(loader, rows)] == chosen
    stream = spread(iter_only(loader), rows)
    assert [int(batch["input_ids"][0]) for batch in stream] == list(range(len(chosen)))


class iter_only:
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)
