"""Each named form of pruning makes the masks that it made when it was first written, step by step.

Weights and gradients are small multiples of a power of two: every sum is exact, on any machine and in any order.
"""

import hashlib
import zlib

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from models.families import build
from torch.utils.data import DataLoader

from lit_compress.nn import compressible_layers
from lit_compress.strategies import MagnitudePruning, MovementPruning, SecondOrderPruning, StructuredPruning

STEPS = 12


def whole_numbers(limit, shape, *seed):
    generator = torch.Generator().manual_seed(zlib.crc32(repr(seed).encode()))
    return torch.randint(-limit, limit + 1, shape, generator=generator).float()


class Exact(LightningModule):
    """Its loss is a sum of the weights, each times a small whole number that the batch decides."""

    def __init__(self):
        super().__init__()
        self.student = build("bert")
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                parameter.copy_(whole_numbers(255, parameter.shape, name) / 256)

    def task_loss(self, batch):
        rows = tuple(batch.tolist())
        layers = compressible_layers(self.student)
        return sum(
            (layer.effective_weight() * whole_numbers(7, layer.weight.shape, name, rows)).sum()
            for name, layer in layers
        )

    def training_step(self, batch, batch_idx):
        return self.task_loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=2**-8)


class Digest(Callback):
    """Of all masks after every step."""

    def __init__(self):
        self.sha = hashlib.sha256()

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        for name, tensor in module.state_dict().items():
            if name.endswith(("weight_mask", "kept_groups")):
                self.sha.update(tensor.numpy().tobytes())


WINDOW = {"start": "1 steps", "end": "7 steps", "every": "2 steps"}
FORMS = {
    "magnitude": (MagnitudePruning, {"sparsity": 0.83, "initial_sparsity": 0.1} | WINDOW),
    "magnitude-2:4": (MagnitudePruning, {"sparsity": 0.5, "pattern": "2:4"} | WINDOW),
    "magnitude-balanced": (MagnitudePruning, {"sparsity": 0.5, "pattern": "4x4/1", "permute_neurons": True} | WINDOW),
    "magnitude-global": (MagnitudePruning, {"sparsity": 0.7, "scope": "global", "schedule": "cosine"} | WINDOW),
    "magnitude-regrowth": (MagnitudePruning, {"sparsity": 0.8, "regrowth": True, "last_update": "10 steps"} | WINDOW),
    "second-order": (
        SecondOrderPruning,
        {"sparsity": 0.7, "gradients": 8, "gradient_batch_size": 2, "damping": 1e-3, "block_size": 8} | WINDOW,
    ),
    "movement": (MovementPruning, {"sparsity": 0.8, "freeze_masks": "11 steps"} | WINDOW | {"every": "4 steps"}),
    "structured": (StructuredPruning, {"heads": 1, "neurons": 0.3, "pruning_steps": 3, "start": "1 steps"}),
    "structured-global": (StructuredPruning, {"neurons": 0.4, "pruning_steps": 4, "scope": "global"}),
    "structured-magnitude": (StructuredPruning, {"neurons": 7, "pruning_steps": 5, "criterion": "magnitude"}),
}
DIGESTS = {
    "magnitude": "eb8ee51bc334b081",
    "magnitude-2:4": "5e7311ba262cbef7",
    "magnitude-balanced": "db0b29aff6859cf6",
    "magnitude-global": "fed623a530edde65",
    "magnitude-regrowth": "a1982f23d3b3a646",
    "second-order": "c85f9fbb82a476f6",
    "movement": "f5a392bbb99e712d",
    "structured": "1bf0e964d45ab1a3",
    "structured-global": "5d48321df82b2fd8",
    "structured-magnitude": "ce3ccbeaa80ebcc7",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_masks_are_those_of_before(form, tmp_path):
    kind, options = FORMS[form]
    digest = Digest()
    seed_everything(7)
    run = Trainer(
        default_root_dir=tmp_path,
        callbacks=[kind(**options), digest],
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(Exact(), DataLoader(range(2 * STEPS), batch_size=2, shuffle=False))
    assert digest.sha.hexdigest()[:16] == DIGESTS[form]
