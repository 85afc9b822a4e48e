"""SparseML's modifiers of the training itself: its length, weight decay, frozen parameters and distillation."""

from typing import Any

from lit_compress.migrate.draft import Draft, Options
from lit_compress.migrate.sparseml_names import layer_index, parameter_patterns

__all__ = ["distillation", "epochs", "features", "trainable", "weight_decay"]

_WHOLE_RUN = "a term is part of the loss from the first step to the last"
_HEADS = ({"start_logits", "end_logits"}, {"logits"})


def epochs(options: Options, draft: Draft) -> None:
    """``EpochRangeModifier``."""
    start, end = options.numeric("start_epoch", 0), options.numeric("end_epoch", 0)
    if start > 0:
        options.change("start_epoch", f"{start:g}; a run starts at 0 and its epochs count from there")
    if end % 1:
        options.change("end_epoch", f"{end:g}; trainer.max_epochs is a whole number, the next one up")
    draft.lasts(end)


def weight_decay(options: Options, draft: Draft) -> None:
    """``SetWeightDecayModifier``."""
    start = options.numeric("start_epoch", 0)
    if start > 0:
        options.change("start_epoch", f"{start:g}; weight decay is the same in the whole run")
    options.drop("it only concerns what is logged", "constant_logging")
    options.drop("the decay is that of all matrices here", "param_groups")
    draft.optimization["weight_decay"] = options.numeric("weight_decay", 0.0)


def trainable(options: Options, draft: Draft) -> None:
    """``TrainableParamsModifier``: embeddings can be frozen here."""
    params = options.take("params", [])
    names = [params] if isinstance(params, str) else list(params)
    options.drop("a pattern that matches nothing is always an error here", "params_strict")
    if (start := options.numeric("start_epoch", -1)) > 0:
        options.change("start_epoch", f"{start:g}; tables are frozen from the first step")
    if (end := options.numeric("end_epoch", -1)) > 0:
        options.change("end_epoch", f"{end:g}; tables stay frozen to the end")
        draft.lasts(end)
    if options.take("trainable", True):
        options.leave_out("trainable", True, "everything learns that no strategy freezes")
        return
    tables = [name for name in names if "embedding" in str(name).lower()]
    for name in names:
        if name not in tables:
            options.leave_out("params", name, "only embedding tables can be frozen")
        elif "LayerNorm" in str(name):
            tables.remove(name)
            options.leave_out("params", name, "the normalisation of the embeddings learns here")
    if tables and (targets := parameter_patterns(tables, options)):
        draft.add("FreezeEmbeddings", targets=targets)


def distillation(options: Options, draft: Draft) -> None:
    """``DistillationModifier``: softened logits."""
    if "kd" in draft.distillation:
        options.leave_out_all("there is one term on the logits for the whole run here, that of the first modifier")
        return
    term: dict[str, Any] = {
        "hardness": options.numeric("hardness", 0.5),
        "temperature": options.numeric("temperature", 2.0),
    }
    if draft.task not in ("classification", "regression"):
        term["tokens"] = "all"  # SparseML counts padding
    _whole_run(options, draft)
    keys = options.take("distill_output_keys") or []
    keys = {keys} if isinstance(keys, str) else set(keys)
    if keys and keys not in _HEADS:
        options.leave_out("distill_output_keys", sorted(keys), "the logits of the head are distilled, all of them")
    options.drop("a teacher reads what the student reads", "teacher_input_keys")
    draft.distillation["kd"] = {"class_path": "LogitDistillation", "init_args": term}


def features(options: Options, draft: Draft) -> None:
    """``PerLayerDistillationModifier``: here between whole transformer layers."""
    ours, theirs = options.take("student_layer_names"), options.take("teacher_layer_names")
    ours, theirs = ours or theirs or [], theirs or ours or []
    pairs = {(_output(s), _output(t)): (s, t) for s, t in zip(ours, theirs, strict=False)}
    known = {s: t for s, t in pairs if s is not None and t is not None}
    for (s, t), names in pairs.items():
        if s is None or t is None:
            options.leave_out("student_layer_names", f"{names[0]} and {names[1]}", "no outputs of whole layers")
    _whole_run(options, draft)
    options.drop("the loss is computed at every step", "update_frequency")
    options.drop("the divisor is never 0 here", "epsilon")
    if not known:
        options.leave_out_all("it names no transformer layers; HiddenDistillation compares those")
        return
    term = {
        "weight": options.numeric("gain", 1.5),
        "layer_map": known,
        "normalize": bool(options.take("normalize", True)),
        "projection": bool(options.take("project_features", True)),
        "reduction": "sum",
        "mask_padding": False,
    }
    if term["projection"] and len(known) > 1:
        options.change("project_features", "all pairs share one projection here")
    draft.distillation["hidden"] = {"class_path": "HiddenDistillation", "init_args": term}


def _whole_run(options: Options, draft: Draft) -> None:
    start, end = options.numeric("start_epoch", -1), options.numeric("end_epoch", -1)
    if start > 0:
        options.change("start_epoch", f"{start:g}; {_WHOLE_RUN}")
    if end > 0:
        draft.lasts(end)
        draft.ends.append((options, end))


def _output(name: object) -> int | None:
    """Position of a layer's output among the hidden states, of which 0 is the embeddings'."""
    index = layer_index(str(name).removesuffix(".LayerNorm").removesuffix(".output"))
    return None if index is None else index + 1
