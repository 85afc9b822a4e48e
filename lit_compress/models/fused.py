"""Encoders whose packed layers run on unpadded tokens, with fused operators.

Fusing changes the classes of the encoder and of its layers and nothing else: every module keeps its name and place, so
that files, hooks and everything around the encoder (embeddings, pooler, head) stay what Transformers made them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lit_compress.models.fused_deberta import FusedDebertaEncoder, deberta_steps, why_not_deberta
from lit_compress.models.fused_encoder import FusedEncoder, FusedLayer
from lit_compress.models.fused_layer import LayerSteps
from lit_compress.models.fused_modernbert import FusedModernBert, modernbert_steps
from lit_compress.models.fused_mpnet import FusedMPNetEncoder, why_no_buckets
from lit_compress.models.layout import LAYOUTS, Layout, encoder_layers, family_of
from lit_compress.nn.packed import PackedLinear
from lit_compress.nn.packed_join import join
from lit_compress.ops.checks import Activation

__all__ = ["FusedEncoder", "FusedLayer", "fuse", "fused_layers", "unfuse", "unfused_reasons", "why_never_fused"]

# Name of the function in a configuration -> ours. All others leave a layer plain.
_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}

# Family -> what comes before the class of its encoder, and the steps of a layer, where they are not those of BERT.
_ENCODERS: Mapping[str, type[FusedEncoder]] = {
    "mpnet": FusedMPNetEncoder,
    "modernbert": FusedModernBert,
    "deberta-v2": FusedDebertaEncoder,
}
_STEPS: Mapping[str, Callable[[Any, Any], dict[str, Any]]] = {
    "modernbert": modernbert_steps,
    "deberta-v2": deberta_steps,
}
_WHY_NOT: Mapping[str, Callable[[Any], str | None]] = {"mpnet": why_no_buckets, "deberta-v2": why_not_deberta}


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """Let the layers whose linears are packed run on unpadded tokens, in place; the others stay as they are.

    The hidden states of padding become 0. Masks between single tokens and attention probabilities are refused. A model
    of a family that is not served is left alone; :func:`unfused_reasons` tells why. Applying it twice changes nothing.

    Returns:
        The model.

    """
    if why_never_fused(model) is not None:
        return model
    layout = LAYOUTS[family_of(model)]
    for layer in encoder_layers(model):
        if not isinstance(layer, FusedLayer) and _why_layer_plain(layout, layer) is None:
            _fuse_layer(model, layout, layer)
    encoder = model.base_model.get_submodule(layout.layers.rpartition(".")[0])
    if any(fused_layers(model)) and not isinstance(encoder, FusedEncoder):
        encoder.__class__ = _with(_ENCODERS.get(family_of(model), FusedEncoder), type(encoder))
        encoder.start(model.config)  # type: ignore[operator]
    return model


def unfuse(model: PreTrainedModel) -> PreTrainedModel:
    """Undo :func:`fuse`, in place: packed linears one by one inside the code of Transformers, which can do everything.

    Returns:
        The model.

    """
    for module in list(model.modules()):
        if isinstance(module, FusedLayer):
            module.__class__ = type(module).__bases__[1]
            del module.steps, module.projections
        elif isinstance(module, FusedEncoder):
            module.stop()
            module.__class__ = type(module).__bases__[1]
    return model


def fused_layers(model: nn.Module) -> list[FusedLayer]:
    """The layers that run fused, in model order."""
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


def unfused_reasons(model: PreTrainedModel) -> list[str | None]:
    """For each layer of :func:`~lit_compress.models.layout.encoder_layers` the reason why it is not fused, or None."""
    layers = encoder_layers(model)
    if (reason := why_never_fused(model)) is not None:
        return [reason] * len(layers)
    layout = LAYOUTS[family_of(model)]
    return [
        None if isinstance(layer, FusedLayer) else _why_layer_plain(layout, layer) or "fuse(model) was not called"
        for layer in layers
    ]


def why_never_fused(model: PreTrainedModel) -> str | None:
    """Why no layer of a model can be fused, however its linears are packed; None when they can."""
    family, config = family_of(model), model.config
    if family not in LAYOUTS:
        return f"the family {family or type(model).__name__!r} is not in the table of layouts"
    if (reason := LAYOUTS[family].unsupported.get("fused")) is not None:
        return reason
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "a decoder looks at earlier tokens only, or at another sequence"
    if getattr(config, LAYOUTS[family].activation_key) not in _ACTIVATIONS:
        return f"no kernel computes the activation {getattr(config, LAYOUTS[family].activation_key)!r}"
    if family in _WHY_NOT and (reason := _WHY_NOT[family](config)) is not None:
        return reason
    if any(hasattr(module, "_hf_hook") for module in model.base_model.modules()):
        return "it is spread over several devices, or moved there layer by layer"
    return None


def _why_layer_plain(layout: Layout, layer: nn.Module) -> str | None:
    modules = dict(layer.named_modules())
    for name in _linear_names(layout):
        if not isinstance(modules.get(name), PackedLinear):
            return f"{name} is not a packed linear but a {type(modules.get(name)).__name__}"
    projections: Any = [modules[name] for name in _linear_names(layout)[:-3]]
    if len({linear.dtype for linear in projections}) > 1:
        return "query, key and value are packed in different dtypes"
    for name in (layout.attention_norm, layout.feed_forward_norm):
        absent = layout.norms_first and name == layout.attention_norm and type(modules.get(name or "")) is nn.Identity
        if type(modules.get(name or "")) is not nn.LayerNorm and not absent:
            return f"{name} is not a plain LayerNorm"
    sizes = [linear.out_features for linear in projections]
    size = getattr(modules[layout.attention], layout.head_size)
    if len(set(sizes)) > 1 or sum(sizes) % (3 * size):
        return f"query, key and value are not equal numbers of heads of {size}"
    return None


def _linear_names(layout: Layout) -> list[str]:
    """Query, key and value, or the linear of all three, and the three after them, in the order in which they run."""
    together = layout.query_key_value
    projections = [layout.query, layout.key, layout.value] if together is None else [together]
    return [
        name or "" for name in (*projections, layout.attention_output, layout.feed_forward_in, layout.feed_forward_out)
    ]


def _fuse_layer(model: PreTrainedModel, layout: Layout, layer: nn.Module) -> None:
    modules: dict[str, Any] = dict(layer.named_modules())
    *projections, out, up, down = (modules[name] for name in _linear_names(layout))
    size = getattr(modules[layout.attention], layout.head_size)
    qkv, norm = join(projections), modules[layout.attention_norm or ""]
    steps: dict[str, Any] = {"scale": size**-0.5}
    if family_of(model) in _STEPS:
        steps |= _STEPS[family_of(model)](layer, model.config)
    layer.__class__ = _with(FusedLayer, type(layer))
    # Inside a tuple and a dataclass nothing is a module of the layer a second time.
    layer.projections = tuple(projections)  # type: ignore[assignment]
    layer.steps = LayerSteps(  # type: ignore[assignment]
        qkv=qkv,
        heads=qkv.out_features // (3 * size),
        out=out,
        attention_norm=norm if isinstance(norm, nn.LayerNorm) else None,
        up=up,
        activation=_ACTIVATIONS[getattr(model.config, layout.activation_key)],
        down=down,
        feed_forward_norm=modules[layout.feed_forward_norm or ""],
        norms_first=layout.norms_first,
        **steps,
    )
    layer.register_load_state_dict_post_hook(_renew)


def _renew(layer: nn.Module, _: Any) -> None:
    """Join the linears' buffers again, which may be no views of the joined ones."""
    if isinstance(layer, FusedLayer):
        layer.steps = replace(layer.steps, qkv=join(layer.projections))
        for linear in (layer.steps.out, layer.steps.up, layer.steps.down):
            linear.kept_dense_weight = None


@cache
def _with(ours: type[nn.Module], theirs: type[nn.Module]) -> type[nn.Module]:
    """A class that is both; what ``isinstance`` said of ``theirs`` it says of this one."""
    name, module = f"{ours.__name__}_{theirs.__name__}", __name__
    if issubclass(theirs, PreTrainedModel):
        # By these files say which model they hold, and Transformers finds which of its outputs can be asked for.
        name, module = theirs.__name__, theirs.__module__
    return type(name, (ours, theirs), {"__module__": module, "__reduce_ex__": _reduced})


def _reduced(module: nn.Module, _: Any) -> tuple[Any, ...]:
    """As pickle would do it if it found the class, which nobody wrote."""
    return _empty, type(module).__bases__, module.__getstate__()


def _empty(ours: type[nn.Module], theirs: type[nn.Module]) -> nn.Module:
    made = _with(ours, theirs)
    return made.__new__(made)
