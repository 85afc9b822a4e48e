"""Encoders with fewer layers: the modules go and the configuration says so, so that stock Transformers loads them."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.models.heads_and_neurons import require_unpacked
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.models.shapes import shapes_of, update_config
from lit_compress.nn.gates import layer_gate, remove_layer_gate

__all__ = ["depth", "drop_closed_layers", "drop_layers", "kept_layers", "restore_layers"]

# Attribute of a model from which layers were dropped. It lives as long as the object: a saved model is one of its own
# right, and its layers count from 0 again.
_KEPT = "kept_layers"


def depth(model: PreTrainedModel) -> int:
    """Number of layers that a forward pass runs."""
    return getattr(model.config, layout_of(model).layers_key)


def kept_layers(model: nn.Module) -> list[int] | None:
    """0-based indices, in the model as it was loaded, of the layers it still has; None when none was dropped."""
    return getattr(model, _KEPT, None)


def drop_layers(model: PreTrainedModel, keep: Sequence[int], setting: str = "keep") -> None:
    """Keep the given layers and no other, in place; embeddings, pooler and head stay as they are.

    Layers are renumbered, and the configuration says how many there are. ALBERT repeats one stored layer, so there
    only the number of repeats changes. In DeBERTa-v2 models with a convolution it follows what is the first layer now.

    Args:
        model: Hugging Face encoder with any head.
        keep: 0-based indices in ascending order.
        setting: config key named in the error.

    Raises:
        UserError: an index that does not exist or comes twice or out of order, no index at all, or layers that the
            family cannot do without.

    """
    layout, count, keep = layout_of(model), depth(model), list(keep)
    if not keep or keep != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < count:
        raise UserError(f"{setting}: {keep} must be ascending 0-based indices of the {count} layers, at least one")
    if len(keep) == count:
        return
    if shapes_of(model.config) is not None:
        require_unpacked(model)
    if layout.shared:
        # With several groups, which of them runs when follows from the number of layers.
        if keep != list(range(len(keep))) or model.config.num_hidden_groups > 1:
            raise UserError(f"{setting}: {keep} cannot be kept alone: {layout.unsupported['layers']}")
    else:
        if keep[0] > 0 and (reason := layout.unsupported.get("first_layer")):
            raise UserError(f"{setting}: {keep} leaves out layer 0: {reason}")
        _delete(encoder_layers(model), keep)
    _count_anew(model, layout.layers_key, keep)
    if shapes_of(model.config) is not None:
        update_config(model)  # it has shapes of each layer
    before = kept_layers(model) or range(count)
    setattr(model, _KEPT, [before[index] for index in keep])
    if shapes_of(model.config) is not None:
        update_config(model)  # it lists heads and neurons layer by layer


def restore_layers(model: PreTrainedModel, kept: Sequence[int] | None) -> None:
    """Make a model have the layers of a checkpoint; does nothing when it has.

    Args:
        model: as loaded, or with layers dropped already.
        kept: what :func:`kept_layers` said of the model in the checkpoint.

    Raises:
        UserError: other layers were dropped than in the checkpoint.

    """
    ours, theirs = kept_layers(model), list(kept) if kept else None
    if ours == theirs:
        return
    if ours is not None:
        raise UserError(
            f"ckpt_path: the checkpoint has layers {theirs or 'all'} of its source and this run keeps {ours}; "
            "resume with the same compression: it was made with"
        )
    assert theirs is not None
    drop_layers(model, theirs, "ckpt_path")


def drop_closed_layers(model: PreTrainedModel) -> None:
    """Remove the layers whose gate is closed, and all gates, in place; the model computes what it computed before."""
    layers = list(encoder_layers(model))
    gates = [layer_gate(layer) for layer in layers]
    for layer in layers:
        remove_layer_gate(layer)
    drop_layers(model, [index for index, gate in enumerate(gates) if gate is None or bool(gate)], "gates")


def _delete(layers: nn.ModuleList, keep: Sequence[int]) -> None:
    for index in sorted(set(range(len(layers))) - set(keep), reverse=True):
        del layers[index]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]


def _count_anew(model: PreTrainedModel, layers_key: str, keep: Sequence[int]) -> None:
    config: Any = model.config
    if isinstance(types := getattr(config, "layer_types", None), list):
        config.layer_types = [types[index] for index in keep]
    if isinstance(windows := getattr(config, "attention_window", None), list):  # Longformer
        config.attention_window = [windows[index] for index in keep]
    setattr(config, layers_key, len(keep))
    # XLNet and DistilBERT also remember the number in a module.
    for module in model.modules():
        if isinstance(module.__dict__.get(layers_key), int):
            setattr(module, layers_key, len(keep))
