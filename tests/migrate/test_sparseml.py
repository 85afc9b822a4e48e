"""SparseML's modifiers, one by one: what each becomes, and what is said about the rest."""

import pytest
import torch
import yaml
from torch import nn

from lit_compress.errors import UserError
from lit_compress.migrate.draft import Draft
from lit_compress.migrate.sparseml import from_sparseml
from lit_compress.modules import Optimization, Phase
from lit_compress.nn.replace_layers import match_modules


def draft_of(*modifiers: str, task="classification", layers=None, more="") -> Draft:
    """The draft of a recipe of modifiers, each as a line of flow YAML."""
    draft = Draft(task=task)
    from_sparseml(more + "modifiers:\n" + "".join(f"  - !{m}\n" for m in modifiers), draft, layers=layers)
    return draft


def strategies(draft: Draft) -> list[tuple[str, dict]]:
    return [(entry["class_path"], entry.get("init_args", {})) for entry in draft.compression]


PRUNE = "{params: ['re:.*query.weight'], init_sparsity: 0.3, final_sparsity: 0.9, start_epoch: 2, end_epoch: 8.5"


@pytest.mark.parametrize("name", ["GMPruningModifier", "MagnitudePruningModifier"])
def test_magnitude(name):
    draft = draft_of(f"{name} {PRUNE}, update_frequency: 0.01, inter_func: linear, mask_type: block4}}")
    expected = {"sparsity": 0.9, "start": "2 epochs", "end": "8.5 epochs", "every": "0.01 epochs"}
    expected |= {"initial_sparsity": 0.3, "schedule": "linear", "pattern": "1x4", "targets": ["re:.*query$"]}
    assert strategies(draft) == [("MagnitudePruning", expected)]
    assert draft.epochs == 8.5
    assert draft.settings("r")["trainer"] == {"max_epochs": 9}
    assert len(draft.left_out) == 1  # the learning rate, which no modifier sets


@pytest.mark.parametrize(
    "modifier", [f"GlobalMagnitudePruningModifier {PRUNE}}}", f"GMPruningModifier {PRUNE}, global_sparsity: True}}"]
)
def test_one_threshold_for_all(modifier):
    ((name, options),) = strategies(draft_of(modifier))
    assert (name, options["scope"], options["every"]) == ("MagnitudePruning", "global", "1 steps")


def test_sparsity_by_parameter():
    draft = draft_of(
        "GMPruningModifier {final_sparsity: {0.5: [a.weight], 0.8: ['re:b.*weight', c.bias]}, end_epoch: 1}"
    )
    assert [(options["sparsity"], options["targets"]) for _, options in strategies(draft)] == [
        (0.5, ["a"]),
        (0.8, ["re:b.*weight"]),
    ]
    assert any("c.bias" in line for line in draft.left_out)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("leave_enabled: False", "stays pruned"),
        ("inter_func: inverse_cubic", "inverse_cubic"),
        ("mask_type: filter", "StructuredPruning"),
        ("log_types: __ALL__", "log_types"),
        ("score_type: MFAC", "score_type: MFAC"),
        ("phased: True", "phased"),
        ("hidden_knob: 7", "hidden_knob: 7"),
    ],
)
def test_an_option_without_counterpart_is_listed(option, said):
    assert any(said in line for line in draft_of(f"GMPruningModifier {PRUNE}, {option}}}").left_out)


def test_where_the_model_is_sparse_already():
    draft = draft_of(
        "GMPruningModifier {params: __ALL_PRUNABLE__, init_sparsity: __FROM_PARAM__, final_sparsity: 0.9, end_epoch: 2}"
    )
    assert "initial_sparsity" not in strategies(draft)[0][1]
    assert any("__FROM_PARAM__" in line for line in draft.left_out)


def test_obs():
    draft = draft_of(
        f"OBSPruningModifier {PRUNE}, num_grads: 512, damp: 1e-8, fisher_block_size: 4, mask_type: block4, "
        "grad_sampler_kwargs: {batch_size: 8, shuffle: True}, num_recomputations: 2}"
    )
    ((name, options),) = strategies(draft)
    assert name == "SecondOrderPruning"
    wanted = {"gradients": 512, "damping": 1e-8, "block_size": 4, "recomputations": 2, "gradient_batch_size": 8}
    assert wanted.items() <= options.items()
    assert (options["scope"], options["pattern"]) == ("global", "1x4")
    assert any("shuffle" in line for line in draft.left_out)


def test_movement():
    draft = draft_of(f"MovementPruningModifier {PRUNE}}}")
    ((name, options),) = strategies(draft)
    assert (name, options["method"], options["freeze_masks"]) == ("MovementPruning", "hard", "8.5 epochs")
    assert any("scores" in line for line in draft.changed)


def test_constant():
    draft = draft_of("ConstantPruningModifier {start_epoch: 1.0, params: __ALL_PRUNABLE__}")
    assert strategies(draft) == [("PatternLock", {"targets": ["*"]})]
    assert any("first step" in line for line in draft.changed)


