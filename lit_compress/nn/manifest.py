"""What each layer has become, as a dict of JSON types, and the way back.

The manifest travels in every checkpoint. With it a plain model gets the structure that a state dict needs, before
loading, without the strategies that made it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lit_compress.errors import UserError
from lit_compress.nn import quantizers
from lit_compress.nn.attention import ATTENTION_SLOTS, attention_quantizers, quantize_attention
from lit_compress.nn.factorized import FactorizedEmbedding, factorized_embeddings
from lit_compress.nn.gates import add_layer_gate, gated_layers
from lit_compress.nn.quantizers import FakeQuantizer
from lit_compress.nn.replace_layers import (
    compressible_layers,
    compressible_tables,
    make_compressible,
    make_tables_compressible,
)

__all__ = ["Manifest", "describe", "part_names", "rebuild"]

Manifest = dict[str, dict[str, dict[str, Any]]]

_LINEAR_SLOTS = ("weight_quantizer", "input_quantizer", "output_quantizer")
_SCORES = ("mask_scores", "weight_scores")
_TABLE_SLOTS = ("weight_quantizer",)
_MOST_BITS = 16  # of quantized integers
_KINDS = {
    name: kind
    for name, kind in vars(quantizers).items()
    if isinstance(kind, type) and issubclass(kind, FakeQuantizer) and kind is not FakeQuantizer
}


def describe(model: nn.Module) -> Manifest:
    """Kind of part to module name to its description, for example ``{"linears": {"0.query": {"mask": True, ...}}}``."""
    described = {kind: describe_part(model) for kind, (describe_part, _) in _PARTS.items()}
    return {kind: entries for kind, entries in described.items() if entries}


def rebuild(model: nn.Module, manifest: Manifest) -> None:
    """Give ``model`` the structure of the manifest, in place; applying it twice changes nothing more.

    Raises:
        UserError: the manifest is damaged, or names a part, a kind or a size that the model does not have; this is
            said before anything of that size is made.

    """
    if not isinstance(manifest, dict):
        raise UserError(f"checkpoint: its manifest is a {type(manifest).__name__} and must be a mapping")
    if unknown := [kind for kind in manifest if kind not in _PARTS]:
        raise UserError(f"checkpoint: unknown kind of compression {unknown[0]!r}; known are {', '.join(_PARTS)}")
    for kind, (_, rebuild_part) in _PARTS.items():
        try:
            rebuild_part(model, manifest.get(kind, {}))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise UserError(f"checkpoint: its manifest of {kind} is damaged: {reason}") from error


def part_names(manifest: Manifest) -> set[tuple[str, str]]:
    """Every ``(kind, name)`` of a manifest."""
    return {(kind, name) for kind, entries in manifest.items() for name in entries}


def _describe_linears(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``{"mask": bool, "weight_quantizer": {...} | None, ...}``, a quantizer per slot, by layer.

    A layer whose inputs are divided into removable groups also has ``"groups"``, their number; one whose mask is
    learned ``"mask_scores": True``, one whose importance is collected ``"weight_scores": True``.
    """
    return {
        name: {"mask": layer.weight_mask is not None}
        | _describe_slots(layer, _LINEAR_SLOTS)
        | ({"groups": len(layer.kept_groups)} if layer.kept_groups is not None else {})
        | {part: True for part in _SCORES if getattr(layer, part) is not None}
        for name, layer in compressible_layers(model)
    }


