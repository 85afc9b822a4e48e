"""Options that all data modules have: where the texts come from, how long they are, and how many at a time."""

from dataclasses import dataclass
from typing import Literal

from lit_compress.errors import UserError

__all__ = ["TextOptions"]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What every :class:`~lit_compress.data.TextData` takes, in addition to its own arguments.

    Args:
        train_file: training examples, in a format that the class reads; files may be ``.gz``, and ``package:name/path``
            is a file inside an installed package. A folder written by `datasets`' ``save_to_disk`` works everywhere; of
            a ``DatasetDict``, ``train_file`` reads the split ``train``, ``val_file`` the split named by
            ``hub_val_split``, the others ``test``.
        val_file: validation examples; default: the validation split of a ``DatasetDict``, otherwise ``val_fraction`` of
            the training examples is held out.
        test_file: labeled examples for ``test``.
        predict_file: for ``predict``; labels are not needed.
        hub: dataset name on the hub, instead of files, for example ``nyu-mll/glue``.
        hub_config: its configuration, for example ``sst2``.
        hub_val_split: its validation split, and that of a ``DatasetDict``.
        tokenizer: hub name, folder or ``package:``; default on the command line: the model's.
        encoding: of text files; the default also accepts a byte order mark (GLUE's MRPC).
        encoding_errors: ``strict`` refuses bytes that are not valid in this encoding, ``replace`` replaces them.
        max_length: longest input in tokens; longer ones are truncated, or split where the class says so.
        batch_size: examples per training batch and device.
        eval_batch_size: examples per evaluation batch and device; None is ``batch_size``.
        limit: number of training examples, drawn with ``split_seed``; None uses all.
        eval_limit: number of validation and test examples, drawn with ``split_seed``; None uses all.
        val_fraction: fraction of the training examples held out when there is no ``val_file``.
        split_seed: seed of the hold-out and of ``limit``; separate from the run's seed, so that runs share their split.
        num_workers: data loader processes; 0 loads in the training process.
        cache_dir: folder for Arrow files; None is the default of `datasets`.

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
        if self.train_file is not None and self.hub is not None:
            raise UserError("data: give either data.train_file or data.hub, not both")
        if not any((self.train_file, self.hub, self.val_file, self.test_file, self.predict_file)):
            raise UserError(
                "data: give data.train_file or data.hub to train; for a trained model data.val_file, data.test_file or "
                "data.predict_file alone will do"
            )
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