def test_layers():
    modifier = "LayerPruningModifier {layers: [bert.encoder.layer.1, bert.encoder.layer.3, bert.pooler], end_epoch: -1}"
    draft = draft_of(modifier, layers=4)
    assert strategies(draft) == [("LayerDropping", {"keep": [0, 2]})]
    assert any("bert.pooler" in line for line in draft.left_out)
    for count in (None, 2):
        draft = draft_of(modifier, layers=count)
        assert not draft.compression
        assert any("--layers" in line for line in draft.left_out)


OLDER = "QuantizationModifier {start_epoch: 3, disable_quantization_observer_epoch: 4, submodules: [%s]%s}"


def test_quantization_in_the_older_form():
    draft = draft_of(OLDER % ("bert.embeddings, bert.encoder, classifier", ", quantize_linear_activations: 0"))
    ((name, options),) = strategies(draft)
    targets = options.pop("targets")
    assert (name, options) == (
        "QuantAwareTraining",
        {
            "start": "3 epochs",
            "freeze_observers": "4 epochs",
            "per_channel": False,
            "activations": "uint8",
            "embeddings": "uint8",
            "attention": "all",
        },
    )
    bert = nn.ModuleDict({"encoder": nn.ModuleDict({"a": nn.Linear(1, 1)}), "pooler": nn.Linear(1, 1)})
    model = nn.ModuleDict({"bert": bert, "classifier": nn.Linear(1, 1)})
    assert list(match_modules(model, targets)) == ["bert.encoder.a", "classifier"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (", tensorrt: True", {"activations": "int8"}),
        (", weight_bits: 4", {"weight_bits": 4}),
        ("", {"outputs": ["*"]}),
        (", quantize_embeddings: False", {"embeddings": None}),
    ],
)
def test_options_of_the_older_form(options, expected):
    ((_, given),) = strategies(draft_of(OLDER % ("bert.embeddings, bert.encoder", options)))
    assert {name: given.get(name) for name in expected} == expected


@pytest.mark.parametrize("option", ["reduce_range: True", "num_calibration_steps: 9", "exclude_module_types: [Linear]"])
def test_quantization_without_counterpart_is_listed(option):
    draft = draft_of(OLDER % ("bert.encoder", f", {option}"))
    assert any(option.split(":")[0] in line for line in draft.left_out)


def test_quantization_in_the_newer_form():
    draft = draft_of(
        "QuantizationModifier {start_epoch: 1, ignore: [classifier, LayerNorm], scheme: {weights: {num_bits: 4, "
        "symmetric: true, strategy: channel}, input_activations: null}, scheme_overrides: {Embedding: {weights: "
        "{symmetric: true}}, bert.pooler: {weights: null}}}"
    )
    ((_, options),) = strategies(draft)
    assert options == {
        "start": "1 epochs",
        "targets": ["*"],
        "per_channel": True,
        "weight_bits": 4,
        "activations": "none",
        "embeddings": "int8",
        "ignore": ["re:classifier(\\.|$)"],
        "attention": "all",
        "freeze_observers": None,
    }
    assert any("bert.pooler" in line for line in draft.left_out)


@pytest.mark.parametrize(("scheme", "kind"), [("deepsparse", "uint8"), ("tensorrt", "int8"), ("default", "uint8")])
def test_named_schemes(scheme, kind):
    ((_, options),) = strategies(draft_of(f"QuantizationModifier {{start_epoch: 0, scheme: {scheme}}}"))
    assert options["activations"] == kind


def test_distillation():
    line = "DistillationModifier {hardness: 1.0, temperature: 5.5, distill_output_keys: [start_logits, end_logits]}"
    term = draft_of(line, task="question_answering").distillation["kd"]
    assert term == {
        "class_path": "LogitDistillation",
        "init_args": {"hardness": 1.0, "temperature": 5.5, "tokens": "all"},
    }
    draft = draft_of(line.replace("5.5", "2.0"), line)
    assert draft.distillation["kd"]["init_args"] == {"hardness": 1.0, "temperature": 2.0}
    assert any("DistillationModifier" in entry for entry in draft.left_out)


def test_distillation_that_ends_early_is_said():
    early = draft_of("EpochRangeModifier {end_epoch: 9}", "DistillationModifier {end_epoch: 5}")
    whole = draft_of("EpochRangeModifier {end_epoch: 9}", "DistillationModifier {end_epoch: 9}")
    assert any("end_epoch: 5" in line for line in early.changed)
    assert not any("end_epoch" in line for line in whole.changed)


def test_distillation_of_layers():
    draft = draft_of(
        "PerLayerDistillationModifier {gain: 2.0, project_features: False, "
        "student_layer_names: [bert.encoder.layer.0, x], teacher_layer_names: [bert.encoder.layer.3.output, y]}"
    )
    options = draft.distillation["hidden"]["init_args"]
    assert (options["layer_map"], options["weight"], options["reduction"]) == ({1: 4}, 2.0, "sum")
    assert (options["normalize"], options["projection"]) == (True, False)
    assert any("x and y" in line for line in draft.left_out)