def _rebuild_linears(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    _check_names(model, entries, nn.Linear, "linear layer")
    layers = make_compressible(model, list(entries))
    for name, entry in entries.items():
        if _flag(name, entry, "mask"):
            layers[name].add_mask()
        for part in _SCORES:
            if part in entry and _flag(name, entry, part):
                getattr(layers[name], f"add_{part}")()
        if "groups" in entry:
            _check_count(name, entry, "groups", layers[name].in_features)
            layers[name].add_groups(entry["groups"])
        for slot in _LINEAR_SLOTS:
            _rebuild_quantizer(layers[name], slot, entry.get(slot), layers[name].weight.device)


def _describe_tables(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``{"weight_quantizer": {...} | None}`` by embedding table."""
    return {name: _describe_slots(table, _TABLE_SLOTS) for name, table in compressible_tables(model)}


def _rebuild_tables(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    _check_names(model, entries, nn.Embedding, "embedding table")
    for name, table in make_tables_compressible(model, list(entries), "checkpoint").items():
        for slot in _TABLE_SLOTS:
            _rebuild_quantizer(table, slot, entries[name].get(slot), table.weight.device)


def _describe_attention(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``{"query": {...} | None, ...}``, a quantizer per slot, by attention module."""
    return {name: _describe_slots(owner, ATTENTION_SLOTS) for name, owner in attention_quantizers(model)}


def _rebuild_attention(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    _check_names(model, entries, nn.Module, "attention module")
    device = next(model.parameters()).device
    for name, owner in quantize_attention(model, list(entries)).items():
        for slot in ATTENTION_SLOTS:
            _rebuild_quantizer(owner, slot, entries[name].get(slot), device)


def _describe_gates(model: nn.Module) -> dict[str, dict[str, Any]]:
    """An empty description by layer: whether its gate is open is a value, in the state dict."""
    return {name: {} for name, _ in gated_layers(model)}


def _rebuild_gates(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    _check_names(model, entries, nn.Module, "layer")
    for name in entries:
        add_layer_gate(model.get_submodule(name))


def _check_names(model: nn.Module, names: Iterable[str], kind: type[nn.Module], what: str) -> None:
    known = {name for name, module in model.named_modules() if isinstance(module, kind)}
    if missing := [name for name in names if name not in known]:
        raise UserError(f"checkpoint: its manifest names {missing[0]!r}, which is not among the {what}s of this model")


def _describe_slots(owner: nn.Module, slots: tuple[str, ...]) -> dict[str, Any]:
    return {slot: _describe_quantizer(getattr(owner, slot)) for slot in slots}


def _describe_factorized(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``{"rank": columns of the factors, "mask": bool}`` by embedding table."""
    return {
        name: {"rank": table.rank, "mask": table.rank_mask is not None} for name, table in factorized_embeddings(model)
    }


def _rebuild_factorized(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    _check_names(model, entries, nn.Embedding, "embedding table")
    for name, entry in entries.items():
        table = model.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        _check_count(name, entry, "rank", min(table.num_embeddings, table.embedding_dim))
        if not isinstance(table, FactorizedEmbedding) or table.rank != entry["rank"]:
            table = FactorizedEmbedding.empty_like(table, entry["rank"])
            model.set_submodule(name, table)
        if _flag(name, entry, "mask"):
            table.add_rank_mask()


def _describe_quantizer(quantizer: FakeQuantizer | None) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    state = {"enabled": quantizer.enabled, "observing": quantizer.observing}
    return {"kind": type(quantizer).__name__, "spec": quantizer.spec()} | state


def _rebuild_quantizer(owner: nn.Module, slot: str, entry: dict[str, Any] | None, device: torch.device) -> None:
    if entry is None:
        return
    if entry["kind"] not in _KINDS:
        raise UserError(f"checkpoint: unknown quantizer {entry['kind']!r}; known are {', '.join(_KINDS)}")
    spec = entry["spec"]
    if "bits" in spec:
        _check_count(slot, spec, "bits", _MOST_BITS)
    for size in {"out_features", "rows"} & set(spec):
        _check_count(slot, spec, size, owner.weight.shape[0])  # type: ignore[union-attr]
    quantizer = getattr(owner, slot)
    if quantizer is None or (type(quantizer).__name__, quantizer.spec()) != (entry["kind"], entry["spec"]):
        quantizer = _KINDS[entry["kind"]](**entry["spec"]).to(device)
        setattr(owner, slot, quantizer.train(owner.training))
    quantizer.enabled, quantizer.observing = _flag(slot, entry, "enabled"), _flag(slot, entry, "observing")


def _flag(name: str, entry: dict[str, Any], key: str) -> bool:
    if not isinstance(entry[key], bool):
        raise UserError(f"checkpoint: its manifest says {key} {entry[key]!r} of {name!r} and must say true or false")
    return entry[key]


def _check_count(name: str, entry: dict[str, Any], key: str, most: int) -> None:
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UserError(f"checkpoint: its manifest says {key} {value!r} of {name!r} and may say 1 to {most}")


# What a model can be made of in addition to plain modules: how to describe the parts of a kind, and how to install
# them. Kinds that replace modules come before kinds that only add to them.
_PARTS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module, Any], None]]] = {
    "factorized": (_describe_factorized, _rebuild_factorized),
    "linears": (_describe_linears, _rebuild_linears),
    "embeddings": (_describe_tables, _rebuild_tables),
    "attention": (_describe_attention, _rebuild_attention),
    "gates": (_describe_gates, _rebuild_gates),
}
