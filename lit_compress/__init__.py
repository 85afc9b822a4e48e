"""Make BERT-family encoders smaller: pruning, distillation and quantization as PyTorch Lightning callbacks."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_compress.errors import UserError
from lit_compress.extras import named_extras
from lit_compress.models import fold, pack, prune_, quantize_  # and teaches Transformers to read compressed folders
from lit_compress.nn import CompressibleLinear, FrozenTeacher, describe, rebuild

if TYPE_CHECKING:
    from lit_compress.data import (
        MaskedLanguageModeling,
        MultiLabelClassification,
        QuestionAnswering,
        TextClassification,
        TokenClassification,
    )
    from lit_compress.export import save_folder, save_packed, student_from_checkpoint
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
    from lit_compress.strategies import (
        CompressionMonitor,
        FreezeEmbeddings,
        GradualLayerDropping,
        Importance,
        LayerDropping,
        LowRankEmbedding,
        MagnitudePruning,
        MovementPruning,
        PatternLock,
        Pruning,
        QuantAwareTraining,
        SecondOrderPruning,
        Strategy,
        StructuredPruning,
    )
    from lit_compress.training import FittedRun, fit

__all__ = [
    "AttentionDistillation",
    "CompressibleLinear",
    "CompressionMonitor",
    "Distillation",
    "FittedRun",
    "FreezeEmbeddings",
    "FrozenTeacher",
    "GradualLayerDropping",
    "HiddenDistillation",
    "Importance",
    "L1Penalty",
    "LayerDropping",
    "LitEncoder",
    "LitPrunedStudent",
    "LitStudent",
    "LitTeacher",
    "LogitDistillation",
    "LowRankEmbedding",
    "MagnitudePruning",
    "MaskedLanguageModeling",
    "MovementPruning",
    "MultiLabelClassification",
    "Optimization",
    "PatternLock",
    "Penalty",
    "Phase",
    "Pruning",
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
    "fit",
    "fold",
    "pack",
    "prune_",
    "quantize_",
    "rebuild",
    "save_folder",
    "save_packed",
    "student_from_checkpoint",
]

# Where the names are that need more than reading a model does.
_LATER = ("data", "export", "modules", "strategies", "training")


def __getattr__(name: str) -> Any:
    """A public name or module that trains or exports, imported when it is asked for.

    Raises:
        MissingPackage: what it needs is not installed.

    """
    if name in _LATER:
        with named_extras():
            return import_module(f"{__name__}.{name}")
    if name in __all__:
        for inner in _LATER:
            with named_extras():
                module = import_module(f"{__name__}.{inner}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
