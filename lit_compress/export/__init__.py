"""From the training form to what a runtime loads."""

from lit_compress.export.checkpoint import find_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.fold import fold
from lit_compress.export.hf import save_folder

__all__ = ["find_checkpoint", "fold", "load_checkpoint", "save_folder", "student_from_checkpoint"]
