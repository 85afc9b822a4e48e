from dataclasses import replace

from lit_compress.auto.stages import Training, int8_stage, member_stage, teacher_stage
from lit_compress.planning.structure import LayerShape, Structure

TRAINING = Training(data={"class_path": "TextClassification"}, seed=7, learning_rate=1e-4, label_map={"a": "b"})
DENSE = Structure(layers=(LayerShape(4, 64),) * 4)
HALF = Structure(layers=(LayerShape(2, 32), None, LayerShape(4, 32), LayerShape(1, 32)))


def strategies(stage):
    return {entry["class_path"]: entry["init_args"] for entry in stage.get("compression", [])}


def test_a_member_is_cut_from_the_one_before():
    stage = member_stage(TRAINING, ("stage:teacher", DENSE), "stage:teacher", HALF, 100, int8=True)
    found = strategies(stage)
    assert list(found) == ["LayerDropping", "StructuredPruning", "QuantAwareTraining"]
    assert found["LayerDropping"] == {"keep": [0, 2, 3]}
    assert found["StructuredPruning"]["heads"] == [2, 4, 1]
    assert found["StructuredPruning"]["neurons"] == [32, 32, 32]
    model = stage["model"]["init_args"]
    assert model["distillation"]["hidden"]["init_args"]["layer_map"] == {0: 0, 1: 1, 2: 3, 3: 4}
    assert model["label_map"] == {"a": "b"}
    assert stage["trainer"] == {"max_steps": 100, "max_epochs": -1}
    assert stage["seed_everything"] == 7


def test_what_the_member_before_lacks_is_not_cut_again():
    less = Structure(layers=(LayerShape(2, 32), None, None, LayerShape(1, 16)))
    stage = member_stage(TRAINING, ("stage:2x", HALF), "teacher", less, 100, int8=False)
    found = strategies(stage)
    assert found["LayerDropping"] == {"keep": [0, 2]}
    assert "heads" not in found["StructuredPruning"]
    assert found["StructuredPruning"]["neurons"] == [32, 16]
    assert "QuantAwareTraining" not in found
    assert stage["model"]["init_args"]["teacher"] == "teacher"


def test_a_teacher_and_its_integers():
    assert "compression" not in teacher_stage(TRAINING, "bert", 10)
    quantized = strategies(int8_stage(TRAINING, "stage:teacher", 100))
    assert list(quantized) == ["QuantAwareTraining"]
    assert quantized["QuantAwareTraining"]["momentum"] == 0.088


def test_every_stage_is_trained_in_the_precision_that_was_asked_for():
    half = replace(TRAINING, precision="bf16-mixed")
    stages = [
        teacher_stage(half, "bert", 10),
        int8_stage(half, "stage:teacher", 10),
        member_stage(half, ("stage:teacher", DENSE), "stage:teacher", HALF, 10, int8=True),
    ]
    assert [stage["trainer"]["precision"] for stage in stages] == ["bf16-mixed"] * 3
