"""From the training form to what a runtime loads."""

from lit_compress.export.checkpoint import find_checkpoint, last_checkpoint, load_checkpoint, student_from_checkpoint
from lit_compress.export.command import write
from lit_compress.export.pack import save_packed
from lit_compress.export.source import from_source
from lit_compress.export.trim_vocabulary import trim_vocabulary
from lit_compress.models.fold import fold
from lit_compress.models.folded import Folded, from_student
from lit_compress.models.hf_folder import save_folder
from lit_compress.models.pack import pack

__all__ = [
    "Folded",
    "find_checkpoint",
    "fold",
    "from_source",
    "from_student",
    "last_checkpoint",
    "load_checkpoint",
    "pack",
    "save_folder",
    "save_packed",
    "student_from_checkpoint",
    "trim_vocabulary",
    "write",
]
