"""One row per strategy: how the contract tests build it. A strategy without a row fails the suite."""

from collections.abc import Callable
from typing import Any

from lit_compress.modules import ScorePenalty
from lit_compress.strategies import (
    FreezeEmbeddings,
    MagnitudePruning,
    MovementPruning,
    PatternLock,
    QuantAwareTraining,
    SecondOrderPruning,
)

# Few and small gradients, so that an update costs no more than a few steps.
SAMPLE = {"gradients": 12, "gradient_batch_size": 4, "damping": 1e-4, "end": "50%"}

# Name of the case -> the class and its arguments. All fit a run of 8 optimizer steps.
ROWS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "magnitude": (MagnitudePruning, {"sparsity": 0.8, "end": "50%", "every": "1 steps"}),
    "magnitude-global": (MagnitudePruning, {"sparsity": 0.7, "scope": "global", "schedule": "linear"}),
    "magnitude-2:4": (MagnitudePruning, {"sparsity": 0.5, "pattern": "2:4", "start": "1 steps", "end": "4 steps"}),
    "magnitude-blocks": (MagnitudePruning, {"sparsity": 0.75, "pattern": "4x2", "schedule": "cosine"}),
    "magnitude-one-shot": (MagnitudePruning, {"sparsity": 0.6, "schedule": "constant", "start": "0%", "end": "0%"}),
    "second-order": (SecondOrderPruning, {"sparsity": 0.8, "initial_sparsity": 0.3, "every": "1 steps"} | SAMPLE),
    "second-order-blocks": (
        SecondOrderPruning,
        {"sparsity": 0.75, "pattern": "1x4", "block_size": 16, "every": "2 steps", "scope": "layer"} | SAMPLE,
    ),
    "second-order-recomputed": (
        SecondOrderPruning,
        # A memory that holds one layer's inverse at a time.
        {"sparsity": 0.7, "schedule": "constant", "recomputations": 3, "memory": 6e-4} | SAMPLE,
    ),
    "movement": (
        MovementPruning,
        {"sparsity": 0.7, "start": "1 steps", "end": "4 steps", "freeze_masks": "6 steps"},
    ),
    "movement-global": (
        MovementPruning,
        {"sparsity": 0.6, "initial_sparsity": 0.2, "scope": "global", "start": "0%", "every": "2 steps"},
    ),
    "movement-soft": (
        MovementPruning,
        {"method": "soft", "threshold": 0.5, "start": "1 steps", "end": "4 steps", "freeze_masks": "7 steps"},
    ),
    "pattern-lock": (PatternLock, {}),
    "qat": (QuantAwareTraining, {"start": "25%", "freeze_observers": "75%"}),
    "qat-per-tensor-int8": (
        QuantAwareTraining,
        {"start": "0%", "freeze_observers": None, "per_channel": False, "activations": "int8"},
    ),
    "qat-dynamic": (QuantAwareTraining, {"start": "0%", "freeze_observers": None, "activations": "dynamic"}),
    "qat-weights-only": (QuantAwareTraining, {"start": "0%", "activations": "none"}),
    "freeze-embeddings": (FreezeEmbeddings, {}),
}


def build(case: str) -> Any:
    """A fresh strategy of a row."""
    kind, arguments = ROWS[case]
    return kind(**arguments)


def module_options(case: str) -> dict[str, Any]:
    """What the LightningModule of a row needs beside the usual."""
    return {"penalties": {"scores": ScorePenalty(1.0)}} if case == "movement-soft" else {}
