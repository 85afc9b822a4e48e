"""Layer dropping: whole layers of the pretrained encoder go before it is fine-tuned."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_compress.data.batch_transfer import to_device
from lit_compress.errors import UserError
from lit_compress.functional.layer_selection import (
    Position,
    keep_by_position,
    keep_dissimilar,
    keep_highest,
    weight_score,
)
from lit_compress.models.drop_layers import depth, drop_layers, kept_layers
from lit_compress.models.layer_similarity import similarity_sums
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.nn.gates import gated_layers
from lit_compress.strategies.strategy import Strategy, amount_of, check_amount, student_of, tell_if_little
from lit_compress.tasks.batch import rows_of

__all__ = ["LayerDropping"]

Measure = Literal["contribution", "aggregation", "variance"]

_EXAMPLES = 1000


class LayerDropping(Strategy):
    """Drops layers once, before training: "Poor Man's BERT" (Sajjad et al. 2020, arXiv 2004.03844).

    The layers are physically gone, so training is faster from the first step. Embeddings, pooler and head stay. Give
    one of ``drop``, ``threshold`` and ``keep``.

    Args:
        drop: number of layers to drop, or a fraction in (0, 1) of the model's.
        which: ``top`` or ``bottom`` layers; ``symmetric`` drops the middle; ``alternate-odd`` and ``alternate-even``
            drop every other layer from the top downwards; ``contribution`` drops those that change the first token of
            the validation data the least (the last token of XLNet); ``aggregation`` and ``variance`` those whose
            weights have the lowest mean magnitude or variance.
        threshold: with ``contribution``, drop every layer whose mean cosine of input and output is above it.
        keep: 0-based indices of the layers to keep, whatever the rule.
        examples: with ``contribution``, about how many validation examples are used; 1000 when not given.

    """

    def __init__(
        self,
        drop: int | float | None = None,
        which: Literal[
            "top",
            "bottom",
            "symmetric",
            "alternate-odd",
            "alternate-even",
            "contribution",
            "aggregation",
            "variance",
        ] = "top",
        threshold: float | None = None,
        keep: Sequence[int] | None = None,
        examples: int | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        allowed = (*get_args(Position), *get_args(Measure))
        if which not in allowed:
            raise UserError(f"{owner}.which: {which!r} must be one of {', '.join(allowed)}")
        given = [key for key, value in (("drop", drop), ("threshold", threshold), ("keep", keep)) if value is not None]
        if len(given) != 1:
            raise UserError(f"{owner}.drop: give one of drop, threshold and keep, not {' and '.join(given) or 'none'}")
        if drop is not None:
            check_amount(drop, f"{owner}.drop")
        if threshold is not None and not -1 < threshold < 1:
            raise UserError(f"{owner}.threshold: {threshold} must be between -1 and 1")
        if examples is not None and examples < 1:
            raise UserError(f"{owner}.examples: {examples} must be 1 or more")
        if keep is not None and which != "top":
            raise UserError(f"{owner}.which: {which!r} has no effect on keep; leave one of them out")
        for key, value in (("threshold", threshold), ("examples", examples)):
            if value is not None and which != "contribution":
                raise UserError(f"{owner}.{key}: {value} has no effect on which: {which}; leave it out")
        self.drop, self.which, self.threshold = drop, which, threshold
        self.keep, self.examples = list(keep) if keep is not None else None, examples or _EXAMPLES

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        owner = type(self).__name__
        student: Any = student_of(pl_module, owner)
        layout_of(student, f"compression: {owner} of model.pretrained")
        if sum(isinstance(callback, LayerDropping) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise UserError(f"compression: {owner} is there more than once; give one with all layers to drop")
        # Fit, validate and test of one process set up the same student again and again.
        if kept_layers(student) is not None:
            return
        if any(gated_layers(student)):
            raise UserError(f"compression: {owner} must come before strategies that close layers during training")
        if self.which == "contribution" and stage != "fit":
            return  # other data would say otherwise: the layers are those of the checkpoint
        layers = depth(student)
        try:
            keep = self.keep if self.keep is not None else self._choose(student, trainer, pl_module)
        except UserError:
            raise
        except ValueError as error:
            key = "threshold" if self.threshold is not None else "drop"
            raise UserError(f"{owner}.{key}: {error}") from error
        drop_layers(student, keep, f"{owner}.{'keep' if self.keep is not None else 'which'}")
        if kept_layers(student) is None:
            raise UserError(f"{owner}.keep: {keep} are all layers of the model; leave one out")
        if stage == "fit":
            given = "drop" if self.drop is not None else "keep" if self.keep is not None else "threshold"
            tell_if_little(f"{owner}.{given}", len(keep), layers, "layers")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_dropped(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_dropped(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_dropped(pl_module)

    def _check_dropped(self, pl_module: LightningModule) -> None:
        if kept_layers(student_of(pl_module)) is None:
            raise UserError(
                f"{type(self).__name__}.which: what contributes is measured in fit; give the ckpt_path of a fit"
            )

    def _choose(self, student: Any, trainer: Trainer, pl_module: LightningModule) -> list[int]:
        drop = amount_of(self.drop, depth(student)) if self.drop is not None else None
        if self.which in get_args(Position):
            assert drop is not None
            return keep_by_position(depth(student), drop, self.which)  # type: ignore[arg-type]
        layout_of(student).require("layers", f"{type(self).__name__}.which")
        if self.which == "contribution":
            similarities = self._similarities(student, trainer, pl_module)
            keep = keep_dissimilar(similarities, drop, self.threshold)
            shown = ", ".join(f"{similarity:.4f}" for similarity in similarities)
            rank_zero_info(f"{type(self).__name__} keeps layers {keep}; similarities are {shown}")
            return keep
        assert drop is not None
        weights = [[p.detach() for p in layer.parameters() if p.ndim > 1] for layer in encoder_layers(student)]
        scores = torch.stack([weight_score(layer, self.which) for layer in weights])  # type: ignore[arg-type]
        return keep_highest(scores.tolist(), drop)

    def _similarities(self, student: Any, trainer: Trainer, pl_module: LightningModule) -> list[float]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise UserError(f"{type(self).__name__}.which: contribution needs a data module with validation data")
        home, device = student.device, trainer.strategy.root_device
        batches = spread(data.val_dataloader(), self.examples / trainer.world_size)
        student.to(device)
        try:
            sums = similarity_sums(student, pl_module, (to_device(batch, trainer) for batch in batches))
        finally:
            student.to(home)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return (sums[:-1] / sums[-1]).tolist()


def spread(loader: Any, examples: float) -> Iterator[Any]:
    """Batches at equal distances in a loader, with about ``examples`` examples in all.

    Evaluation data is sorted by length: its first batches have the longest examples and say little about the others.
    """
    try:
        total = len(loader)
    except TypeError:  # a stream
        total = None
    batches = iter(loader)
    first = next(batches)
    wanted = max(1, round(examples / rows_of(first)))
    yield first
    if total is None:
        yield from islice(batches, wanted - 1)
        return
    chosen = {number * total // wanted for number in range(1, min(wanted, total))} if wanted < total else None
    for number, batch in enumerate(batches, start=1):
        if chosen is None or number in chosen:
            yield batch
