"""Two processes: ranks agree on every mask and weight, under DDP and FSDP2, through Lightning's own strategies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_compress.export import load_checkpoint

REPOSITORY = Path(__file__).parent.parent.parent

PROBE = '''
import hashlib
import json

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor


class Probe(Callback):
    """Writes what a rank holds at the end of training, and what it was shown."""

    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows += batch["input_ids"].sum(1).tolist()

    def on_train_end(self, trainer, module):
        digest = {"masks": hashlib.sha256(), "weights": hashlib.sha256()}
        for name, tensor in module.student.state_dict().items():
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            kind = "masks" if name.endswith(("mask", "kept_groups")) else "weights"
            digest[kind].update(tensor.clone().numpy().tobytes())
        sharded = any(isinstance(parameter, DTensor) for parameter in module.student.parameters())
        result = {name: value.hexdigest() for name, value in digest.items()}
        result |= {"sharded": sharded, "rows": len(self.rows), "steps": trainer.global_step}
        with open(f"rank{trainer.global_rank}.json", "w") as file:
            json.dump(result, file)
'''


UNSTRUCTURED = [
    {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "every": "1 steps"}},
    {"class_path": "QuantAwareTraining", "init_args": {"start": "25%", "freeze_observers": "90%"}},
]
# Neurons are scored before the first step and heads during training.
STRUCTURED = [
    {"class_path": "StructuredPruning", "init_args": {"neurons": 24, "prunings": 1, "end": "0%"}},
    {"class_path": "StructuredPruning", "init_args": {"heads": 1, "prunings": 1}},
    {"class_path": "LowRankEmbedding", "init_args": {"rank": 6, "prunings": 2}},
]


@pytest.mark.ddp
@pytest.mark.parametrize("compression", [UNSTRUCTURED, STRUCTURED], ids=["unstructured", "structured"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_agree(engine, compression, tmp_path, tiny_teacher, tiny_data):
    (tmp_path / "probe.py").write_text(PROBE)
    config = {
        "run": "run",
        "model": {
            "class_path": "LitStudent",
            "init_args": {"pretrained": str(tiny_teacher), "teacher": str(tiny_teacher)},
        },
        "data": {
            "class_path": "TextClassification",
            "init_args": {
                "train_file": str(tiny_data / "train.tsv"),
                "val_file": str(tiny_data / "val.tsv"),
                "text_columns": ["sentence"],
                "batch_size": 8,
                "max_length": 16,
            },
        },
        "compression": compression,
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lit_compress", "fit", "--config=task.yaml"]
    command += [f"--config={REPOSITORY / 'configs/trainer' / engine}.yaml", "--trainer.devices=2"]
    command += ["--trainer.callbacks+=probe.Probe"]
    # Lightning starts the second process itself, with this same command.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["steps"] == 8
    assert first["rows"] == 64  # of 64 rows, half in each of two epochs
    assert first["sharded"] == (engine == "fsdp")
    state = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    if compression is UNSTRUCTURED:
        masks = [tensor for name, tensor in state.items() if name.endswith("weight_mask")]
        assert all(int((~mask).sum()) == round(0.75 * mask.numel()) for mask in masks)
    else:
        kept = {name: tensor for name, tensor in state.items() if name.endswith("kept_groups")}
        assert {int(tensor.sum()) for name, tensor in kept.items() if ".attention." in name} == {1}
        assert {int(tensor.sum()) for name, tensor in kept.items() if ".attention." not in name} == {24}
    assert (tmp_path / "run/model/model.safetensors").is_file()
