"""The examples on which an export is judged: a run's validation data, or a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError
from lit_compress.export.check import Examples
from lit_compress.export.run_folder import task_of, text_data_of, use_labels
from lit_compress.models.folded import Folded
from lit_compress.models.positions import check_length

__all__ = ["examples_of_data", "examples_of_file"]

MOST_EXAMPLES = 256
_MOST_VALUES = 2**26  # of all outputs, which are kept: 256 MiB
_BATCHES = 16  # that a sample has at least, of lengths from one end to the other


def examples_of_data(data: TextData, model: PreTrainedModel, origin: str, most: int = MOST_EXAMPLES) -> Examples:
    """Validation examples of a data module, evenly over its batches, which are in the order of their lengths.

    Args:
        data: set up for validation; its batches become smaller where only some are taken.
        model: folded.
        origin: what to call them.
        most: how many; fewer where the outputs of so many take too much memory, as those of masked words do.

    """
    return _examples(data, model, data.val_dataloader, origin, True, most)


def examples_of_file(folded: Folded, source: str, file: str, options: dict[str, Any]) -> Examples:
    """Examples of a file, evenly over its batches; with labels, and so a score, where the options name their column.

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
    open_loader = data.val_dataloader if labelled else data.predict_dataloader
    return _examples(data, model, open_loader, repr(file), labelled, MOST_EXAMPLES)


def _examples(
    data: TextData,
    model: PreTrainedModel,
    open_loader: Callable[[], DataLoader],
    origin: str,
    labelled: bool,
    most: int,
) -> Examples:
    config: Any = model.config
    per_token = config.vocab_size if model.get_output_embeddings() is not None else config.num_labels
    sizes = [(batch.rows, batch.inputs["input_ids"].numel()) for batch in open_loader()]
    if not sizes:
        raise UserError(f"--check: {origin} has no example; give a file with some")
    total, tokens = map(sum, zip(*sizes, strict=True))
    rows = max(1, min(most, total, total * _MOST_VALUES // (tokens * per_token)))
    if rows < total:
        data.eval_batch_size = max(1, min(data.eval_batch_size, rows // _BATCHES))
    loader = open_loader()
    count = max(1, rows * len(loader) // total)
    taken = {index * len(loader) // count for index in range(count)}
    batches = [batch for index, batch in enumerate(loader) if index in taken]
    return Examples(batches=batches, task=task_of(data), origin=origin, labelled=labelled)
