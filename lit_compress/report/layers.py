"""What was done to which layer and matrix, read from the folded model and its manifest."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.functional.masks import sparsity
from lit_compress.models.heads_and_neurons import KINDS, removable_groups
from lit_compress.models.layout import embedding_tables, layer_linears
from lit_compress.nn.factorized import factorized_embeddings
from lit_compress.report.size import tensor_size

__all__ = ["block_sparsity", "describe_layers"]

_BLOCKS = 12  # along each side of a matrix: a row of blocks is a head in models of BERT-base's shape


def describe_layers(model: PreTrainedModel, manifest: Mapping[str, Any], dense: PreTrainedModel | None) -> dict:
    """Entries ``layers``, ``dense_layers``, ``matrices``, ``tables``, ``attention`` and ``blocks`` of report.json.

    A layer has ``{"layer": number, "heads", "neurons", "sparsity", "weights", "inputs"}``, a matrix ``{"name", "layer",
    "matrix", "shape", "dense_shape", "sparsity", "weights", "inputs", "bytes"}``, where weights and inputs say how they
    are quantized; a table the same, with its ``rank`` and ``rows``. ``attention`` names the modules that compute with
    quantized tensors; ``blocks`` has :func:`block_sparsity` of each matrix with a mask. ``dense_shape``,
    ``dense_heads`` and ``dense_neurons`` are None without a dense model.

    Args:
        model: folded.
        manifest: the ``compression.json`` in its folder.
        dense: what it is compared with.

    """
    entries = manifest.get("linears", {})
    linears = _linears(model, entries)
    shapes = {_place(name)[1]: list(linear.weight.shape) for name, linear in _linears(dense, {}).items()}
    matrices = []
    for name, linear in linears.items():
        layer, matrix = _place(name)
        size = tensor_size(linear.weight, entries.get(name))
        matrices.append(
            {
                "name": name,
                "layer": layer,
                "matrix": matrix,
                "shape": list(linear.weight.shape),
                "dense_shape": shapes.get(matrix),
                "sparsity": sparsity(linear.weight),
                "weights": _quantization((entries.get(name) or {}).get("weight_quantizer")),
                "inputs": _quantization((entries.get(name) or {}).get("input_quantizer")),
                "bytes": size.compressed_bytes,
            }
        )
    masked = [name for name, entry in entries.items() if entry["mask"] and name in linears]
    return {
        "layers": _layers(model, dense, matrices),
        "dense_layers": len({_place(name)[0] for name in _linears(dense, {})} - {None}) or None,
        "matrices": matrices,
        "tables": _tables(model, manifest.get("embeddings", {})),
        "attention": [
            name
            for name, slots in manifest.get("attention", {}).items()
            if any(map(_quantization, _all_quantizers(slots)))
        ],
        "blocks": {name: block_sparsity(linears[name].weight) for name in masked},
    }


def block_sparsity(weight: torch.Tensor, most: int = _BLOCKS) -> list[list[float]]:
    """Fraction of zeros in each block of a matrix that is divided into up to ``most`` by ``most``, rounded.

    Args:
        weight: ``(out_features, in_features)``.
        most: blocks along each side; where it does not divide, some have a row or column more than others.

    Example:
        >>> block_sparsity(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]]), most=2)
        [[0.5, 1.0], [0.0, 0.5]]

    """
    zeros = (weight.detach().cpu() == 0).double().numpy()
    for axis in (0, 1):
        length = zeros.shape[axis]
        starts = np.arange(min(most, length)) * length // min(most, length)
        counts = np.diff([*starts, length])
        sums = np.add.reduceat(zeros, starts, axis=axis)
        zeros = sums / (counts[:, None] if axis == 0 else counts)
    return np.round(zeros, 3).tolist()


def _layers(model: PreTrainedModel, dense: PreTrainedModel | None, matrices: list[dict[str, Any]]) -> list[dict]:
    """One entry for each stored layer that has matrices."""
    widths = {kind: _widths(model, kind) for kind in KINDS}
    full = {kind: _widths(dense, kind)[:1] for kind in KINDS}
    rows = []
    for number in dict.fromkeys(matrix["layer"] for matrix in matrices):
        own = [matrix for matrix in matrices if matrix["layer"] == number]
        count = sum(_numel(matrix) for matrix in own)
        row: dict[str, Any] = {"layer": number}
        for kind in KINDS:
            row[kind] = widths[kind][number] if number is not None and number < len(widths[kind]) else None
            row[f"dense_{kind}"] = full[kind][0] if full[kind] else None
        row["sparsity"] = sum(matrix["sparsity"] * _numel(matrix) for matrix in own) / max(count, 1)
        for what in ("weights", "inputs"):
            row[what] = " or ".join(dict.fromkeys(matrix[what] or "fp32" for matrix in own))
        rows.append(row)
    return rows


def _tables(model: PreTrainedModel, entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        tables = embedding_tables(model)
    except UserError:  # a family without a table of its parts
        return []
    ranks = {name: table.rank for name, table in factorized_embeddings(model)}
    return [
        {
            "name": name,
            "rows": table.num_embeddings,
            "width": table.embedding_dim,
            "rank": ranks.get(name),
            "weights": _quantization((entries.get(name) or {}).get("weight_quantizer")),
        }
        for name, table in tables.items()
    ]


def _linears(model: PreTrainedModel | None, entries: Mapping[str, Any]) -> dict[str, nn.Linear]:
    """The linears of the layers, and whatever else was compressed."""
    if model is None:
        return {}
    try:
        linears = layer_linears(model)
    except UserError:  # as above
        linears = {}
    modules = dict(model.named_modules())
    more = {name: modules[name] for name in entries if name in modules and name not in linears}
    return linears | {name: module for name, module in more.items() if isinstance(module, nn.Linear)}


def _widths(model: PreTrainedModel | None, kind: Any) -> list[int]:
    if model is None:
        return []
    try:
        return [groups.count for groups in removable_groups(model, kind)]
    except UserError:  # the family does not say, so nothing can have been removed
        return []


def _place(name: str) -> tuple[int | None, str]:
    """Number of the layer in a dotted name, and what comes after it; None and the name outside the layers.

    Example:
        >>> _place("bert.encoder.layer.3.output.dense")
        (3, 'output.dense')

    """
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (int(found[1]), found[2]) if found else (None, name)


def _quantization(quantizer: Mapping[str, Any] | None) -> str | None:
    """A quantizer in words; None when there is none, or it is off.

    Example:
        >>> _quantization({"kind": "MinMaxWeightQuantizer", "enabled": True, "spec": {"bits": 8, "per_channel": True}})
        'int8 per channel'

    """
    if not quantizer or not quantizer["enabled"]:
        return None
    kind, spec = quantizer["kind"], quantizer["spec"]
    bits = spec.get("bits", 8)
    if kind == "MinMaxWeightQuantizer":
        return f"int{bits} per {'channel' if spec['per_channel'] else 'tensor'}"
    if kind == "TableQuantizer":
        return f"int{bits} per {'row' if spec['per_row'] else 'table'}"
    if kind == "DynamicTokenQuantizer":
        return f"int{bits} per token"
    return f"{'int' if spec.get('symmetric') else 'uint'}{bits}"


def _all_quantizers(slots: Mapping[str, Any]) -> list[Any]:
    """The quantizers of an attention module; its entry holds their scales as well."""
    return [quantizer for name, quantizer in slots.items() if name != "scales"]


def _numel(matrix: Mapping[str, Any]) -> int:
    rows, columns = matrix["shape"]
    return rows * columns
