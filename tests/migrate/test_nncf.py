import pytest

from lit_compress.migrate.draft import Draft
from lit_compress.migrate.nncf import from_nncf, is_nncf

MOVEMENT = {
    "algorithm": "movement_sparsity",
    "params": {
        "warmup_start_epoch": 1,
        "warmup_end_epoch": 4,
        "importance_regularization_factor": 0.02,
        "enable_structured_masking": True,
    },
    "sparse_structure_by_scopes": [{"mode": "block", "sparse_factors": [16, 16], "target_scopes": "{re}.*Attention.*"}],
    "ignored_scopes": ["{re}.*NNCFEmbedding", "{re}.*pooler.*", "{re}.*LayerNorm.*"],
}
QUANTIZATION = {"algorithm": "quantization", "preset": "mixed", "overflow_fix": "disable", "initializer": {"range": {}}}


def draft_of(*algorithms: dict, **more) -> Draft:
    draft = Draft()
    content = {"compression": list(algorithms), **more}
    assert is_nncf(content)
    from_nncf(content, draft)
    return draft


def test_joint_pruning_quantization_and_distillation():
    draft = draft_of(
        MOVEMENT,
        QUANTIZATION,
        {"algorithm": "knowledge_distillation", "type": "softmax", "scale": 3, "temperature": 2},
        input_info=[{"sample_size": [1, 8]}],
    )
    movement, quantization = (entry["init_args"] for entry in draft.compression)
    assert movement == {
        "method": "soft",
        "threshold": 0.5,  # the sigmoid of NNCF's final threshold, 0
        "start": "1 epochs",
        "end": "4 epochs",
        "freeze_masks": "4 epochs",
        "ignore": ["*pooler*"],
    }
    assert (quantization["activations"], quantization["targets"]) == ("uint8", ["*"])
    assert draft.penalties["scores"]["init_args"] == {"weight": 0.01}
    assert draft.distillation["kd"]["init_args"] == {"hardness": 0.75, "temperature": 2}
    assert draft.settings("r")["model"]["class_path"] == "LitPrunedStudent"
    said = "\n".join(draft.left_out)
    for word in (
        "enable_structured_masking",
        "sparse_factors",
        "initializer",
        "overflow_fix",
        "input_info",
        "learning rate",
    ):
        assert word in said


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"preset": "performance"}, {"activations": "int8"}),
        ({"activations": {"mode": "symmetric"}}, {"activations": "int8"}),
        ({"weights": {"bits": 4, "per_channel": False}}, {"weight_bits": 4, "per_channel": False}),
    ],
)
def test_quantization(more, expected):
    (entry,) = draft_of(QUANTIZATION | more).compression
    assert expected.items() <= entry["init_args"].items()


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"algorithm": "filter_pruning", "pruning_init": 0.1}, "filter_pruning(pruning_init=0.1)"),
        (QUANTIZATION | {"weights": {"mode": "asymmetric"}}, "asymmetric"),
        (QUANTIZATION | {"export_to_onnx_standard_ops": True}, "export_to_onnx_standard_ops"),
        (MOVEMENT | {"compression_lr_multiplier": 10}, "compression_lr_multiplier"),
        (MOVEMENT | {"ignored_scopes": ["BertModel/BertPooler[pooler]/NNCFLinear[dense]"]}, "BertPooler"),
        ({"algorithm": "knowledge_distillation", "type": "mse"}, "mse"),
        ({"algorithm": "knowledge_distillation", "scale": -1}, "knowledge_distillation.scale: -1"),
        (QUANTIZATION | {"weights": True}, "quantization.weights: True: it has no options by name"),
        (MOVEMENT | {"params": [1]}, "movement_sparsity.params: [1]: it has no options by name"),
        (MOVEMENT | {"ignored_scopes": 5}, "movement_sparsity.ignored_scopes: 5: it is no list"),
        (MOVEMENT | {"target_scopes": {"a": 1}}, "movement_sparsity.target_scopes: {'a': 1}: it is no list"),
        (
            MOVEMENT | {"sparse_structure_by_scopes": 5},
            "movement_sparsity.sparse_structure_by_scopes: 5: it is no list",
        ),
        (MOVEMENT | {"params": {"warmup_end_epoch": float("inf")}}, "warmup_end_epoch: inf: it is not a number"),
    ],
)
def test_what_has_no_counterpart_is_listed(algorithm, said):
    draft = draft_of(algorithm)
    assert any(said in line for line in draft.left_out)
    draft.settings("r")


def test_one_algorithm_alone():
    draft = Draft()
    assert is_nncf(QUANTIZATION)
    from_nncf(QUANTIZATION, draft)
    assert [entry["class_path"] for entry in draft.compression] == ["QuantAwareTraining"]
    assert not is_nncf({"model": 1})
