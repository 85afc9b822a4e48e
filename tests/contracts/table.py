"""One row per strategy: how the contract tests build it. A strategy without a row fails the suite."""

from collections.abc import Callable
from typing import Any

from lit_compress.strategies import (
    FreezeEmbeddings,
    LowRankEmbedding,
    MagnitudePruning,
    PatternLock,
    QuantAwareTraining,
    StructuredPruning,
)

# Name of the case -> the class and its arguments. All fit a run of 8 optimizer steps.
ROWS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "magnitude": (MagnitudePruning, {"sparsity": 0.8, "end": "50%", "every": "1 steps"}),
    "magnitude-global": (MagnitudePruning, {"sparsity": 0.7, "scope": "global", "schedule": "linear"}),
    "magnitude-2:4": (MagnitudePruning, {"sparsity": 0.5, "pattern": "2:4", "start": "1 steps", "end": "4 steps"}),
    "magnitude-blocks": (MagnitudePruning, {"sparsity": 0.75, "pattern": "4x2", "schedule": "cosine"}),
    "magnitude-one-shot": (MagnitudePruning, {"sparsity": 0.6, "schedule": "constant", "start": "0%", "end": "0%"}),
    "magnitude-revive": (
        MagnitudePruning,
        {"sparsity": 0.8, "end": "25%", "every": "1 steps", "revive": True, "last_update": "75%"},
    ),
    "pattern-lock": (PatternLock, {}),
    "qat": (QuantAwareTraining, {"start": "25%", "freeze_observers": "75%"}),
    "qat-per-tensor-int8": (
        QuantAwareTraining,
        {"start": "0%", "freeze_observers": None, "per_channel": False, "activations": "int8"},
    ),
    "qat-dynamic": (QuantAwareTraining, {"start": "0%", "freeze_observers": None, "activations": "dynamic"}),
    "qat-weights-only": (QuantAwareTraining, {"start": "0%", "activations": "none"}),
    "qat-embeddings": (QuantAwareTraining, {"start": "25%", "freeze_observers": "75%", "embeddings": "uint8"}),
    "qat-attention": (QuantAwareTraining, {"start": "25%", "freeze_observers": "75%", "attention": "inputs"}),
    "qat-everything": (
        QuantAwareTraining,
        {
            "start": "2 steps",
            "freeze_observers": None,
            "per_channel": False,
            "outputs": ["*.query", "*.key", "*.intermediate.dense"],
            "embeddings": "int8",
            "attention": "all",
        },
    ),
    "freeze-embeddings": (FreezeEmbeddings, {}),
    "structured": (StructuredPruning, {"heads": 1, "neurons": 24, "prunings": 4, "end": "75%"}),
    "structured-one-shot": (
        StructuredPruning,
        {"heads": 0.5, "neurons": 0.25, "prunings": 1, "end": "0%", "score_batches": 3},
    ),
    "structured-global": (
        StructuredPruning,
        {"neurons": 0.3, "scope": "global", "prunings": 2, "start": "1 steps", "end": "5 steps"},
    ),
    "structured-magnitude": (StructuredPruning, {"neurons": 20, "criterion": "magnitude", "prunings": 3}),
    "low-rank-one-shot": (LowRankEmbedding, {"rank": 6}),
    "low-rank": (LowRankEmbedding, {"rank": 4, "prunings": 4, "end": "50%"}),
}


def build(case: str) -> Any:
    """A fresh strategy of a row."""
    kind, arguments = ROWS[case]
    return kind(**arguments)
