"""What teacher, student and pruned student have in common: one encoder, one task, exact resumption."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.init_args import KeepsInitArgs
from lit_compress.models.attention import knows_padding, never_ask_for_padding, waited_for
from lit_compress.models.drop_layers import kept_layers, restore_layers
from lit_compress.models.gradient_checkpointing import enable_gradient_checkpointing
from lit_compress.models.hf_folder import save_folder
from lit_compress.models.labels import label_names
from lit_compress.models.layout import encoder_layers
from lit_compress.models.load import load_config, load_model
from lit_compress.models.positions import check_length
from lit_compress.modules.accumulation import partial_gradients, restore_gradients
from lit_compress.modules.gradient_clipping import clip_as_lightning, clip_on_device
from lit_compress.modules.mean_loss import MeanLoss
from lit_compress.modules.nonfinite import Broken, LossWatch, all_or_nan, skips_on_device
from lit_compress.modules.optim import Optimization
from lit_compress.modules.saved_arguments import made_again, settings_or_names
from lit_compress.nn.manifest import describe, part_names, rebuild
from lit_compress.sources import absolute_source
from lit_compress.tasks import (
    Batch,
    EmbeddingTask,
    RerankingTask,
    Task,
    TokenClassificationTask,
    make_task,
    task_class_of,
)
from lit_compress.tasks.batch import count_of, counted, tied
from lit_compress.training_steps import is_logged, run_seed, training_steps

__all__ = ["CHECKPOINT_KEY", "LitEncoder"]

# Entry of a checkpoint that says what the student is: its configuration, its tokenizer and its manifest.
CHECKPOINT_KEY = "lit_compress"
_GRADIENTS_KEY = "accumulated_gradients"
# Arguments, of subclasses too, that are objects; a checkpoint has their settings.
_OBJECTS = ("optimization", "distillation", "penalties")


class LitEncoder(KeepsInitArgs, LightningModule):
    """Trains ``self.student``, a Hugging Face encoder with a head, and logs every part of its loss by name.

    Whatever the role, the network that learns is ``self.student``: strategies, export and reports find it there.

    Args:
        pretrained: hub name, model folder, or ``package:name/folder`` of an installed package.
        labels: class names in the order of their ids, None where there are none; comes from the data on the command
            line. Without labels and task, both are those of the model.
        tokenizer: hub name or folder of the tokenizer, exported with the weights; comes from the data as well.
        optimization: learning rate, weight decay, warm-up and decay.
        compile: compile the student with ``torch.compile`` (after all structure is in place).
        task: what the head is for, or the name of a task as in :func:`lit_compress.tasks.make_task`; comes from the
            data, too.
        label_map: class names of a model -> labels of the data, if they differ.
        gradient_checkpointing: keep only the input of each layer of the student, and recompute it in the backward pass:
            less memory, the same gradients, the time of one more forward pass.

    """

    def __init__(
        self,
        pretrained: str,
        labels: list[str] | None = None,
        tokenizer: str | None = None,
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        compile: bool = False,
        task: Task | str | None = None,
        label_map: dict[str, str | int] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if gradient_checkpointing and compile:
            raise UserError(
                "model.gradient_checkpointing: a compiled student decides itself what it keeps; leave model.compile out"
            )
        if task is None and labels is None:
            task, labels = _task_of(pretrained)
        self.task = make_task(task, labels)
        if label_map and not self.task.labels:
            raise UserError("model.label_map: the task has no classes; leave it out")
        # Only JSON types go into a checkpoint.
        self.save_hyperparameters(ignore=["task", *_OBJECTS])
        given = vars(self)["_init_args"]
        self.hparams.update({name: settings_or_names(given[name]) for name in _OBJECTS if given.get(name) is not None})
        self.hparams["labels"] = labels
        self.hparams["task"] = self.task.name if task is None or isinstance(task, str) else settings_or_names(self.task)
        self.labels = self.task.labels
        self.tokenizer = tokenizer or pretrained
        self.optimization = made_again(optimization, Optimization, "model.optimization")
        self.compile_student = compile
        self.student = load_model(pretrained, self.task, "model.pretrained", label_map).train()
        if gradient_checkpointing:
            enable_gradient_checkpointing(self.student, "model.gradient_checkpointing")
        # Config key -> source and configuration of every model that reads the data.
        self.read_from: dict[str, tuple[str, Any]] = {"model.pretrained": (pretrained, self.student.config)}
        self.eval_loss = MeanLoss()
        self.val_metrics = self.task.metrics("val/")
        self.test_metrics = self.task.metrics("test/")
        self._gradients: list[dict[str, Tensor]] = []
        self._watch, self._skips, self._saved = LossWatch(), False, False
        self._looks_at_each = False  # where a callback monitors a loss of the training

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.task.needs_teacher and not any(True for _ in self._teacher_models()):
            raise UserError(
                "model.teacher: missing; the data has texts without labels, and only a teacher says what to learn"
            )
        length = getattr(getattr(self.trainer, "datamodule", None), "max_length", None)
        if length is None:
            return
        for key, (source, config) in self.read_from.items():
            check_length(config, length, f"{key} {source!r}")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named parts of the training loss, their sum under ``loss``: the one place where gradients come from."""
        return {"loss": self.task_loss(batch)}

    def task_loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch on the task alone, whatever else the training loss has."""
        return self.task.loss(self(batch), batch)

    def forward(self, batch: Batch, **options: Any) -> Any:
        """Hugging Face output for a batch; labels are not passed, the task computes its own loss."""
        if not isinstance(batch, Batch):
            raise UserError(
                f"data: a batch is a {type(batch).__name__} and must be a lit_compress.tasks.Batch(inputs, targets, "
                "meta); let the data module's collate function make one"
            )
        return self.student(**self.inputs_of(self.student, batch), **options)

    def inputs_of(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Arguments of a model's forward pass: without the mask where it is known that there is no padding."""
        mask = batch.inputs.get("attention_mask")
        if mask is None or count_of(batch, "attended", mask) != mask.numel():
            return batch.inputs
        # A compiled model would be compiled again.
        if not knows_padding(model) or (model is self.student and self.compile_student):
            return batch.inputs
        return {name: value for name, value in batch.inputs.items() if name != "attention_mask"}

    def on_host(self, batch: Batch) -> Batch:
        """What a step needs to know of a batch on the host, looked up before it goes to the device."""
        return counted(batch)

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        # Around Lightning's hook, which a data module may have, too; it warns of both.
        batch = super()._on_before_batch_transfer(batch, dataloader_idx)
        return self.on_host(batch) if isinstance(batch, Batch) else batch

    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        batch = super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        # What is done to a batch on the device, nothing that was counted on the host knows of.
        changed = any(
            is_overridden("on_after_batch_transfer", owner, DataHooks)
            for owner in (self, getattr(self._trainer, "datamodule", None))
            if owner is not None
        )
        return tied(batch) if isinstance(batch, Batch) and not changed else batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        parts = self.losses(batch)
        self._watch.add_loss(self.global_step, parts)
        if not self._skips or self._watch.full:
            self.check_finite()
        return all_or_nan(parts["loss"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and leave weights and moments as they are when the gradient is not finite."""
        if not self._skips:
            clip_as_lightning(self, optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        self._watch.add_norm(self.global_step, clip_on_device(optimizer, gradient_clip_val, gradient_clip_algorithm))
        optimizer.found_inf = self._watch.found  # type: ignore[attr-defined]  (GradScaler sets it the same way)

    def check_finite(self) -> None:
        """Wait for the device, and stop when a loss or a gradient since the last look was not finite.

        Since then no optimizer step has changed anything. Before each log, checkpoint, validation, and mask update.

        Raises:
            UserError: with the step and the part of the loss.

        """
        broken = self._watch.read()
        if broken is None:
            return
        if broken.shared and self.trainer.world_size > 1:  # one rank may know of which loss, and all are here
            everybody: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everybody, broken)
            broken = Broken.first(everybody)
        saved = self.trainer.ckpt_path or self._saved
        left = "the last checkpoint is from before it" if saved else "no checkpoint was saved yet"
        part = f" (part: {', '.join(broken.parts)})" if broken.parts else ""
        raise UserError(
            f"the {broken.what} is {broken.value} at step {broken.step}{part}; "
            f"{left}; lower model.optimization.learning_rate or look at the data of this step"
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Here, so that callbacks find the losses of this step; those of the first are what people wait for.
        if not self._watch.looked or self._looks_at_each or is_logged(self.trainer, batch_idx):
            self.check_finite()
            # On the host already: Lightning asks for each number by itself, and at each batch when a bar shows it.
            values = {f"train/{name}": torch.tensor(value) for name, value in self._watch.last.items()}
            self.log_dict(values, prog_bar=True)

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.check_finite()

    def on_train_end(self) -> None:
        self.check_finite()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """What the task predicts: probabilities ``(batch, labels)``, values, tags, answers or token ids."""
        return self.task.predictions(self(batch), batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self.test_metrics)

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> None:
        output = self(batch)
        # Lightning's own mean over ranks halves the weights as integers, so with an odd number it is slightly off.
        self.eval_loss.update(self.task.loss(output, batch), self.task.count(batch))
        self.task.update(metrics, output, batch)

    def _log_metrics(self, stage: str, metrics: MetricCollection) -> None:
        # `compute` gathers: the values are those of all ranks, and sync_dist averages equal numbers.
        values = {f"{stage}/loss": self.eval_loss.compute()} | metrics.compute()
        self.log_dict(values, sync_dist=True, prog_bar=True)
        for metric in (self.eval_loss, metrics):
            metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        # A fused optimizer unscales gradients itself, before they could be clipped. Only fp16 scales them.
        fused = self.trainer.precision != "16-mixed"
        return self.optimization.build(self, *training_steps(self.trainer), fused=fused)

    def configure_model(self) -> None:
        """Wrap for speed once the structure stands: ``torch.compile``, or FSDP2 when the strategy made a mesh."""
        if self._trainer is not None and waited_for(self.trainer.strategy.root_device):
            for model in (self.student, *self._teacher_models()):
                never_ask_for_padding(model)
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for layer in encoder_layers(self.student):
                fully_shard(layer, mesh=mesh)
            fully_shard(self.student, mesh=mesh)
        if self.compile_student:
            self.student.compile()

    def _teacher_models(self) -> Iterable[Any]:
        """Other Hugging Face models that a training step runs."""
        return ()

    def on_train_start(self) -> None:
        # Not when the checkpoint is loaded: Lightning clears all gradients after that.
        restore_gradients(self, self._gradients)
        self._gradients = []
        self._watch, self._skips = LossWatch(), skips_on_device(self.trainer)
        self._saved = False
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        self._looks_at_each = any(str(getattr(one, "monitor", None)).startswith("train/") for one in callbacks)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of the seed and the step: a resumed run needs no random state to continue exactly,
        # and validation in between or another number of workers changes nothing.
        seed_step(self.trainer.current_epoch, batch_idx, self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        self._saved = True
        checkpoint[CHECKPOINT_KEY] = {
            "architecture": type(self.student).__name__.removeprefix("FSDP"),
            "config": self.student.config.to_json_string(use_diff=False),
            "tokenizer": absolute_source(self.tokenizer),
            "manifest": describe(self.student),
            "kept_layers": kept_layers(self.student),
            "unfinished": self._unfinished(),
        }
        if "optimizer_states" in checkpoint:  # to be continued, not weights alone
            checkpoint[_GRADIENTS_KEY] = partial_gradients(self)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the student as `export --to hf` does: a folded Hugging Face folder, for ``from_pretrained``.

        The student itself stays as it is. In a training with several processes let one of them do it.

        Args:
            path: folder to make; it appears whole or not at all.
            overwrite: replace an existing folder that an export wrote.

        Raises:
            UserError: the folder exists or cannot be written, or the student is sharded over processes.

        """
        if self.device_mesh is not None:
            raise UserError("save: the student is sharded over processes; export a checkpoint of the run")
        words = isinstance(self.task, TokenClassificationTask)
        tokenizer = load_tokenizer(self.tokenizer, "model.tokenizer", words)
        left = self._unfinished() if self._trainer is not None else []
        return save_folder(self.student, tokenizer, path, overwrite, left, self.task.note())

    def _unfinished(self) -> list[dict[str, Any]]:
        """What strategies have not reached yet, see :meth:`lit_compress.strategies.Strategy.unfinished`."""
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        strategies = [callback for callback in callbacks if hasattr(callback, "unfinished")]
        return [left for strategy in strategies if (left := strategy.unfinished(self.trainer, self))]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT_KEY not in checkpoint:
            raise UserError("ckpt_path: the checkpoint was not made by lit_compress; give one that was")
        # Layers first: the names in the manifest are those of the layers that are left.
        restore_layers(self.student, checkpoint[CHECKPOINT_KEY].get("kept_layers"))
        manifest = checkpoint[CHECKPOINT_KEY]["manifest"]
        if surplus := part_names(describe(self.student)) - part_names(manifest):
            raise UserError(
                f"ckpt_path: the checkpoint knows no compression of {min(surplus)[1]!r}; "
                "resume with the same compression: it was made with"
            )
        rebuild(self.student, manifest)
        self._gradients = checkpoint.get(_GRADIENTS_KEY, [])


def seed_step(epoch: int, batch_idx: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators from the run's seed, the position in the run, and the rank."""
    # SeedSequence mixes: neighbouring steps get unrelated streams.
    seed = int(np.random.SeedSequence([run_seed(), epoch, batch_idx, rank]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _task_of(pretrained: str) -> tuple[str | None, list[str] | None]:
    """Task and labels of a model that was made for classes, vectors or ranking; nothing of another."""
    config = load_config(pretrained, "model.pretrained")
    kind = task_class_of(config)
    if kind in (EmbeddingTask, RerankingTask):
        return kind.name, None
    if kind is None or not kind.has_classes:
        return None, None
    return kind.name, label_names(config)
