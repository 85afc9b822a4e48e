"""`lit_compress export`: a run's student as a folder."""

from lit_compress.data.text import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.export.checkpoint import find_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.hf import save_folder

__all__ = ["export"]


def export(run: str | None = None, output: str = "", checkpoint: str | None = None, overwrite: bool = False) -> None:
    """Fold a trained student and write it as a Hugging Face folder.

    Args:
        run: run folder of a `fit`; its last checkpoint is taken.
        output: folder to make.
        checkpoint: a checkpoint file instead of a run.
        overwrite: replace an existing output folder.

    """
    if (run is None) == (checkpoint is None):
        raise UserError("export: give either --run or --checkpoint")
    if not output:
        raise UserError("export: give --output, the folder to make")
    loaded = load_checkpoint(checkpoint or find_checkpoint(run or ""))
    tokenizer = load_tokenizer(loaded["lit_compress"]["tokenizer"], "checkpoint tokenizer")
    save_folder(student_from_checkpoint(loaded), tokenizer, output, overwrite)
