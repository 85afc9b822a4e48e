"""Make BERT-family encoders smaller: pruning, distillation and quantization as PyTorch Lightning callbacks."""

__version__ = "0.1.0"

from lit_compress.data import MaskedLanguageModeling, QuestionAnswering, TextClassification, TokenClassification
from lit_compress.errors import UserError
from lit_compress.export import fold, save_folder, student_from_checkpoint
from lit_compress.modules import (
    AttentionDistillation,
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
    RelationDistillation,
    Rewind,
    ScorePenalty,
)
from lit_compress.nn import CompressibleLinear, FrozenTeacher, describe, rebuild
from lit_compress.strategies import (
    CompressionMonitor,
    FreezeEmbeddings,
    LowRankEmbedding,
    MagnitudePruning,
    MovementPruning,
    PatternLock,
    QuantAwareTraining,
    SecondOrderPruning,
    Strategy,
    StructuredPruning,
)

__all__ = [
    "AttentionDistillation",
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
    "MaskedLanguageModeling",
    "MovementPruning",
    "Optimization",
    "PatternLock",
    "Penalty",
    "Phase",
    "QuantAwareTraining",
    "QuestionAnswering",
    "RelationDistillation",
    "Rewind",
    "ScorePenalty",
    "SecondOrderPruning",
    "Strategy",
    "StructuredPruning",
    "TextClassification",
    "TokenClassification",
    "UserError",
    "describe",
    "fold",
    "rebuild",
    "save_folder",
    "student_from_checkpoint",
]
