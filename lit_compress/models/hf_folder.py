"""A folded student as a Hugging Face folder that stock transformers loads, after `import lit_compress` if need be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_compress.files import atomic_folder
from lit_compress.models.folded import Folded, from_student
from lit_compress.models.heads_and_neurons import KINDS
from lit_compress.models.labels import label_names
from lit_compress.models.manifest_file import MANIFEST_FILE, UNFINISHED, check_unfinished, unfinished_lines
from lit_compress.models.model_card import card_head, code_of_transformers
from lit_compress.models.sentence_embedding import write_sentence_files
from lit_compress.models.shapes import METHOD, describe_shapes
from lit_compress.nn.manifest import Manifest
from lit_compress.storage.file import checksums
from lit_compress.tasks import task_class_of
from lit_compress.version import __version__

__all__ = ["add_note", "add_to_card", "save_checked", "save_folder", "write_companions", "write_hf", "write_manifest"]


def save_folder(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    overwrite: bool = False,
    unfinished: Sequence[Mapping[str, Any]] = (),
    note: str | None = None,
) -> Path:
    """Write config, folded safetensors, tokenizer, model card and manifest; the folder appears whole or not at all.

    Args:
        student: training form; it is not changed.
        tokenizer: saved with the weights.
        output: folder to make.
        overwrite: replace an existing folder that an export wrote.
        unfinished: what strategies have not reached, see :meth:`lit_compress.strategies.Strategy.unfinished`.
        note: of the task, for the model card; see :meth:`lit_compress.tasks.Task.note`.

    Raises:
        UserError: the folder exists or cannot be written.

    """
    folded = from_student(student, tokenizer)
    if unfinished:
        folded = replace(folded, manifest=folded.manifest | {UNFINISHED: check_unfinished([*unfinished])})
    with atomic_folder(output, overwrite) as staging:
        write_hf(folded, staging)
        add_note(staging, note)
    return Path(output)


def write_hf(folded: Folded, folder: Path) -> None:
    """Fill an empty folder with what :func:`save_folder` writes."""
    save_checked(folded.model, folder)
    write_companions(folded.model, folded.tokenizer, folded.manifest, folder)


def save_checked(model: PreTrainedModel, folder: Path) -> None:
    """``save_pretrained``, with the SHA-256 of every tensor in ``config.json`` where this package loads the weights."""
    model.save_pretrained(folder)
    config: Any = model.config
    entry = getattr(config, "quantization_config", None)
    if not isinstance(entry, dict) or entry.get("quant_method") != METHOD:
        return
    try:
        config.quantization_config = entry | {"checksums": checksums(sorted(folder.glob("*.safetensors")))}
        config.save_pretrained(folder)
    finally:
        config.quantization_config = entry


def write_companions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest,
    folder: Path,
    usage: Sequence[str] | None = None,
    needs_import: bool = False,
) -> None:
    """Write what every format has in addition to its weights: tokenizer, manifest and model card.

    Args:
        model: folded model.
        tokenizer: saved as it is.
        manifest: with scales.
        folder: existing.
        usage: lines of Python that load the folder; None are those of ``from_pretrained``.
        needs_import: whether Transformers needs this package to load the weights, whatever their shapes.

    """
    tokenizer.save_pretrained(folder)
    write_manifest(manifest, folder)
    write_sentence_files(model, folder)
    (folder / "README.md").write_text(_card(model, manifest, describe_shapes(model), usage, needs_import))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``compression.json``, in the place of an earlier one."""
    content = {"lit_compress": __version__} | manifest
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n")


def add_to_card(folder: Path, line: str) -> None:
    """Add a line to the model card of a folder."""
    with (folder / "README.md").open("a") as file:
        file.write(f"\n{line}\n")


def add_note(folder: Path, note: str | None) -> None:
    """Add how outputs are read to the model card of a folder; None where it is as usual."""
    if note:
        add_to_card(folder, f"To read its outputs: {note}.")


def _card(
    model: PreTrainedModel,
    manifest: Manifest,
    shapes: dict[str, Any],
    usage: Sequence[str] | None,
    needs_import: bool,
) -> str:
    layers, tables = manifest.get("linears", {}), manifest.get("embeddings", {})
    pruned = [entry["sparsity"] for entry in layers.values() if entry["mask"]]
    quantized, quantized_tables = (
        sum(1 for entry in entries.values() if (entry["weight_quantizer"] or {}).get("enabled"))
        for entries in (layers, tables)
    )
    lines = card_head(model, f"{type(model).__name__}, {'compressed' if manifest else 'fine-tuned'} with lit_compress")
    lines.append(f"- parameters: {sum(p.numel() for p in model.parameters()):,}")
    config: Any = model.config
    task = task_class_of(config)
    if task is not None and task.has_classes:
        lines.append(f"- labels: {', '.join(label_names(config))}")
    if pruned:
        lines.append(
            f"- pruned layers: {len(pruned)}, mean sparsity {sum(pruned) / len(pruned):.4f} (zeros are stored)"
        )
    if quantized:
        lines.append(
            f"- quantized layers: {quantized}; weights are integers times a scale, scales in `{MANIFEST_FILE}`"
        )
    if quantized_tables:
        lines.append(f"- quantized embedding tables: {quantized_tables}, in the same way")
    lines += [f"- not finished: {line}" for line in unfinished_lines(manifest)]
    lines += [f"- {what} of each layer: {_widths(shapes[what])}" for what in KINDS if what in shapes]
    lines += [f"- rank of `{name}`: {rank}" for name, rank in shapes.get("ranks", {}).items()]
    if usage is None:
        usage = [
            *(["import lit_compress  # teaches Transformers to read this folder"] if shapes or needs_import else []),
            *code_of_transformers(model),
        ]
        if shapes or needs_import:
            lines += [
                "",
                "Transformers alone does not know these weights and refuses them. `import lit_compress` first.",
            ]
    return "\n".join([*lines, "", "```python", *usage, "```", ""])


def _widths(widths: list[int]) -> str:
    return str(widths[0]) if len(set(widths)) == 1 else ", ".join(map(str, widths))
