"""Make BERT-family encoders smaller: pruning, distillation and quantization as PyTorch Lightning callbacks."""

__version__ = "0.1.0"

from lit_compress.data import TextClassification
from lit_compress.errors import UserError
from lit_compress.export import fold, save_folder, student_from_checkpoint
from lit_compress.modules import (
    Distillation,
    HiddenDistillation,
    L1Penalty,
    LitEncoder,
    LitPrunedStudent,
    LitStudent,
    LitTeacher,
    LogitDistillation,
    Optimization,
    Penalty,
    Phase,
    Rewind,
)
from lit_compress.nn import CompressibleLinear, FrozenTeacher, describe, rebuild
from lit_compress.strategies import (
    CompressionMonitor,
    FreezeEmbeddings,
    LowRankEmbedding,
    MagnitudePruning,
    PatternLock,
    QuantAwareTraining,
    Strategy,
    StructuredPruning,
)

__all__ = [
    "CompressibleLinear",
    "CompressionMonitor",
    "Distillation",
    "FreezeEmbeddings",
    "FrozenTeacher",
    "HiddenDistillation",
    "L1Penalty",
    "LitEncoder",
    "LitPrunedStudent",
    "LitStudent",
    "LitTeacher",
    "LogitDistillation",
    "LowRankEmbedding",
    "MagnitudePruning",
    "Optimization",
    "PatternLock",
    "Penalty",
    "Phase",
    "QuantAwareTraining",
    "Rewind",
    "Strategy",
    "StructuredPruning",
    "TextClassification",
    "UserError",
    "describe",
    "fold",
    "rebuild",
    "save_folder",
    "student_from_checkpoint",
]
