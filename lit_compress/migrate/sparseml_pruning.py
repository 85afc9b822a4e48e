"""SparseML's pruning modifiers as strategies."""

from collections.abc import Callable
from typing import Any

from lit_compress.migrate.draft import Draft, Options, duration
from lit_compress.migrate.expressions import number
from lit_compress.migrate.sparseml_names import layer_index, parameter_patterns

__all__ = ["constant", "global_magnitude", "layers", "magnitude", "movement", "second_order"]

_NO_SCHEDULE = "this package has no such schedule of sparsity; cubic is used"
_LOGGING = "it only concerns what is logged; every layer's sparsity is in TensorBoard"


def magnitude(options: Options, draft: Draft) -> None:
    """``GMPruningModifier``, ``MagnitudePruningModifier``: every matrix reaches the sparsity itself."""
    score = options.take("score_type", "magnitude")
    if score == "movement":
        movement(options, draft)
        return
    if score != "magnitude":
        options.leave_out("score_type", score, "magnitude is taken; SecondOrderPruning is nearest to M-FAC and OBS")
    scope = "global" if _true(options.take("global_sparsity", False)) else None
    _each_sparsity(options, draft, lambda given: draft.add("MagnitudePruning", scope=scope, **given))


def global_magnitude(options: Options, draft: Draft) -> None:
    """``GlobalMagnitudePruningModifier``: one threshold for all matrices."""
    options.take("global_sparsity")
    _each_sparsity(options, draft, lambda given: draft.add("MagnitudePruning", scope="global", **given))


def second_order(options: Options, draft: Draft) -> None:
    """``OBSPruningModifier``: oBERT."""
    own = {
        "scope": "global" if _true(options.take("global_sparsity", True)) else "layer",
        "gradients": int(options.numeric("num_grads", 1024)),
        "damping": float(options.numeric("damp", 1e-7)),
        "block_size": int(options.numeric("fisher_block_size", 1)),
        "recomputations": int(options.numeric("num_recomputations", 1)),
    }
    sampler = options.inner("grad_sampler_kwargs")
    if "batch_size" in sampler:
        own["gradient_batch_size"] = int(sampler.numeric("batch_size", 16))
    sampler.finish()
    _each_sparsity(options, draft, lambda given: draft.add("SecondOrderPruning", **given, **own))


def movement(options: Options, draft: Draft) -> None:
    """``MovementPruningModifier``: here scores are learned, as in the paper."""

    def add(given: dict[str, Any]) -> None:
        for name in ("pattern", "schedule"):
            if (value := given.pop(name, None)) is not None:
                options.leave_out(name, value, "movement pruning is unstructured and cubic here")
        draft.add("MovementPruning", method="hard", freeze_masks=given["end"], **given)

    options.draft.changed.append(
        f"{options.owner}: scores are parameters that the optimizer learns (arXiv 2005.07683), where SparseML adds up "
        "-0.01 * gradient * weight; their rate is model.optimization.score_learning_rate"
    )
    _each_sparsity(options, draft, add)


def constant(options: Options, draft: Draft) -> None:
    """``ConstantPruningModifier``: zeros stay zeros."""
    start = options.numeric("start_epoch", -1)
    end = options.numeric("end_epoch", -1)
    if start > 0:
        options.change("start_epoch", f"{start:g}; PatternLock locks at the first step")
    if end > 0:
        options.change("end_epoch", f"{end:g}; PatternLock locks to the end")
        draft.lasts(end)
    options.drop("a constant mask has no updates", "update_frequency")
    options.drop(_LOGGING, "log_types")
    if targets := parameter_patterns(options.take("params", "__ALL_PRUNABLE__"), options):
        draft.add("PatternLock", targets=targets)


