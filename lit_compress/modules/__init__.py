"""LightningModules: whatever needs gradients."""

from lit_compress.modules.distillation import Distillation, LogitDistillation
from lit_compress.modules.embedding_distillation import EmbeddingDistillation, SimilarityDistillation
from lit_compress.modules.encoder import LitEncoder
from lit_compress.modules.feature_distillation import AttentionDistillation, HiddenDistillation, RelationDistillation
from lit_compress.modules.learning_rate import Phase, Rewind
from lit_compress.modules.margin_distillation import MarginDistillation
from lit_compress.modules.optim import Optimization
from lit_compress.modules.pruned_student import L1Penalty, LitPrunedStudent, Penalty, ScorePenalty
from lit_compress.modules.student import LitStudent
from lit_compress.modules.teacher import LitTeacher

__all__ = [
    "AttentionDistillation",
    "Distillation",
    "EmbeddingDistillation",
    "HiddenDistillation",
    "L1Penalty",
    "LitEncoder",
    "LitPrunedStudent",
    "LitStudent",
    "LitTeacher",
    "LogitDistillation",
    "MarginDistillation",
    "Optimization",
    "Penalty",
    "Phase",
    "RelationDistillation",
    "Rewind",
    "ScorePenalty",
    "SimilarityDistillation",
]
