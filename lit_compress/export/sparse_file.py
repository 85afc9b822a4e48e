"""A folded model as a Hugging Face folder of sparse weights: the non-zeros alone, as integers where quantized."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_compress.models.folded import Folded, stored_state
from lit_compress.models.hf_folder import write_companions
from lit_compress.models.shapes import METHOD, shapes_of
from lit_compress.storage.file import checksums
from lit_compress.storage.parts import BITMAP, encode

__all__ = ["write_sparse"]


@torch.no_grad()
def write_sparse(folded: Folded, folder: Path) -> None:
    """Write config, tokenizer, card, manifest and one safetensors of :mod:`lit_compress.storage.parts`.

    Args:
        folded: what to write.
        folder: existing and empty.

    Raises:
        UserError: a weight is not quantized with the scale that the manifest says.

    """
    model, config = folded.model, folded.model.config
    shapes, path = shapes_of(config), folder / "model.safetensors"
    save_file(stored_tensors(folded), path, metadata={"format": "pt"})
    entry: dict[str, Any] = {"quant_method": METHOD, "storage": BITMAP, "checksums": checksums([path])}
    config.quantization_config = entry | ({"shapes": shapes} if shapes is not None else {})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    write_companions(folded.model, folded.tokenizer, folded.manifest, folder, needs_import=True)


def stored_tensors(folded: Folded) -> dict[str, Tensor]:
    """Every tensor of the file by its name."""
    modules = dict(folded.model.named_modules())
    stored: dict[str, Tensor] = {}
    for name, tensor in stored_state(folded.model).items():
        owner, _, last = name.rpartition(".")
        parts = None
        if last == "weight" and isinstance(modules[owner], nn.Linear | nn.Embedding) and tensor.dtype == torch.float32:
            weight = folded.quantized(owner)
            parts = encode(tensor if weight is None else weight)
        stored |= {name + end: part.contiguous() for end, part in (parts or {"": tensor}).items()}
    return stored