def layers(options: Options, draft: Draft, count: int | None) -> None:
    """``LayerPruningModifier``: whole layers go before training.

    Args:
        options: of the modifier.
        draft: what is filled.
        count: layers of the model that the recipe is for; a recipe does not say.

    """
    names = options.take("layers", [])
    names = [names] if isinstance(names, str) else list(names)
    dropped = {name: layer_index(str(name)) for name in names}
    for name in [name for name, index in dropped.items() if index is None]:
        options.leave_out("layers", name, "it is not a transformer layer such as bert.encoder.layer.3")
    gone = {index for index in dropped.values() if index is not None}
    start, end = options.numeric("start_epoch", -1), options.numeric("end_epoch", -1)
    if start > 0:
        options.change("start_epoch", f"{start:g}; LayerDropping drops before the first step")
    if end > 0:
        options.leave_out("end_epoch", end, "layers do not come back here")
        draft.lasts(end)
    options.drop("layers are dropped once", "update_frequency")
    if gone and (count is None or max(gone) >= count):
        options.leave_out("layers", sorted(gone), "say how many layers the model has: --layers 12 for BERT-base")
    elif gone:
        draft.add("LayerDropping", keep=[index for index in range(count or 0) if index not in gone])


def _each_sparsity(options: Options, draft: Draft, add: Callable[[dict[str, Any]], None]) -> None:
    """Call ``add`` with the options that all pruning strategies share, once for each final sparsity."""
    start = max(options.numeric("start_epoch", 0), 0)
    end = options.numeric("end_epoch", start)
    every = options.numeric("update_frequency", -1)
    draft.lasts(end)
    given: dict[str, Any] = {"start": duration(start), "end": duration(max(end, start))}
    given["every"] = duration(every) if every > 0 else "1 steps"
    given |= _initial(options) | _course(options)
    pattern, prunes = _pattern(options)
    given |= {"pattern": pattern} if pattern else {}
    if not _true(options.take("leave_enabled", True)):
        options.leave_out("leave_enabled", False, "what is pruned stays pruned here, to the end")
    if _true(options.take("phased", False)):
        options.leave_out("phased", True, "masks are not switched off between updates here")
    options.drop(_LOGGING, "log_types")
    options.drop("a pattern that matches nothing is always an error here", "params_strict")
    final, params = options.take("final_sparsity"), options.take("params", "__ALL_PRUNABLE__")
    if not prunes:
        return
    # One number for all parameters, or a number to the parameters that reach it.
    groups = final.items() if isinstance(final, dict) else [(final, params)]
    for sparsity, names in groups:
        if (value := number(sparsity)) is None or not 0 <= value < 1:
            options.leave_out("final_sparsity", sparsity, "it must be a number in [0, 1)")
        elif targets := parameter_patterns(names, options):
            add({"sparsity": value, **given, "targets": targets})


def _initial(options: Options) -> dict[str, Any]:
    value = options.take("init_sparsity", 0.0)
    if value == "__FROM_PARAM__":
        options.leave_out(
            "init_sparsity",
            value,
            "a schedule starts at a number here; set initial_sparsity, and lock the zeros with a PatternLock before it",
        )
        return {}
    if (initial := number(value)) is None or not 0 <= initial < 1:
        options.leave_out("init_sparsity", value, "it must be a number in [0, 1); 0 is taken")
        return {}
    return {"initial_sparsity": initial} if initial else {}


def _course(options: Options) -> dict[str, Any]:
    course = options.take("inter_func", "cubic")
    if course not in ("linear", "cubic"):
        options.leave_out("inter_func", course, _NO_SCHEDULE)
    return {"schedule": "linear"} if course == "linear" else {}


def _pattern(options: Options) -> tuple[str | None, bool]:
    """The pattern, None for the default; and whether there is one like it."""
    given = options.take("mask_type", "unstructured")
    if given == "unstructured":
        return None, True
    if given in ("block", "block4"):
        return "1x4", True
    if isinstance(given, list) and len(given) == 2 and all(isinstance(side, int) and side > 0 for side in given):
        return f"{given[0]}x{given[1]}", True
    if isinstance(given, str) and ":" in given:
        return given, True
    options.leave_out("mask_type", given, "the modifier is left out; StructuredPruning removes heads and neurons")
    return None, False


def _true(value: Any) -> bool:
    return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)
