"""Make BERT-family encoders smaller: pruning, distillation and quantization as PyTorch Lightning callbacks."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_compress.errors import UserError
from lit_compress.extras import named_extras
from lit_compress.version import __version__ as __version__

if TYPE_CHECKING:
    from lit_compress.auto import compress
    from lit_compress.data import (
        MaskedLanguageModeling,
        MultiLabelClassification,
        QuestionAnswering,
        TextClassification,
        TokenClassification,
    )
    from lit_compress.export import save_folder, save_packed, student_from_checkpoint
    from lit_compress.models import fold, pack, prune_, quantize_
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
    "compress",
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

# Where the public names are, imported when they are asked for.
_PACKAGES = {
    "auto": ("compress",),
    "data": (
        *("MaskedLanguageModeling", "MultiLabelClassification", "QuestionAnswering", "TextClassification"),
        "TokenClassification",
    ),
    "export": ("save_folder", "save_packed", "student_from_checkpoint"),
    "models": ("fold", "pack", "prune_", "quantize_"),
    "modules": (
        *("AttentionDistillation", "Distillation", "HiddenDistillation", "L1Penalty", "LitEncoder"),
        *("LitPrunedStudent", "LitStudent", "LitTeacher", "LogitDistillation", "Optimization", "Penalty", "Phase"),
        *("RelationDistillation", "Rewind", "ScorePenalty"),
    ),
    "nn": ("CompressibleLinear", "FrozenTeacher", "describe", "rebuild"),
    "strategies": (
        *("CompressionMonitor", "FreezeEmbeddings", "GradualLayerDropping", "Importance", "LayerDropping"),
        *("LowRankEmbedding", "MagnitudePruning", "MovementPruning", "PatternLock", "Pruning", "QuantAwareTraining"),
        *("SecondOrderPruning", "Strategy", "StructuredPruning"),
    ),
    "training": ("FittedRun", "fit"),
}


def __getattr__(name: str) -> Any:
    """A public name or package, imported when it is asked for.

    Raises:
        MissingPackage: what it needs is not installed.

    """
    for package, names in _PACKAGES.items():
        if name == package or name in names:
            with named_extras():
                module = import_module(f"{__name__}.{package}")
            return module if name == package else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether a command or a worker starts, which import what they need, and not a program that imports this."""
    if not sys.argv:  # an interpreter inside another program
        return False
    if sys.argv[0] == "-m":  # which Python puts there until it has found the module
        return sys.orig_argv[-len(sys.argv)] in (__name__, f"{__name__}.runtimes.worker")
    return Path(sys.argv[0]).stem == __name__


# Teaches Transformers to read compressed folders. The command does without until it loads a model, because
# Transformers takes seconds to import and `--help` should not.
if not _is_command():
    import_module(f"{__name__}.models")
