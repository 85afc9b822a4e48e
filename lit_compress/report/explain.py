"""`lit_compress explain`: what runs in each layer of a packed model, why, and what that should gain."""

import json
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.files import atomic_file, begins, check_file
from lit_compress.models.fused_report import describe_fused
from lit_compress.models.load import load_config, quiet_transformers
from lit_compress.ops.dispatch import WITHOUT_KERNELS
from lit_compress.ops.product_times import device_named
from lit_compress.report.terminal import screen_table
from lit_compress.sources import check_safetensors, resolve_source

__all__ = ["explain", "explanation", "print_explanation"]

_COLUMNS = ("layers", "launches", "product", "weight", "packed", "stored", "MB", "kernel us", "dense us", "runs")
_WORDS = ("layers", "product", "weight", "packed", "stored", "runs")
# Where nobody looks at a terminal, a line is as long as it needs to be.
_WIDTH = 120


def explain(model: str, tokens: int = 4096, device: str | None = None, output: str | None = None) -> None:
    """Print layer by layer what runs in a packed model, and what it should gain.

    Options: :func:`lit_compress.commands.results.explain`.
    """
    if tokens < 1:
        raise UserError(f"--tokens: {tokens} must be 1 or more")
    if output is not None:
        check_file(output, begins(r'\{\n "folder": ".*",\n "model": '))
    facts = explanation(_load(model), tokens, _device(device))
    facts = {"folder": model} | facts
    print_explanation(facts)
    if output is not None:
        with atomic_file(output) as path:
            path.write_text(json.dumps(facts, indent=1) + "\n")


def explanation(model: PreTrainedModel, tokens: int, device: str) -> dict[str, Any]:
    """What :func:`explain` prints; JSON types only.

    Args:
        model: as ``from_pretrained`` gives it.
        tokens: of a batch, padding not counted.
        device: as in :func:`lit_compress.models.fused_report.describe_fused`.

    """
    layers = describe_fused(model, tokens, device)
    products = [product for layer in layers for product in layer["products"]]
    timed = [product for product in products if product["kernel_us"] is not None]
    dense = sum(product["dense_us"] for product in timed)
    chosen = sum(product[f"{product['choice']}_us"] for product in timed)
    return {
        "model": type(model).__name__,
        "device": device,
        "tokens": tokens,
        "layers": layers,
        "fused_layers": sum(layer["fused"] for layer in layers),
        "bytes": sum(product["bytes"] for product in products),
        "fp32_bytes": sum(4 * product["outputs"] * product["inputs"] for product in products),
        "dense_us": dense if timed else None,
        "chosen_us": chosen if timed else None,
        "gain": dense / chosen if timed else None,
    }


def print_explanation(facts: dict[str, Any]) -> None:
    """The same as a table in the terminal; layers that are alike share their lines."""
    rows: list[tuple[str, ...]] = []
    reasons: list[str] = []  # in the order of their first use; a row has the number of its own
    for names, layer in _grouped(facts["layers"]):
        if not layer["fused"]:
            rows.append((names, *("", "all", "", "", "", "", "", ""), f"plain {_number(layer['reason'], reasons)}"))
        for index, product in enumerate(layer["products"]):
            first = (names, str(layer["launches"])) if index == 0 else ("", "")
            rows.append((*first, *_cells(product, reasons)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    title = f"{facts['model']}, {facts['tokens']} tokens on {facts['device']}"
    console.print(screen_table(title, _COLUMNS, rows, words=_WORDS))
    for line in [*(f"[{index + 1}] {reason}" for index, reason in enumerate(reasons)), *_notes(facts)]:
        console.print(line, style="dim", markup=False, highlight=False)


def _cells(product: dict[str, Any], reasons: list[str]) -> tuple[str, ...]:
    times = [product["kernel_us"], product["dense_us"]]
    why = "" if times[0] is not None else _number(product["reason"], reasons)
    return (
        product["name"],
        f"{product['outputs']} x {product['inputs']}",
        f"{product['dtype']} {product['format']}",
        "all" if product["tile"] is None else f"{product['density']:.0%} of {product['tile']}",
        f"{product['bytes'] / 1e6:.2f}",
        *("" if time is None else f"{time:.1f}" for time in times),
        f"{product['choice']} {why}".rstrip(),
    )


def _number(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"


def _notes(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['fused_layers']} of {len(facts['layers'])} layers run fused, on unpadded tokens."]
    if facts["bytes"]:
        lines.append(
            f"Weights of these: {facts['bytes'] / 1e6:.2f} MB, {facts['fp32_bytes'] / 1e6:.2f} MB as fp32 "
            f"({facts['fp32_bytes'] / facts['bytes']:.1f}x)."
        )
    if facts["gain"] is not None:
        sources = {product["source"] for layer in facts["layers"] for product in layer["products"]}
        how = "measured where the reason says so, else derived" if "measured" in sources else "derived, not measured"
        lines += [
            f"Times are {how}; the dense product is one of 16 bit.",
            f"All products: {facts['chosen_us']:.0f} us as chosen, {facts['dense_us']:.0f} us dense, expected gain "
            f"{facts['gain']:.2f}x ({how}). Attention, norms and embeddings are not counted.",
        ]
    if not facts["fused_layers"]:
        lines.append("Only layers of packed linears run fused: lit_compress export --to packed")
    return lines


def _grouped(layers: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Runs of equal layers, with the numbers of the first and the last."""
    groups: list[list[dict[str, Any]]] = []
    for layer in layers:
        if groups and groups[-1][0] | {"layer": None} == layer | {"layer": None}:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return [
        (str(group[0]["layer"]) if len(group) == 1 else f"{group[0]['layer']}-{group[-1]['layer']}", group[0])
        for group in groups
    ]


def _device(name: str | None) -> str:
    if name is None:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if name not in WITHOUT_KERNELS:
        try:
            return device_named(name).name
        except UserError as error:
            raise UserError(f"{error}, {', '.join(WITHOUT_KERNELS)}") from None
    return name


def _load(source: str) -> PreTrainedModel:
    config = load_config(source, "--model")
    kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
    path = resolve_source(source, "--model")
    check_safetensors(path, config.architectures, "--model")
    with quiet_transformers():
        return kind.from_pretrained(path, use_safetensors=True).eval()
