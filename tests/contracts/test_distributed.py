"""Two processes: ranks agree on every mask and weight, under DDP and FSDP2, through Lightning's own strategies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_compress.data.logit_store import LogitStore
from lit_compress.export import load_checkpoint

REPOSITORY = Path(__file__).parent.parent.parent

# Every kind of range: of inputs, outputs, tables, and inside attention.
EVERYTHING = {
    "start": "25%",
    "freeze_observers": "90%",
    "outputs": ["*.query"],
    "embeddings": "uint8",
    "attention": "all",
}

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
        for part in (module.student, module.distillation):
            for name, tensor in part.state_dict().items():
                tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                digest["masks" if name.endswith("mask") else "weights"].update(tensor.clone().numpy().tobytes())
        sharded = {isinstance(parameter, DTensor) for parameter in module.parameters()}
        result = {name: value.hexdigest() for name, value in digest.items()}
        result |= {"sharded": sorted(sharded), "rows": len(self.rows), "steps": trainer.global_step}
        with open(f"rank{trainer.global_rank}.json", "w") as file:
            json.dump(result, file)
'''


STRATEGIES = {
    "magnitude": [
        {"class_path": "MagnitudePruning", "init_args": {"sparsity": 0.75, "every": "1 steps"}},
        {"class_path": "QuantAwareTraining", "init_args": EVERYTHING},
    ],
    "second-order": [
        {
            "class_path": "SecondOrderPruning",
            "init_args": {"sparsity": 0.75, "every": "2 steps", "gradients": 10, "gradient_batch_size": 4},
        },
    ],
    "movement": [
        {
            "class_path": "MovementPruning",
            "init_args": {"sparsity": 0.75, "end": "50%", "freeze_masks": "75%"},
        },
    ],
}


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("strategy", "engine", "asked"),
    [
        *((strategy, engine, "each step") for strategy in STRATEGIES for engine in ("ddp", "fsdp")),
        ("magnitude", "ddp", "once"),
    ],
)
def test_two_ranks_agree(strategy, engine, asked, tmp_path, tiny_teacher, tiny_data):
    (tmp_path / "probe.py").write_text(PROBE)
    terms = {"kd": {"class_path": "LogitDistillation"}}
    if asked == "each step":
        terms["hidden"] = {"class_path": "HiddenDistillation", "init_args": {"projection": True}}
    cache = {"teacher_cache": "answers"} if asked == "once" else {}
    config = {
        "run": "run",
        "model": {
            "class_path": "LitStudent",
            "init_args": {"pretrained": str(tiny_teacher), "teacher": str(tiny_teacher), "distillation": terms} | cache,
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
        "compression": STRATEGIES[strategy],
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
    assert first["sharded"] == [engine == "fsdp"]  # all parameters alike, those of the terms too
    state = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    masks = [tensor for name, tensor in state.items() if name.endswith("weight_mask")]
    pools = [torch.cat([mask.flatten() for mask in masks])] if strategy == "second-order" else masks
    assert all(int((~pool).sum()) == round(0.75 * pool.numel()) for pool in pools)
    for name in (name for name in state if name.endswith("weight_mask")):
        assert not state[name.removesuffix("_mask")][~state[name]].any()
    assert (tmp_path / "run/model/model.safetensors").is_file()
    if asked == "once":
        (store,) = (tmp_path / "answers").iterdir()
        assert LogitStore.damage(store) is None
        assert LogitStore(store).array.shape == (64, 2)
