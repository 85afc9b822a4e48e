"""What each layer has become, as a dict of JSON types, and the way back.

The manifest travels in every checkpoint. With it a plain model gets the structure that a state dict needs, before
loading, without the strategies that made it.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn import quantizers
from lit_compress.nn.compressible import CompressibleLinear
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.nn.surgery import compressible_layers, make_compressible

__all__ = ["Manifest", "describe", "part_names", "rebuild"]

Manifest = dict[str, dict[str, dict[str, Any]]]

_SLOTS = ("weight_quantizer", "input_quantizer")
_KINDS = {name: getattr(quantizers, name) for name in quantizers.__all__ if name != "FakeQuantizer"}


def describe(model: nn.Module) -> Manifest:
    """Kind of part to module name to its description, for example ``{"linears": {"0.query": {"mask": True, ...}}}``."""
    described = {kind: describe_part(model) for kind, (describe_part, _) in _PARTS.items()}
    return {kind: entries for kind, entries in described.items() if entries}


def rebuild(model: nn.Module, manifest: Manifest) -> None:
    """Give ``model`` the structure of the manifest, in place; applying it twice changes nothing more.

    Raises:
        UserError: the manifest names a part that the model does not have, or a kind that does not exist.

    """
    if unknown := [kind for kind in manifest if kind not in _PARTS]:
        raise UserError(f"checkpoint: unknown kind of compression {unknown[0]!r}; known are {', '.join(_PARTS)}")
    for kind, (_, rebuild_part) in _PARTS.items():
        rebuild_part(model, manifest.get(kind, {}))


def part_names(manifest: Manifest) -> set[tuple[str, str]]:
    """Every ``(kind, name)`` of a manifest."""
    return {(kind, name) for kind, entries in manifest.items() for name in entries}


def _describe_linears(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``{"mask": bool, "weight_quantizer": {...} | None, "input_quantizer": {...} | None}`` by layer.

    A layer whose mask is learned also has ``"mask_scores": True``.
    """
    return {
        name: {"mask": layer.weight_mask is not None}
        | {slot: _describe_quantizer(getattr(layer, slot)) for slot in _SLOTS}
        | ({"mask_scores": True} if layer.mask_scores is not None else {})
        for name, layer in compressible_layers(model)
    }


def _rebuild_linears(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    known = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if missing := [name for name in entries if name not in known]:
        raise UserError(f"checkpoint: its manifest names {missing[0]!r}, which is no linear layer of this model")
    layers = make_compressible(model, list(entries))
    for name, entry in entries.items():
        if entry["mask"]:
            layers[name].add_mask()
        if entry.get("mask_scores"):
            layers[name].add_mask_scores()
        for slot in _SLOTS:
            _rebuild_quantizer(layers[name], slot, entry[slot])


def _describe_quantizer(quantizer: FakeQuantizer | None) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    state = {"enabled": quantizer.enabled, "observing": quantizer.observing}
    return {"kind": type(quantizer).__name__, "spec": quantizer.spec()} | state


def _rebuild_quantizer(layer: CompressibleLinear, slot: str, entry: dict[str, Any] | None) -> None:
    if entry is None:
        return
    if entry["kind"] not in _KINDS:
        raise UserError(f"checkpoint: unknown quantizer {entry['kind']!r}; known are {', '.join(_KINDS)}")
    quantizer = getattr(layer, slot)
    if quantizer is None or (type(quantizer).__name__, quantizer.spec()) != (entry["kind"], entry["spec"]):
        quantizer = _KINDS[entry["kind"]](**entry["spec"]).to(layer.weight.device)
        setattr(layer, slot, quantizer.train(layer.training))
    quantizer.enabled, quantizer.observing = entry["enabled"], entry["observing"]


# What a model can be made of beside plain modules: how to describe the parts of a kind, and how to install them. Kinds
# that replace modules come before kinds that only add to them.
_PARTS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module, Any], None]]] = {
    "linears": (_describe_linears, _rebuild_linears),
}
