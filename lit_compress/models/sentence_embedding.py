"""Plain encoders that return the vector of a text in addition to those of its tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from lit_compress.errors import UserError, first_line
from lit_compress.functional.pooling import pool
from lit_compress.sentence_settings import SENTENCE_KEY, companion_file, keep_settings, settings_of, write_settings

__all__ = [
    "DENSE",
    "SentenceDense",
    "SentenceOutput",
    "add_dense",
    "dense_file",
    "embeds",
    "give_embeddings",
    "load_dense",
    "write_sentence_files",
]

# Name of the projection in a model.
DENSE = "sentence_dense"
_FILE = "2_Dense/model.safetensors"  # in folders that are written here


@dataclass
class SentenceOutput(ModelOutput):
    """Output of an encoder, with ``sentence_embedding`` ``(texts, width)`` in fp32."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    sentence_embedding: Tensor | None = None


class SentenceDense(nn.Module):
    """A projection of pooled vectors (Dense of sentence-transformers); no ``nn.Linear``, so that nothing compresses it.

    Args:
        in_features: width of the encoder.
        out_features: width of the vectors.
        bias: whether something is added.
        activation: class of ``torch.nn``.

    """

    def __init__(self, in_features: int, out_features: int, bias: bool, activation: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.activation = getattr(nn, activation)()

    def forward(self, vectors: Tensor) -> Tensor:
        """``(texts, in_features)`` to ``(texts, out_features)``, in fp32."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(vectors.device.type, enabled=False):  # which makes products half precision
            return self.activation(F.linear(vectors.float(), self.weight.float(), bias))


def add_dense(model: PreTrainedModel) -> SentenceDense | None:
    """Give an encoder the projection that its configuration says, whose weights are 0; None where it says none."""
    settings = getattr(model.config, SENTENCE_KEY, None)
    if not isinstance(settings, dict) or not settings.get("dense"):
        return None
    width: Any = model.config.hidden_size
    dense = SentenceDense(width, **settings["dense"])
    model.add_module(DENSE, dense)
    # It has a file of its own, and those of Transformers stay as Transformers knows them.
    ignored: Any = model._keys_to_ignore_on_save or []
    model._keys_to_ignore_on_save = {*ignored, *(f"{DENSE}.{name}" for name in dense.state_dict())}
    return dense


def embeds(model: PreTrainedModel) -> bool:
    """Whether a model is an encoder without a head that says how its tokens become a vector.

    A classifier that began as one has the settings in its configuration, too.
    """
    return _is_encoder(model) and getattr(model.config, SENTENCE_KEY, None) is not None


def _is_encoder(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("Model")


def write_sentence_files(model: PreTrainedModel, folder: Path) -> None:
    """Write what ``SentenceTransformer(folder)`` needs besides weights; nothing for models of other tasks."""
    if not embeds(model):
        return
    write_settings(model.config, folder)
    if isinstance(dense := getattr(model, DENSE, None), SentenceDense):
        state = {f"linear.{name}": tensor.detach().float().contiguous() for name, tensor in dense.state_dict().items()}
        save_file(state, folder / _FILE, metadata={"format": "pt"})


def dense_file(config: PretrainedConfig) -> Path:
    """The weights of a projection, in the folder of its model.

    Raises:
        UserError: there are none.

    """
    if (file := companion_file(config, _FILE)) is not None:
        return file
    source = str(config.name_or_path)
    raise UserError(
        f"{source!r}: it has no {_FILE}; load it with SentenceTransformer and save it again, as safetensors"
    )


def load_dense(model: PreTrainedModel) -> None:
    """Give an encoder the projection that its configuration says, from the folder that the configuration names."""
    dense, source = add_dense(model), str(model.config.name_or_path)
    if dense is None:
        return
    file = dense_file(model.config)
    try:
        state = {name.removeprefix("linear."): tensor.float() for name, tensor in load_file(file).items()}
        dense.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{source!r}: its {_FILE} does not fit its settings: {first_line(error)}") from error


def give_embeddings(model: PreTrainedModel) -> None:
    """Let a plain encoder whose configuration or folder says how add ``sentence_embedding`` to its output, in place.

    What is saved of it, and its modules, stay those of Transformers; a projection has a module and a file of its own.
    Others stay as they are.

    Raises:
        UserError: the folder says it in a way that is not known here.

    """
    if not _is_encoder(model) or (settings := settings_of(model.config)) is None:
        return
    keep_settings(model.config, settings)
    if not hasattr(model, DENSE):
        load_dense(model)
    if _add_embedding not in model._forward_hooks.values():
        model.register_forward_hook(_add_embedding, with_kwargs=True)
    pooler: Any = getattr(model, "pooler", None)
    if pooler is not None:  # nothing reads it: it stays as it is, and no rank waits for its gradients
        pooler.requires_grad_(False)


def _add_embedding(model: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
    if not isinstance(output, ModelOutput):
        return output
    settings = getattr(model.config, SENTENCE_KEY)
    mask = given.get("attention_mask", args[1] if len(args) > 1 else None)
    known = {name: output.get(name) for name in ("last_hidden_state", "pooler_output", "hidden_states", "attentions")}
    vectors, dense = output["last_hidden_state"], getattr(model, DENSE, None)
    if dense is None:
        vectors = pool(vectors, mask, settings["pooling"], settings["normalize"])
    else:
        vectors = dense(pool(vectors, mask, settings["pooling"], normalize=False))
        vectors = F.normalize(vectors, dim=-1) if settings["normalize"] else vectors
    return SentenceOutput(**known, sentence_embedding=vectors)
