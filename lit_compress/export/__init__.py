"""From the training form to what a runtime loads."""

from lit_compress.export.checkpoint import find_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.fold import fold
from lit_compress.export.hf import save_folder
from lit_compress.export.pack import pack, save_packed

__all__ = [
    "find_checkpoint",
    "fold",
    "load_checkpoint",
    "pack",
    "save_folder",
    "save_packed",
    "student_from_checkpoint",
]
