"""A SparseML recipe (version 1.x, its training-time modifiers) as a draft."""

from collections.abc import Callable, Mapping
from typing import Any

from lit_compress.migrate import sparseml_pruning, sparseml_training
from lit_compress.migrate.draft import Draft, Options
from lit_compress.migrate.sparseml_quantization import quantization
from lit_compress.migrate.sparseml_rates import Rates
from lit_compress.migrate.sparseml_recipe import Modifier, read_recipe

__all__ = ["MODIFIERS", "from_sparseml"]

_TRANSLATORS: dict[str, Callable[[Options, Draft], None]] = {
    "EpochRangeModifier": sparseml_training.epochs,
    "GMPruningModifier": sparseml_pruning.magnitude,
    "MagnitudePruningModifier": sparseml_pruning.magnitude,
    "GlobalMagnitudePruningModifier": sparseml_pruning.global_magnitude,
    "OBSPruningModifier": sparseml_pruning.second_order,
    "MovementPruningModifier": sparseml_pruning.movement,
    "ConstantPruningModifier": sparseml_pruning.constant,
    "QuantizationModifier": quantization,
    "LegacyQuantizationModifier": quantization,
    "DistillationModifier": sparseml_training.distillation,
    "OutputDistillationModifier": sparseml_training.distillation,
    "PerLayerDistillationModifier": sparseml_training.features,
    "SetWeightDecayModifier": sparseml_training.weight_decay,
    "TrainableParamsModifier": sparseml_training.trainable,
}
_WITHOUT_COUNTERPART = {
    "ACDCPruningModifier": "AC/DC switches masks off and on again; MagnitudePruning with regrowth is nearest",
    "LearningRateModifier": "set model.optimization; decays are linear or cosine",
    "MFACPruningModifier": "SecondOrderPruning is the successor of M-FAC",
    "RigLPruningModifier": "weights do not grow back by gradient; MovementPruning is nearest",
    "SparseGPTModifier": "it prunes without training; fit trains",
    "StructuredPruningModifier": "StructuredPruning removes heads and neurons, by numbers that this one does not have",
    "TopKASTPruningModifier": "MagnitudePruning with regrowth is nearest",
    "WandaPruningModifier": "it prunes without training; fit trains",
}
# Every modifier that is translated.
MODIFIERS = (*_TRANSLATORS, "LearningRateFunctionModifier", "SetLearningRateModifier", "LayerPruningModifier")
# Spelling of the recipes of the last versions, without tags.
_SPELLINGS = {"start": "start_epoch", "end": "end_epoch", "targets": "params", "mask_structure": "mask_type"}


def from_sparseml(
    text: str, draft: Draft, variables: Mapping[str, Any] | None = None, layers: int | None = None
) -> None:
    """Fill a draft from a recipe.

    Args:
        text: YAML, or Markdown with YAML front matter.
        draft: what is filled.
        variables: values in the place of those in the recipe.
        layers: transformer layers of the model, which dropping layers depends on.

    Raises:
        UserError: the text is not a recipe.

    """
    recipe = read_recipe(text, variables)
    stages = list(dict.fromkeys(modifier.stage for modifier in recipe.modifiers if modifier.stage))
    if len(stages) > 1:
        draft.changed.append(f"stages {', '.join(stages)}: they are one run here, in which epochs count from its start")
    for name, value in recipe.others.items():
        draft.left_out.append(f"{name}: {value}: it describes the recipe and does nothing")
    rates = Rates(draft)
    for modifier in recipe.modifiers:
        _translate(modifier, draft, rates, layers)
    rates.finish()
    for options, end in draft.ends:
        if end < draft.epochs:
            options.change("end_epoch", f"{end:g}; a term is part of the loss to the last step")


def _translate(modifier: Modifier, draft: Draft, rates: Rates, layers: int | None) -> None:
    values = {_SPELLINGS.get(name, name): value for name, value in modifier.options.items()}
    options = Options(f"{modifier.stage}.{modifier.name}".lstrip("."), values, draft)
    if modifier.name == "LearningRateFunctionModifier":
        rates.function(options)
    elif modifier.name == "SetLearningRateModifier":
        rates.constant(options)
    elif modifier.name == "LayerPruningModifier":
        sparseml_pruning.layers(options, draft, layers)
    elif modifier.name in _TRANSLATORS:
        _TRANSLATORS[modifier.name](options, draft)
    else:
        options.leave_out_all(_WITHOUT_COUNTERPART.get(modifier.name, "this package has no such method"))
    options.finish()
