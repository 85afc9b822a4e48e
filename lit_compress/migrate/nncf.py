"""An NNCF configuration of joint pruning, quantization and distillation (JPQD, NNCF 2.x) as a draft."""

import math
from collections.abc import Mapping
from typing import Any

from lit_compress.migrate.draft import Draft, Options, duration

__all__ = ["from_nncf", "is_nncf"]

_ALGORITHMS = ("movement_sparsity", "quantization", "knowledge_distillation")
_GRAPH = "it describes the traced graph, which is not needed here"
# NNCF's default of the factor that each layer's penalty has before the mean is taken.
_LAYER_FACTOR = 0.5
_NORMS = ("LayerNorm", "Embedding", "embedding")


def is_nncf(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file looks like NNCF's."""
    return "compression" in content or content.get("algorithm") in _ALGORITHMS


def from_nncf(content: Mapping[str, Any], draft: Draft) -> None:
    """Fill a draft from a configuration with ``compression``, or from one algorithm alone."""
    top = Options("config", content if "compression" in content else {"compression": [content]}, draft)
    entries = top.take("compression")
    top.drop(_GRAPH, "input_info", "target_device", "hw_config_type", "log_dir", "$schema", "save_onnx_model")
    top.finish()
    for entry in entries if isinstance(entries, list) else [entries]:
        entry = entry if isinstance(entry, Mapping) else {"algorithm": entry}
        name = str(entry.get("algorithm"))
        options = Options(name, {key: value for key, value in entry.items() if key != "algorithm"}, draft)
        if name == "movement_sparsity":
            _movement(options, draft)
        elif name == "quantization":
            _quantization(options, draft)
        elif name == "knowledge_distillation":
            _distillation(options, draft)
        else:
            options.leave_out_all("this package has no translation of this algorithm")
        options.finish()
    draft.left_out.append(
        "learning rate, batch size and length of the training: they were options of the training script; "
        "set model.optimization, data.batch_size and trainer.max_epochs"
    )


def _movement(options: Options, draft: Draft) -> None:
    params = options.inner("params")
    start, end = params.numeric("warmup_start_epoch", 0), params.numeric("warmup_end_epoch", 1)
    factor = params.numeric("importance_regularization_factor", 0.0)
    # A score above x is a sigmoid above sigmoid(x).
    threshold = 1 / (1 + math.exp(-min(max(params.numeric("final_importance_threshold", 0.0), -30), 30)))
    params.drop("the threshold starts at a sigmoid of 0, which prunes nothing", "init_importance_threshold")
    params.drop("steps are counted here", "steps_per_epoch", "update_per_optimizer_step")
    if params.take("power", 3) not in (3, 3.0):
        params.change("power", "the threshold grows with the third power here")
    params.drop("there is one course of the threshold", "schedule")
    if params.take("enable_structured_masking", True):
        params.leave_out(
            "enable_structured_masking",
            True,
            "heads and neurons that movement empties are not removed; StructuredPruning removes them by importance",
        )
    params.finish()
    for structure in options.listed("sparse_structure_by_scopes"):
        mode = structure.get("mode") if isinstance(structure, Mapping) else structure
        if mode != "fine":
            options.leave_out("sparse_structure_by_scopes", structure, "every weight has a score of its own here")
    ignored = _scopes(options, "ignored_scopes")
    if "compression_lr_multiplier" in options:
        options.drop("set model.optimization.score_learning_rate, an absolute rate", "compression_lr_multiplier")
    draft.lasts(end)
    draft.add(
        "MovementPruning",
        method="soft",
        threshold=round(threshold, 6),
        start=duration(start),
        end=duration(end),
        freeze_masks=duration(end),
        targets=_scopes(options, "target_scopes") or None,
        ignore=ignored or None,
    )
    weight = factor * _LAYER_FACTOR
    draft.penalties["scores"] = {"class_path": "ScorePenalty", "init_args": {"weight": weight}}
    draft.changed.append(
        f"movement_sparsity.params.importance_regularization_factor: {factor:g}; as the weight {weight:g} of a mean "
        "over single weights, which NNCF multiplies by the size of a block: look for the right one again"
    )
    draft.changed.append(
        "movement_sparsity: scores have a learning rate of their own here, model.optimization.score_learning_rate"
    )


def _quantization(options: Options, draft: Draft) -> None:
    preset = options.take("preset", "performance")
    given: dict[str, Any] = {"start": "0 epochs", "freeze_observers": None, "targets": ["*"], "embeddings": "uint8"}
    given["activations"] = "uint8" if preset == "mixed" else "int8"
    if preset not in ("mixed", "performance"):
        options.leave_out("preset", preset, "mixed (affine activations) and performance (symmetric ones) are known")
    options.drop("ranges are those of the training itself", "initializer")
    options.drop("integers have their full range, as with disable", "overflow_fix")
    options.drop("quantizers are chosen for everything alike", "scope_overrides")
    for part in ("weights", "activations"):
        own = options.inner(part)
        _tensors(own, part, given)
        own.finish()
    if ignored := _scopes(options, "ignored_scopes"):
        given["ignore"] = ignored
    given["attention"] = "inputs"
    options.draft.changed.append(
        "quantization: it is on from the first step; NNCF's int8 embeddings and attention operands are "
        "embeddings: uint8 and attention: inputs here"
    )
    draft.compression.append({"class_path": "QuantAwareTraining", "init_args": given})


def _tensors(options: Options, part: str, given: dict[str, Any]) -> None:
    bits, mode = options.take("bits", 8), options.take("mode")
    per_channel = options.take("per_channel")
    if part == "weights":
        if isinstance(bits, int) and bits != 8:
            given["weight_bits"] = bits
        if mode == "asymmetric":
            options.leave_out("mode", mode, "weights are symmetric here, so that 0 stays 0")
        if per_channel is False:
            given["per_channel"] = False
        return
    if bits != 8:
        options.leave_out("bits", bits, "activations have 8 bits here")
    if mode in ("symmetric", "asymmetric"):
        given["activations"] = "int8" if mode == "symmetric" else "uint8"
    if per_channel:
        options.leave_out("per_channel", True, "activations have one scale per tensor")


def _distillation(options: Options, draft: Draft) -> None:
    kind = options.take("type", "softmax")
    if kind != "softmax":
        options.leave_out("type", kind, "the divergence of softened logits is taken")
    scale = options.numeric("scale", 1.0)
    if scale < 0:
        options.leave_out("scale", scale, "a weight is 0 or more; 1 is taken")
        scale = 1.0
    hardness = scale / (1 + scale)
    options.change("scale", f"{scale:g}; as hardness {hardness:g}: label and teacher keep their ratio, the sum is 1")
    term = {"hardness": round(hardness, 6), "temperature": options.numeric("temperature", 1.0)}
    draft.distillation["kd"] = {"class_path": "LogitDistillation", "init_args": term}


def _scopes(options: Options, name: str) -> list[str]:
    """Patterns for scopes of the traced graph, those that name a linear by its module."""
    patterns = []
    for scope in options.listed(name):
        text = str(scope).removeprefix("{re}").strip(".*")
        if any(norm in text for norm in _NORMS):
            continue  # neither norms nor tables are linears
        if text.isidentifier() and text.islower():
            patterns.append(f"*{text}*")
        else:
            options.leave_out(name, scope, "a place in NNCF's graph; name the modules in targets or ignore")
    return patterns