def test_frozen_embeddings_and_weight_decay():
    draft = draft_of(
        "TrainableParamsModifier {params: [bert.embeddings.word_embeddings.weight, bert.pooler.dense.weight], "
        "trainable: False, end_epoch: 2}",
        "SetWeightDecayModifier {start_epoch: 0, weight_decay: 0.02}",
    )
    assert strategies(draft) == [("FreezeEmbeddings", {"targets": ["bert.embeddings.word_embeddings"]})]
    assert draft.optimization["weight_decay"] == 0.02
    assert any("pooler" in line for line in draft.left_out)
    assert any("end_epoch" in line for line in draft.changed)


RATE = "LearningRateFunctionModifier {lr_func: %s, init_lr: %s, final_lr: %s, start_epoch: %s, end_epoch: %s%s}"


def rates(optimization: dict, epochs: list[float], total: int, per_epoch: int = 100) -> list[float]:
    """Learning rates at epochs of a run, from what is in a draft."""
    options = dict(optimization)
    options["phases"] = [Phase(**phase) for phase in options.get("phases", ())]
    built = Optimization(**options)
    factor = built.build(nn.Linear(1, 1), total * per_epoch, per_epoch)["lr_scheduler"]["scheduler"].lr_lambdas[0]
    return [built.learning_rate * factor(round(epoch * per_epoch)) for epoch in epochs]


def test_the_course_of_a_cyclic_rate_is_sparseml_s():
    draft = draft_of(
        RATE % ("linear", "8e-5", "8e-6", 0, 2, ""),
        RATE % ("cyclic_linear", "8e-5", "8e-6", 2, 30, ", cycle_epochs: 4"),
    )
    # SparseML's formula, for 100 steps an epoch.
    got = rates(draft.optimization, [0, 1, 2, 2.5, 4, 5.99, 6, 26, 29.99], total=30)
    want = [8e-5, 4.4e-5, 8e-5, 7.098e-5, 4.391e-5, 8e-6, 8e-5, 8e-5, 8e-6]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-3, atol=0)
    assert not draft.left_out


def test_the_course_of_a_rate_with_warm_up_and_restart():
    draft = draft_of(
        RATE % ("linear", "0.0", "1e-4", 0, 1, ""),
        RATE % ("linear", "1e-4", "0.0", 1, 5, ""),
        RATE % ("linear", "1e-4", "1e-5", 5, 10, ""),
    )
    got = rates(draft.optimization, [0, 0.5, 1, 3, 5, 7.5], total=10)
    assert got == pytest.approx([0, 5e-5, 1e-4, 5e-5, 1e-4, 5.5e-5])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([RATE % ("cosine", "1e-3", "1e-5", 0, 3, "")], {"decay": "cosine", "final_learning_rate": 1e-5}),
        ([RATE % ("linear", "1e-3", "1e-3", 0, 3, "")], {"decay": "constant", "learning_rate": 1e-3}),
        (["SetLearningRateModifier {learning_rate: 2e-5}"], {"decay": "constant", "learning_rate": 2e-5}),
    ],
)
def test_simple_rates(lines, expected):
    draft = draft_of("EpochRangeModifier {end_epoch: 3}", *lines)
    assert expected.items() <= draft.optimization.items()
    assert not draft.left_out
    rates(draft.optimization, [0], total=3)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([RATE % ("exponential", "1e-3", "1e-5", 0, 3, "")], "exponential"),
        (
            [
                "SetLearningRateModifier {learning_rate: 2e-5}",
                "SetLearningRateModifier {learning_rate: 1e-5, start_epoch: 2}",
            ],
            "1e-05",
        ),
        ([RATE % ("linear", "1e-3", "1e-5", 0, 3, ", param_groups: [0]")], "param_groups"),
        (["LearningRateModifier {lr_class: StepLR, init_lr: 0.1}"], "LearningRateModifier"),
        ([], "does not set it"),
    ],
)
def test_rates_without_counterpart_are_listed(lines, said):
    assert any(said in line for line in draft_of("EpochRangeModifier {end_epoch: 3}", *lines).left_out)


def test_unknown_modifiers_and_other_keys_are_listed():
    draft = draft_of("SomethingNewModifier {a: 1}", more="recipe_metadata: {owner: me}\n")
    assert "SomethingNewModifier(a=1): this package has no such method" in draft.left_out
    assert any("recipe_metadata" in line for line in draft.left_out)


def test_stages_are_one_run():
    draft = Draft()
    stage = "{}_stage:\n  some_modifiers:\n    - !EpochRangeModifier {{start_epoch: {}, end_epoch: {}}}\n"
    from_sparseml(stage.format("dense", 0, 2) + stage.format("sparse", 2, 6), draft)
    assert draft.epochs == 6
    assert any("dense_stage, sparse_stage" in line for line in draft.changed)


def test_wrong_values_do_not_pass_unseen():
    draft = draft_of("GMPruningModifier {params: __ALL__, final_sparsity: 1.5, start_epoch: later, end_epoch: 2}")
    assert not draft.compression
    assert any("1.5" in line for line in draft.left_out)
    assert any("later" in line for line in draft.left_out)
    with pytest.raises(UserError):
        from_sparseml(yaml.safe_dump({"a": 1}), Draft())
