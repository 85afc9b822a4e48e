import pytest

from lit_compress.migrate.draft import Draft
from lit_compress.migrate.nn_pruning import from_nn_pruning, is_nn_pruning

ARGUMENTS = {
    "model_name_or_path": "google-bert/bert-base-uncased",
    "dataset_name": "squad",
    "num_train_epochs": 10,
    "learning_rate": 3e-5,
    "warmup_steps": 5400,
    "per_device_train_batch_size": 16,
    "max_seq_length": 384,
    "doc_stride": 128,
    "seed": 17,
    "output_dir": "somewhere",
    "dense_pruning_method": "sigmoied_threshold",
    "attention_pruning_method": "sigmoied_threshold",
    "mask_scores_learning_rate": 0.01,
    "initial_threshold": 0,
    "final_threshold": 0.1,
    "initial_warmup": 1,
    "final_warmup": 3,
    "regularization": "l1",
    "regularization_final_lambda": 40,
    "distil_teacher_name_or_path": "a/teacher",
    "distil_alpha_ce": 0.1,
    "distil_alpha_teacher": 0.9,
    "distil_temperature": 2,
}


def draft_of(**changes) -> Draft:
    draft = Draft()
    content = {name: value for name, value in (ARGUMENTS | changes).items() if value is not None}
    assert is_nn_pruning(content)
    from_nn_pruning(content, draft)
    return draft


def test_soft_movement_on_squad():
    draft = draft_of()
    settings = draft.settings("runs/x")
    model, data = settings["model"]["init_args"], settings["data"]
    assert settings["model"]["class_path"] == "LitPrunedStudent"
    assert (model["pretrained"], model["teacher"]) == ("google-bert/bert-base-uncased", "a/teacher")
    assert model["penalties"]["scores"]["init_args"] == {"weight": 40}
    assert model["distillation"]["kd"]["init_args"] == {"hardness": 0.9, "temperature": 2}
    assert model["optimization"] == {"warmup": "5400 steps", "learning_rate": 3e-5, "score_learning_rate": 0.01}
    assert data["class_path"] == "QuestionAnswering"
    assert data["init_args"] == {
        "train_file": None,
        "hub": "squad",
        "batch_size": 16,
        "max_length": 384,
        "doc_stride": 128,
    }
    (entry,) = settings["compression"]
    wanted = {"start": "5400 steps", "end": "80%", "freeze_masks": "100%", "method": "soft", "threshold": 0.1}
    assert entry == {"class_path": "MovementPruning", "init_args": wanted}
    assert settings["trainer"] == {"max_epochs": 10}
    assert settings["seed_everything"] == 17
    assert [line for line in draft.left_out if "output_dir" not in line] == []
    assert any("final_warmup" in line for line in draft.changed)


def test_the_end_follows_from_the_number_of_steps():
    (entry,) = draft_of(max_steps=50_000).compression
    assert entry["init_args"]["end"] == "33800 steps"


def test_hard_movement():
    draft = draft_of(
        dense_pruning_method="topK",
        attention_pruning_method="topK",
        initial_threshold=1.0,
        final_threshold=0.15,
        regularization="disabled",
        linear_min_parameters=None,
    )
    (entry,) = draft.compression
    assert entry["init_args"] | {"method": "hard", "sparsity": 0.85, "initial_sparsity": 0.0} == entry["init_args"]
    assert draft.settings("r")["model"]["class_path"] == "LitStudent"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dense_pruning_method": "sigmoied_threshold:1d_alt"}, "1d_alt"),
        ({"attention_block_rows": 32, "attention_block_cols": 32}, "32x32"),
        ({"attention_pruning_method": "topK"}, "attention_pruning_method: topK"),
        ({"dense_pruning_method": "l0", "attention_pruning_method": "l0"}, "l0"),
        ({"regularization": "l0"}, "regularization: l0"),
        ({"layer_norm_patch": True}, "layer_norm_patch"),
        ({"ampere_pruning_method": "annealing", "final_ampere_temperature": 20.0}, "ampere_pruning_method"),
        ({"attention_lambda": 2.0}, "attention_lambda"),
        ({"rewind_model_name_or_path": "x"}, "rewind_model_name_or_path"),
        ({"fp16": True}, "fp16"),
        ({"dataset_name": "glue"}, "doc_stride"),
        ({"num_train_epochs": "inf"}, "num_train_epochs: inf: it is not a number"),
        ({"warmup_steps": "nan"}, "warmup_steps: nan: it is not a number"),
        ({"max_steps": "many"}, "max_steps: many: it is not a number"),
        ({"learning_rate": [1]}, "learning_rate: [1]: it is not a number"),
        ({"max_steps": float("inf")}, "max_steps: inf: it is not a number"),
        ({"seed": float("nan")}, "seed: nan: it is not a number"),
    ],
)
def test_what_has_no_counterpart_is_listed(changes, said):
    draft = draft_of(**changes)
    assert any(said in line for line in draft.left_out)
    draft.settings("r")


def test_numbers_may_be_given_as_text():
    draft = draft_of(max_steps="50000", learning_rate="3e-5", max_grad_norm="1.0", num_train_epochs="10")
    assert draft.trainer == {"max_steps": 50_000, "gradient_clip_val": 1.0}
    assert draft.optimization["learning_rate"] == 3e-5
    assert draft.compression[0]["init_args"]["end"] == "33800 steps"
    assert "max_steps" not in draft_of(max_steps="-1").trainer


def test_a_sum_of_weights_other_than_one_is_said():
    draft = draft_of(distil_alpha_ce=1.0, distil_alpha_teacher=3.0)
    assert draft.distillation["kd"]["init_args"]["hardness"] == 0.75
    assert any("ratio" in line for line in draft.changed)
