"""Options that all data modules have: where the texts come from, how long they are, and how many at a time."""

from dataclasses import dataclass
from typing import Literal

from lit_compress.errors import UserError

__all__ = ["TextOptions"]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What every :class:`~lit_compress.data.TextData` is made with, beside its own arguments.

    Args:
        train_file: examples to train on, in a format that the class reads; files may be ``.gz``, and
            ``package:name/path`` is one inside an installed package. A folder of `datasets`' ``save_to_disk`` will do
            everywhere; of a ``DatasetDict`` ``train_file`` takes the split ``train``, ``val_file`` the split that
            ``hub_val_split`` names, the others ``test``.
        val_file: to validate on; without it the validation split of a ``DatasetDict``, or else ``val_fraction`` of the
            training examples is held out.
        test_file: with labels, for ``test``.
        predict_file: for ``predict``; labels are not needed.
        hub: dataset name on the hub instead of files, for example ``nyu-mll/glue``.
        hub_config: its configuration, for example ``sst2``.
        hub_val_split: its validation split, and that of a ``DatasetDict``.
        tokenizer: hub name, folder or ``package:``; on the command line the model's by default.
        encoding: of text files; the default also accepts a byte order mark (GLUE's MRPC).
        encoding_errors: ``strict`` refuses bytes that are no text in this encoding, ``replace`` reads over them.
        max_length: longest input in tokens; longer ones are truncated, or divided where the class says so.
        batch_size: inputs per training batch and device.
        eval_batch_size: inputs per evaluation batch and device; None is ``batch_size``.
        limit: train on this many examples of the source, drawn with ``split_seed``; None takes all.
        eval_limit: validate and test on this many examples, drawn with ``split_seed``; None takes all.
        val_fraction: share of training examples held out when there is no ``val_file``.
        split_seed: determines the hold-out and ``limit``; apart from the run's seed, so that runs share their split.
        num_workers: loader processes; 0 loads in the training process.
        cache_dir: for Arrow files; None is the `datasets` default.

    Raises:
        UserError: no source, or a number that cannot be.

    """

    train_file: str | None = None
    val_file: str | None = None
    test_file: str | None = None
    predict_file: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    hub_val_split: str = "validation"
    tokenizer: str | None = None
    encoding: str = "utf-8-sig"
    encoding_errors: Literal["strict", "replace"] = "strict"
    max_length: int = 128
    batch_size: int = 32
    eval_batch_size: int | None = None
    limit: int | None = None
    eval_limit: int | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    num_workers: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if (self.train_file is None) == (self.hub is None) and (self.hub is not None or self.predict_file is None):
            raise UserError("data: give either data.train_file or data.hub")
        if self.tokenizer is None:
            raise UserError("data.tokenizer: missing; give a hub name or a model folder")
        for name in ("batch_size", "eval_batch_size", "limit", "eval_limit", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}: {value} must be at least 1")
        if self.num_workers < 0:
            raise UserError(f"data.num_workers: {self.num_workers} must be at least 0")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction: {self.val_fraction} must be in (0, 1)")
