"""The examples on which an export is judged: a run's validation data, or a file."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.export.check import Examples
from lit_compress.export.folded import Folded
from lit_compress.export.run_folder import task_of, text_data_of, use_labels
from lit_compress.models.positions import check_length
from lit_compress.tasks import Batch

__all__ = ["examples_of_data", "examples_of_file"]

MOST_EXAMPLES = 256
_MOST_VALUES = 2**26  # of all outputs, which are kept: 256 MiB


def examples_of_data(
    data: LightningDataModule, model: PreTrainedModel, origin: str, most: int = MOST_EXAMPLES
) -> Examples:
    """Validation examples of a data module, evenly over its batches.

    Args:
        data: set up for validation.
        model: folded.
        origin: what to call them.
        most: about how many.

    """
    return _examples(data, model, data.val_dataloader(), origin, True, most)


def examples_of_file(folded: Folded, source: str, file: str, options: dict[str, Any]) -> Examples:
    """The first examples of a file; with labels, and so a score, where the options name the column that has them.

    Args:
        folded: the model and its tokenizer.
        source: folder or checkpoint of the model, for errors.
        file: as `predict` or, with a column of labels, `validate` reads it.
        options: of the data module.

    Raises:
        UserError: no such file, or an option is wrong.

    """
    model = folded.model
    config: Any = model.config
    config.architectures = [type(model).__name__]
    if not Path(file).exists():
        raise UserError(f"--check: {file!r} does not exist; give a file of examples")
    labelled = "label_column" in options
    # The training file is not read to validate, but there has to be one.
    files = {"train_file": file, "val_file": file} if labelled else {"predict_file": file}
    given = files | {"tokenizer": folded.tokenizer.name_or_path}
    data = text_data_of(config, source, given | options)
    check_length(config, data.max_length, f"--model {source!r}", "--data.max_length")
    use_labels(data, config)
    if labelled:
        data.setup("validate")
    loader = data.val_dataloader() if labelled else data.predict_dataloader()
    return _examples(data, model, loader, repr(file), labelled, MOST_EXAMPLES)


def _examples(
    data: LightningDataModule, model: PreTrainedModel, loader: DataLoader, origin: str, labelled: bool, most: int
) -> Examples:
    config: Any = model.config
    per_token = config.vocab_size if model.get_output_embeddings() is not None else config.num_labels
    batches: list[Batch] = []
    rows = values = step = 0
    for index, batch in enumerate(loader):
        # Evenly over all batches, which are in the order of their lengths.
        step = step or max(1, len(loader) * batch.rows // most)
        if index % step == 0:
            batches.append(batch)
            rows += batch.rows
            values += batch.inputs["input_ids"].numel() * per_token
        if rows >= most or values >= _MOST_VALUES:
            break
    if not batches:
        raise UserError(f"--check: {origin} has no example; give a file with some")
    return Examples(batches=batches, task=task_of(data), origin=origin, labelled=labelled)
