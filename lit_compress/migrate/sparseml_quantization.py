"""SparseML's quantization modifier, in its older and its newer form, as quantization-aware training."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_compress.migrate.draft import Draft, Options, duration
from lit_compress.migrate.expressions import number
from lit_compress.migrate.sparseml_names import module_patterns

__all__ = ["quantization"]

# Options of the older form alone; `submodules` is what SparseML itself tells the two apart by.
_OLDER = ("submodules", "quantize_linear_activations", "quantize_embeddings", "activation_bits", "weight_bits")
_NO_EFFECT = {
    "freeze_bn_stats_epoch": "these encoders have no batch normalisation",
    "exclude_batchnorm": "these encoders have no batch normalisation",
    "model_fuse_fn_name": "nothing is fused before the training here",
    "model_fuse_fn_kwargs": "nothing is fused before the training here",
    "num_calibration_steps": "ranges are those of the training itself, from the start of quantization on",
    "strict": "a pattern that matches nothing is always an error here",
}
_NEVER_QUANTIZED = ("LayerNorm", "Tanh", "Softmax", "GELU", "GELUActivation", "ReLU", "Dropout", "BatchNorm1d")
_ATTENTION = (
    "the products inside attention are quantized, as in SparseML's BERT and DistilBERT; it left those of other "
    "families alone: set attention to none for them"
)
_SCHEMES = {"default": False, "deepsparse": False, "tensorrt": True}


def quantization(options: Options, draft: Draft) -> None:
    """``QuantizationModifier``."""
    start = max(options.numeric("start_epoch", 0), 0)
    draft.lasts(start)
    freeze = options.numeric("disable_quantization_observer_epoch", -1)
    end = options.take("end_epoch", -1)
    if number(end) not in (-1, None):
        options.leave_out("end_epoch", end, "quantization stays on to the end")
    given: dict[str, Any] = {"start": duration(start)}
    if freeze > 0:
        draft.lasts(freeze)
        given["freeze_observers"] = duration(freeze)
    for name, reason in _NO_EFFECT.items():
        options.drop(reason, name)
    given |= (_older if any(name in options for name in _OLDER) else _newer)(options)
    if "freeze_observers" not in given:
        given["freeze_observers"] = None  # never, which is not the default
    draft.compression.append({"class_path": "QuantAwareTraining", "init_args": given})


def _older(options: Options) -> dict[str, Any]:
    excluded = _as_list(options.take("exclude_module_types"))
    submodules = _as_list(options.take("submodules")) or [""]
    tables = [name for name in submodules if _holds_tables(str(name))]
    linears = [name for name in submodules if not str(name).endswith("embeddings")]
    given: dict[str, Any] = {"per_channel": False, "activations": "uint8"}
    given |= {"targets": module_patterns(linears) if "" not in submodules else ["*"]}
    if _bits(options, "activation_bits") != 8:
        options.change("activation_bits", "activations have 8 bits here")
    if (bits := _bits(options, "weight_bits")) != 8:
        given["weight_bits"] = bits
    embeddings = options.take("quantize_embeddings", True)
    if embeddings and tables and "Embedding" not in excluded:
        given["embeddings"] = "uint8"
    if options.take("quantize_linear_activations", True):
        given["outputs"] = ["*"]
    if options.take("quantize_embedding_activations", True) and tables:
        options.leave_out("quantize_embedding_activations", True, "outputs of embedding tables stay as they are")
    if options.take("tensorrt", False):
        given["activations"] = "int8"
    if options.take("reduce_range", False):
        options.leave_out("reduce_range", True, "integers have their full range")
    return given | _attention(options, excluded, any("encoder" in str(n) or _holds_tables(str(n)) for n in linears))


def _newer(options: Options) -> dict[str, Any]:
    ignored = _as_list(options.take("ignore")) + _as_list(options.take("exclude_module_types"))
    scheme = options.take("scheme", options.take("default_scheme", "default"))
    if isinstance(scheme, str):
        if scheme not in _SCHEMES:
            options.leave_out("scheme", scheme, "it is none of SparseML's; its default is taken")
        scheme = {"input_activations": {"symmetric": _SCHEMES.get(scheme, False)}}
    given: dict[str, Any] = {"targets": ["*"], "per_channel": False} | _scheme(options, scheme or {})
    overrides = dict(options.take("scheme_overrides") or {})
    given |= _embeddings(options, overrides.pop("Embedding", None), ignored)
    for name, value in overrides.items():
        options.leave_out(f"scheme_overrides.{name}", value, "give these modules a QuantAwareTraining of their own")
    modules = [name for name in ignored if not _is_type(name)]
    if modules:
        given["ignore"] = module_patterns(modules)
        options.change("ignore", "a name that is not a linear here is an error in fit; leave it out then")
    return given | _attention(options, ignored, True)


def _scheme(options: Options, scheme: Mapping[str, Any]) -> dict[str, Any]:
    weights = _arguments(scheme, "weights", symmetric=True)
    inputs, outputs = _arguments(scheme, "input_activations"), _arguments(scheme, "output_activations", None)
    given: dict[str, Any] = {}
    if weights is None:
        options.leave_out("scheme.weights", None, "weights are always quantized; int8 is taken")
        weights = {"symmetric": True}
    if not weights.get("symmetric", False):
        options.leave_out("scheme.weights.symmetric", False, "weights are symmetric here, so that 0 stays 0")
    if weights.get("strategy") == "channel":
        given["per_channel"] = True
    if (bits := int(number(weights.get("num_bits", 8)) or 8)) != 8:
        given["weight_bits"] = bits
    given["activations"] = "none" if inputs is None else "int8" if inputs.get("symmetric") else "uint8"
    if outputs is not None:
        given["outputs"] = ["*"]
        if outputs.get("symmetric"):
            options.leave_out("scheme.output_activations.symmetric", True, "outputs are affine uint8 here")
    _check_tensors(options, {"input_activations": inputs, "output_activations": outputs, "weights": weights})
    return given


def _check_tensors(options: Options, tensors: Mapping[str, Mapping[str, Any] | None]) -> None:
    for part, arguments in tensors.items():
        rest = arguments or {}
        if part != "weights" and rest.get("num_bits", 8) != 8:
            options.leave_out(f"scheme.{part}.num_bits", rest["num_bits"], "activations have 8 bits here")
        if part != "weights" and rest.get("strategy", "tensor") != "tensor":
            options.leave_out(f"scheme.{part}.strategy", rest["strategy"], "activations have one scale per tensor")
        if rest.get("kwargs"):
            options.leave_out(f"scheme.{part}.kwargs", rest["kwargs"], "observers have no further options here")


def _embeddings(options: Options, override: Any, ignored: Sequence[str]) -> dict[str, Any]:
    if "Embedding" in ignored:
        return {}
    if override is None:
        # SparseML's scheme is for linears and tables alike, unless tables have one of their own.
        options.change("scheme", "embedding tables, which the scheme is for too, are affine uint8 here")
        return {"embeddings": "uint8"}
    weights = override.get("weights", {}) if isinstance(override, Mapping) else {}
    if isinstance(weights, Mapping) and weights.get("symmetric"):
        options.change("scheme_overrides.Embedding", "a symmetric table is int8 with one scale per row here")
        return {"embeddings": "int8"}
    return {"embeddings": "uint8"}


def _arguments(scheme: Mapping[str, Any], name: str, default: Any = "", symmetric: bool = False) -> Any:
    """Options of one tensor of a scheme: a mapping, or None for not at all."""
    value = scheme.get(name, {"symmetric": symmetric} if default == "" else default)
    return None if value in (None, "null", "None") else dict(value)


def _attention(options: Options, excluded: Sequence[str], inside: bool) -> dict[str, Any]:
    excluded_products = {"QATMatMul", "MatMulLeftInput_QK", "MatMulRightInput_QK"} & set(excluded)
    unknown = [n for n in excluded if _is_type(n) and n not in (*_NEVER_QUANTIZED, "Embedding", *excluded_products)]
    for name in unknown:
        options.leave_out("exclude_module_types or ignore", name, "modules are chosen by their names: targets, ignore")
    if not inside or excluded_products:
        return {}
    options.draft.changed.append(f"{options.owner}: {_ATTENTION}")
    return {"attention": "all"}


def _is_type(name: str) -> bool:
    return re.fullmatch(r"[A-Z]\w*", name) is not None


def _holds_tables(submodule: str) -> bool:
    """Whether embeddings are inside: they themselves, or a whole encoder without a dot in its name."""
    return (
        submodule == "" or submodule.endswith("embeddings") or submodule in ("bert", "roberta", "distilbert", "model")
    )


def _bits(options: Options, name: str) -> int:
    return int(options.numeric(name, 8))


def _as_list(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else [value] if isinstance(value, str) else []
