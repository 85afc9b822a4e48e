"""One row per strategy and distillation term: how the contract tests build it. One without a row fails the suite."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_compress.modules import (
    AttentionDistillation,
    Distillation,
    EmbeddingDistillation,
    HiddenDistillation,
    LogitDistillation,
    RelationDistillation,
    ScorePenalty,
    SimilarityDistillation,
)
from lit_compress.strategies import (
    Activations,
    Fisher,
    FreezeEmbeddings,
    Function,
    GradualLayerDropping,
    LayerDropping,
    LowRankEmbedding,
    Magnitude,
    MagnitudePruning,
    Movement,
    MovementPruning,
    PatternLock,
    Pruning,
    QuantAwareTraining,
    SecondOrderPruning,
    StructuredPruning,
    Taylor,
)

# Few and small gradients, so that an update costs no more than a few steps.
SAMPLE = {"gradients": 12, "gradient_batch_size": 4, "damping": 1e-4, "end": "50%"}


def against_inputs(weight: Tensor, input_norms: Tensor, gradients: Tensor) -> Tensor:
    """An importance of the user's, of all that there is to look at."""
    return weight.abs() * input_norms.sqrt() + gradients


# Every importance and every pattern that goes with it: what is left of the tiny model is checked pair by pair.
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": Magnitude,
    "taylor": lambda: Taylor(score_batches=2),
    "fisher": lambda: Fisher(gradients=6, gradient_batch_size=4, damping=1e-4, block_size=16),
    "movement": Movement,
    "activations": lambda: Activations(batches=2, batch_size=4),
    "function": lambda: Function(against_inputs, batches=2, batch_size=4),
}
PATTERNS = {
    "unstructured": {"sparsity": 0.7},
    "2:4": {"sparsity": 0.5},
    "4x2": {"sparsity": 0.75},
    "8x4/2": {"sparsity": 0.5},
    "heads": {"sparsity": 0.5},
    "neurons": {"sparsity": 0.75},
}


def pruning(importance: str, pattern: str, **options: Any) -> Pruning:
    """A pair that fits a run of 8 optimizer steps, with updates at the start, on the way and at the end."""
    window = {"start": "1 steps", "end": "5 steps", "every": "2 steps"}
    return Pruning(IMPORTANCES[importance](), pattern, **PATTERNS[pattern] | window | options)


def _pair(importance: str, pattern: str, **options: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    return Pruning, {"importance": importance, "pattern": pattern} | options


# Name of the case -> the class and its arguments. All fit a run of 8 optimizer steps.
ROWS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "magnitude": (MagnitudePruning, {"sparsity": 0.8, "end": "50%", "every": "1 steps"}),
    "magnitude-global": (MagnitudePruning, {"sparsity": 0.7, "scope": "global", "schedule": "linear"}),
    "magnitude-2:4": (MagnitudePruning, {"sparsity": 0.5, "pattern": "2:4", "start": "1 steps", "end": "4 steps"}),
    "magnitude-blocks": (MagnitudePruning, {"sparsity": 0.75, "pattern": "4x2", "schedule": "cosine"}),
    "magnitude-balanced": (
        MagnitudePruning,
        {"sparsity": 0.6, "pattern": "8x4/2", "permute_neurons": True, "every": "1 steps"},
    ),
    "magnitude-one-shot": (MagnitudePruning, {"sparsity": 0.6, "schedule": "constant", "start": "0%", "end": "0%"}),
    "magnitude-regrowth": (
        MagnitudePruning,
        {"sparsity": 0.8, "end": "25%", "every": "1 steps", "regrowth": True, "last_update": "75%"},
    ),
    "second-order": (SecondOrderPruning, {"sparsity": 0.8, "initial_sparsity": 0.3, "every": "1 steps"} | SAMPLE),
    "second-order-blocks": (
        SecondOrderPruning,
        {"sparsity": 0.75, "pattern": "1x4", "block_size": 16, "every": "2 steps", "scope": "layer"} | SAMPLE,
    ),
    "second-order-recomputed": (
        SecondOrderPruning,
        # A memory that holds the inverses of some of the layers at a time.
        {"sparsity": 0.7, "schedule": "constant", "recomputations": 2, "memory": 2e-3} | SAMPLE,
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
    "pruning-movement-blocks": _pair("movement", "4x2", last_update="7 steps"),
    "pruning-fisher-2:4": _pair("fisher", "2:4"),
    "pruning-activations": _pair("activations", "unstructured", scope="output"),
    "pruning-activations-regrowth": _pair("activations", "unstructured", regrowth=True, last_update="7 steps"),
    "pruning-taylor": _pair("taylor", "unstructured", initial_sparsity=0.2),
    "pruning-fisher-heads": _pair("fisher", "heads", schedule="constant"),
    "pruning-movement-neurons": _pair("movement", "neurons", last_update="6 steps"),
    "pruning-function-2:4": _pair("function", "2:4"),
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
    "layer-drop": (LayerDropping, {"drop": 1}),
    "layer-drop-contribution": (LayerDropping, {"drop": 1, "which": "contribution", "examples": 12}),
    "layer-drop-variance": (LayerDropping, {"drop": 1, "which": "variance"}),
    "layer-drop-gradual": (GradualLayerDropping, {"drop": 1, "start": "1 steps", "end": "50%"}),
    "structured": (StructuredPruning, {"heads": 1, "neurons": 24, "pruning_steps": 4, "end": "75%"}),
    "structured-one-shot": (
        StructuredPruning,
        {"heads": 0.5, "neurons": 0.25, "pruning_steps": 1, "end": "0%", "score_batches": 3},
    ),
    "structured-global": (
        StructuredPruning,
        {"neurons": 0.3, "scope": "global", "pruning_steps": 2, "start": "1 steps", "end": "5 steps"},
    ),
    "structured-uneven": (
        StructuredPruning,
        {"heads": [2, 1], "neurons": [40, 0.125], "pruning_steps": 3, "end": "75%"},
    ),
    "structured-magnitude": (StructuredPruning, {"neurons": 20, "criterion": "magnitude", "pruning_steps": 3}),
    "low-rank-one-shot": (LowRankEmbedding, {"rank": 6}),
    "low-rank": (LowRankEmbedding, {"rank": 4, "pruning_steps": 4, "end": "50%"}),
}


def build(case: str, **more: Any) -> Any:
    """A fresh strategy of a row, with more arguments."""
    kind, arguments = ROWS[case][0], ROWS[case][1] | more
    return pruning(**arguments) if kind is Pruning else kind(**arguments)


# Name of the case -> the terms, for a teacher of another width, depth and number of heads than the student's.
TERMS: dict[str, Callable[[], dict[str, Distillation]]] = {
    "logits": lambda: {"kd": LogitDistillation(1.0, loss="soft_cross_entropy")},
    "projection": lambda: {"kd": LogitDistillation(), "hidden": HiddenDistillation(projection=True, normalize=True)},
    "attention": lambda: {"maps": AttentionDistillation(loss="kl", heads="mean", layer_map="last")},
    "embeddings": lambda: {"kd": EmbeddingDistillation(projection=True), "near": SimilarityDistillation()},
    "relations": lambda: {"relations": RelationDistillation(relation_heads=4, teacher_layer=2)},
}


def module_options(case: str) -> dict[str, Any]:
    """What the LightningModule of a row needs beside the usual."""
    return {"penalties": {"scores": ScorePenalty(1.0)}} if case == "movement-soft" else {}
