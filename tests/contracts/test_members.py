"""A family of ever smaller students, each made from the one before it, through the commands that a user has."""

import json

import numpy as np
import onnxruntime
import torch
import yaml
from contracts.training import student_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_compress.cli import main
from lit_compress.models.heads_and_neurons import KINDS, removable_groups


def member(folder, teacher, tiny_data, pretrained, layer_map, keep, heads, neurons):
    """The model of a fit that begins with ``pretrained`` and learns from the dense teacher."""
    drop = [{"class_path": "LayerDropping", "init_args": {"keep": keep}}] if keep else []
    prune = {"heads": heads, "neurons": neurons, "pruning_steps": 2, "end": "50%"}
    config = student_config(
        teacher,
        tiny_data,
        compression=[
            *drop,
            {"class_path": "StructuredPruning", "init_args": {key: value for key, value in prune.items() if value}},
            {"class_path": "QuantAwareTraining", "init_args": {"start": "50%", "weight_bits": 7}},
        ],
    )
    config["model"]["init_args"] |= {
        "pretrained": str(pretrained),
        "distillation": {
            "kd": {"class_path": "LogitDistillation", "init_args": {"hardness": 0.5}},
            "hidden": {"class_path": "HiddenDistillation", "init_args": {"layer_map": layer_map}},
        },
    }
    folder.mkdir()
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={folder / 'fit.yaml'}", f"--run={folder / 'run'}"])
    return folder / "run"


def shapes(model):
    return [[groups.count for groups in removable_groups(model, kind)] for kind in KINDS]


def test_each_member_begins_with_the_one_before(tmp_path, wide_teacher, tiny_data):
    first = member(tmp_path / "1", wide_teacher, tiny_data, wide_teacher, {0: 0, 1: 1, 2: 3}, [0, 2], [3, 2], [40, 9])
    model = AutoModelForSequenceClassification.from_pretrained(first / "model")
    assert shapes(model) == [[3, 2], [40, 9]]
    second = member(tmp_path / "2", wide_teacher, tiny_data, first / "model", {0: 0, 1: 1, 2: 3}, None, [1, 2], [16, 8])
    third = member(tmp_path / "3", wide_teacher, tiny_data, second / "model", {0: 0, 1: 3}, [1], [1], None)
    model = AutoModelForSequenceClassification.from_pretrained(third / "model").eval()
    assert shapes(model) == [[1], [8]]
    main(["export", f"--run={third}", "--to=onnx-int8", f"--output={tmp_path / 'int8'}"])
    session = onnxruntime.InferenceSession(next((tmp_path / "int8").rglob("*.onnx")))
    batch = AutoTokenizer.from_pretrained(third / "model")(["a good film", "dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
    names = {put.name for put in session.get_inputs()}
    (logits,) = session.run(None, {name: value.numpy() for name, value in batch.items() if name in names})
    # The weights are the same integers; inputs are rounded to 8 bits.
    assert np.abs(logits - expected.numpy()).max() < 0.05 * expected.abs().max()
    linears = json.loads((third / "model" / "compression.json").read_text())["linears"]
    assert {entry["weight_quantizer"]["spec"]["bits"] for entry in linears.values()} == {7}
