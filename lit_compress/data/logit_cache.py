"""A teacher's logits for every example of a dataset: one memory-mapped file, written once, then only read."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from lit_compress.errors import UserError, first_line

__all__ = ["LogitStore", "model_digest", "rows_digest"]

_ARRAY, _ABOUT = "logits.npy", "about.json"
# Columns of a tokenized data set that a model reads.
_READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "text_lengths")


class LogitStore:
    """Logits ``(examples, classes)`` or ``(examples, tokens, classes)`` in a folder, or vectors of texts.

    The folder is whole or not there: it is written under another name, finished with a checksum and then renamed.

    Args:
        folder: of a finished store, or one that :meth:`create` made.
        writable: open for filling.

    """

    def __init__(self, folder: Path, writable: bool = False) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / _ABOUT).read_text())
        self.names: list[str] = self.about["names"]
        self.array = np.load(folder / _ARRAY, mmap_mode="r+" if writable else "r", allow_pickle=False)

    @property
    def per_token(self) -> bool:
        """Whether there are logits for each token."""
        return self.array.ndim == 3

    @classmethod
    def create(
        cls,
        folder: Path,
        shape: Sequence[int],
        names: Sequence[str],
        dtype: Literal["float32", "float16"],
        about: dict[str, Any],
    ) -> None:
        """Make an empty store: every number is a nan until it is filled.

        Args:
            folder: is made.
            shape: ``(examples, classes)`` or ``(examples, tokens, classes)``.
            names: of the output's attributes; several share the classes' axis, one column each.
            dtype: of the file.
            about: what the logits depend on, for whoever looks into the folder.

        """
        folder.mkdir(parents=True)
        array = np.lib.format.open_memmap(folder / _ARRAY, mode="w+", dtype=dtype, shape=tuple(shape))
        array[:] = np.nan
        array.flush()
        (folder / _ABOUT).write_text(json.dumps(about | {"names": list(names)}, indent=1))

    def write(self, index: Sequence[int], logits: Tensor, lengths: Sequence[int]) -> None:
        """Fill some examples.

        Args:
            index: their numbers.
            logits: ``(batch, classes)`` or ``(batch, tokens, classes)``.
            lengths: tokens of each; what lies beyond is padding and stored as 0.

        Raises:
            UserError: a logit is not a finite number of the file's type.

        """
        with np.errstate(over="ignore"):  # seen below, with the example's number
            values = logits.detach().float().cpu().numpy().astype(self.array.dtype)
        for row, (example, length) in enumerate(zip(index, lengths, strict=True)):
            if self.per_token:
                self.array[example] = 0
                self.array[example, :length] = values[row, :length]
            else:
                self.array[example] = values[row]
            if not np.isfinite(self.array[example]).all():
                raise UserError(
                    f"model.teacher_cache: a logit of training example {example} is not a finite {self.array.dtype}; "
                    "look at the teacher, or set model.teacher_cache_dtype to float32"
                )

    def finish(self) -> None:
        """Record the checksum, once every example is filled."""
        assert not np.isnan(self.array).any(), "an example was not filled"
        (self.folder / _ABOUT).write_text(json.dumps(self.about | {"sha256": self._checksum()}, indent=1))

    def read(self, index: Tensor, tokens: int) -> SimpleNamespace:
        """What the teacher said, named like the attributes of its output; on the device of ``index``.

        Args:
            index: numbers of the examples ``(batch,)``.
            tokens: length of the batch; logits per token are cut, or filled up with 0, to it.

        """
        rows = index.cpu().numpy()
        if not self.per_token:
            values = torch.from_numpy(self.array[rows].astype(np.float32))
        else:
            values = torch.zeros(len(rows), tokens, self.array.shape[-1])
            kept = min(tokens, self.array.shape[1])
            values[:, :kept] = torch.from_numpy(self.array[rows, :kept].astype(np.float32))
        values = values.to(index.device)
        if len(self.names) == 1:
            return SimpleNamespace(**{self.names[0]: values})
        return SimpleNamespace(**dict(zip(self.names, values.unbind(-1), strict=True)))

    @classmethod
    def find_damage(cls, folder: Path) -> str | None:
        """What is wrong with a folder that should be a finished store; None when nothing is."""
        try:
            store = cls(folder)
        except (OSError, EOFError, ValueError, KeyError) as error:
            return first_line(error)
        if store.about.get("sha256") != store._checksum():
            return "its checksum is another"
        return None

    def _checksum(self) -> str:
        with (self.folder / _ARRAY).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def rows_digest(dataset: Dataset) -> str:
    """SHA-256 of what a model reads of each example, in order: the texts, the tokenizer and the longest length.

    Args:
        dataset: tokenized, with lists of ids and masks as columns.

    """
    digest = hashlib.sha256()
    read = [name for name in _READ if name in dataset.column_names]
    table: Any = dataset.select_columns(read).with_format("arrow")
    for rows in table.iter(10_000):
        for name in read:
            column = rows[name].combine_chunks()
            digest.update(name.encode())
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """SHA-256 of every weight and buffer, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
