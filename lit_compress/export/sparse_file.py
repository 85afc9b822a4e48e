"""A folded model as a Hugging Face folder whose weights have no zeros and are integers where they lie on a grid."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_compress.export.folded import Folded, integer_weight, stored_state
from lit_compress.export.hf import write_beside
from lit_compress.models.shapes import METHOD, shapes_of
from lit_compress.models.sparse_weights import BITMAP, DIGESTS, digest, encode

__all__ = ["write_sparse"]


@torch.no_grad()
def write_sparse(folded: Folded, folder: Path) -> None:
    """Write config, tokenizer, card, manifest and one safetensors of :mod:`lit_compress.models.sparse_weights`.

    Args:
        folded: what to write.
        folder: existing and empty.

    Raises:
        UserError: a weight does not lie on the grid that the manifest says.

    """
    model, config = folded.model, folded.model.config
    shapes = shapes_of(config)
    entry: dict[str, Any] = {"quant_method": METHOD, "storage": BITMAP}
    stored = stored_tensors(folded)
    metadata = {"format": "pt", DIGESTS: json.dumps({name: digest(name, part) for name, part in stored.items()})}
    save_file(stored, folder / "model.safetensors", metadata=metadata)
    config.quantization_config = entry | ({"shapes": shapes} if shapes is not None else {})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    write_beside(folded.model, folded.tokenizer, folded.manifest, folder, needs_import=True)


def stored_tensors(folded: Folded) -> dict[str, Tensor]:
    """Every tensor of the file by its name."""
    entries, modules = folded.entries(), dict(folded.model.named_modules())
    stored: dict[str, Tensor] = {}
    for name, tensor in stored_state(folded.model).items():
        owner, _, last = name.rpartition(".")
        parts = None
        if last == "weight" and isinstance(modules[owner], nn.Linear | nn.Embedding) and tensor.dtype == torch.float32:
            grid = integer_weight(owner, tensor, entries.get(owner))
            parts = encode(tensor) if grid is None else encode(tensor, grid.values, grid.scale, grid.zero_point)
        stored |= {name + end: part.contiguous() for end, part in (parts or {"": tensor}).items()}
    return stored
