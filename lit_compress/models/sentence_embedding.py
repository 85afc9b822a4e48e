"""Plain encoders that give the vector of a text beside those of its tokens."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from lit_compress.functional.pooling import pool
from lit_compress.sentence_settings import SENTENCE_KEY, keep_settings, settings_of

__all__ = ["SentenceOutput", "give_embeddings"]


@dataclass
class SentenceOutput(ModelOutput):
    """Output of an encoder, with ``sentence_embedding`` ``(texts, width)`` in fp32."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    sentence_embedding: Tensor | None = None


def give_embeddings(model: PreTrainedModel) -> None:
    """Let a plain encoder whose configuration or folder says how add ``sentence_embedding`` to its output, in place.

    What is saved of it, and its modules, stay those of Transformers. Others stay as they are.

    Raises:
        UserError: the folder says it in a way that is not known here.

    """
    name = type(model).__name__
    if not name.endswith("Model") or (settings := settings_of(model.config)) is None:
        return
    keep_settings(model.config, settings)
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
    vectors = pool(output["last_hidden_state"], mask, settings["pooling"], settings["normalize"])
    return SentenceOutput(**known, sentence_embedding=vectors)
