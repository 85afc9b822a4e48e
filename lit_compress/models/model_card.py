"""What model cards share: metadata with the base model and its licence where they are known, and code that loads."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from transformers import PreTrainedModel

from lit_compress.models.sentence_embedding import embeds
from lit_compress.sentence_settings import CROSS_ENCODER_KEY, settings_of

__all__ = ["FOLDER", "base_metadata", "card_head", "code_of_runtime", "code_of_transformers"]

FOLDER = 'folder = "."  # where this card is, or the name of the model on the hub'  # in the examples of all cards

_KEYS = ("base_model", "license", "license_name", "license_link")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def card_head(model: PreTrainedModel, title: str) -> list[str]:
    """Front matter, title, and what the model began as; lines of Markdown, to which facts are added."""
    base = base_metadata(model)
    ranks = getattr(model.config, CROSS_ENCODER_KEY, None) is not None
    library = "sentence-transformers" if embeds(model) or ranks else "transformers"
    kind: dict[str, Any] = {"library_name": library, "tags": ["lit_compress"]}
    if embeds(model):
        kind |= {"pipeline_tag": "sentence-similarity", "tags": ["lit_compress", "feature-extraction"]}
    elif ranks and model.config.num_labels == 1:
        kind |= {"pipeline_tag": "text-ranking", "tags": ["lit_compress", "cross-encoder"]}
    metadata = yaml.safe_dump(kind | base, sort_keys=False)
    lines = ["---", *metadata.splitlines(), "---", f"# {title}", ""]
    if "base_model" in base:
        named = base["base_model"]
        lines.append(f"- base model: {', '.join(named) if isinstance(named, list) else named}")
    if "license" not in base:
        lines.append("- licence: not named here, because no card of the base model was at hand; its own applies")
    return lines


def code_of_transformers(model: PreTrainedModel, decompress: bool = False) -> list[str]:
    """Lines of Python that load a folder with Transformers, or sentence-transformers, and ask it something.

    Args:
        model: that the folder holds.
        decompress: whether it has weights of compressed-tensors, which decompresses them in a call that
            sentence-transformers does not make.

    """
    if embeds(model):
        return _code_of_sentence_transformers("SentenceTransformer", 'vectors = model.encode(["a text"])', decompress)
    if getattr(model.config, CROSS_ENCODER_KEY, None) is not None:
        ask = 'scores = model.predict([("a query", "a document")])'
        return _code_of_sentence_transformers("CrossEncoder", ask, decompress)
    name = type(model).__name__
    return [
        f"from transformers import AutoTokenizer, {name}",
        "",
        FOLDER,
        f"model = {name}.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'outputs = model(**tokenizer("a text", return_tensors="pt"))',
    ]


def _code_of_sentence_transformers(kind: str, ask: str, decompress: bool) -> list[str]:
    lines = [f"from sentence_transformers import {kind}"]
    if not decompress:
        return [*lines, "", FOLDER, f"model = {kind}(folder)", ask]
    lines += ["from transformers import CompressedTensorsConfig", "", FOLDER]
    options = '{"quantization_config": CompressedTensorsConfig(dequantize=True)}'
    return [*lines, f"options = {options}", f"model = {kind}(folder, model_kwargs=options)", ask]


def code_of_runtime(model: PreTrainedModel, run: str) -> list[str]:
    """Lines of Python that ask a runtime something, where ``tokenizer`` is loaded.

    Args:
        model: that the folder holds.
        run: the call with ``inputs``.

    """
    settings = settings_of(model.config) if embeds(model) else None
    text = ("" if settings is None else settings.own_prompt) + "a text"  # as SentenceTransformer reads it
    lines = [f'inputs = tokenizer([{json.dumps(text, ensure_ascii=False)}], return_tensors="np")', f"outputs = {run}"]
    return lines if settings is None else [*lines, "vectors = outputs[1]"]


def base_metadata(model: PreTrainedModel) -> dict[str, Any]:
    """``base_model`` and ``license`` for the front matter of a card, as far as they are known.

    A base model is a name on the hub: the one that the model was loaded from, or what the card of that folder names.
    """
    source = str(getattr(model.config, "name_or_path", "") or "")
    if Path(source).is_dir():
        return _named_in(Path(source) / "README.md")
    return {"base_model": source} if _HUB_NAME.fullmatch(source) else {}


def _named_in(card: Path) -> dict[str, Any]:
    try:
        known = metadata_load(card) or {} if card.is_file() else {}
    except (ValueError, yaml.YAMLError):  # a card of someone else, which nothing else here depends on
        known = {}
    return {key: known[key] for key in _KEYS if known.get(key)}
