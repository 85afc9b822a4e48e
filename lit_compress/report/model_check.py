"""What can be said of a model before it is trained: from its configuration, tokenizer and the names in its files."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from lit_compress.data.tables import load_tokenizer
from lit_compress.errors import UserError
from lit_compress.extras import MissingPackage, optional
from lit_compress.models.folder import model_outline
from lit_compress.models.fused import why_never_fused
from lit_compress.models.labels import label_names
from lit_compress.models.layout import layer_linears
from lit_compress.models.load import load_config, quiet_transformers
from lit_compress.models.packed import check_trainable
from lit_compress.models.positions import check_length, longest_input
from lit_compress.models.sentence_embedding import dense_file
from lit_compress.models.shapes import describe_shapes
from lit_compress.report.size import size_of
from lit_compress.sentence_settings import settings_of
from lit_compress.sources import resolve_source
from lit_compress.strategies import (
    GradualLayerDropping,
    LayerDropping,
    LowRankEmbedding,
    MagnitudePruning,
    QuantAwareTraining,
    StructuredPruning,
)
from lit_compress.strategies.strategy import Strategy
from lit_compress.tasks import EmbeddingTask, task_class_of

__all__ = ["Finding", "Level", "megabytes", "model_findings"]

Level = Literal["ok", "warning", "error"]

# Each is set up on the model without weights, and what it refuses is what it would refuse in a training.
_STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "pruning of weights": MagnitudePruning,
    "QuantAwareTraining": QuantAwareTraining,
    "QuantAwareTraining of attention": partial(QuantAwareTraining, attention="all"),
    "StructuredPruning of heads": partial(StructuredPruning, heads=1),
    "StructuredPruning of neurons": partial(StructuredPruning, neurons=1),
    "LayerDropping": partial(LayerDropping, drop=1),
    "GradualLayerDropping": partial(GradualLayerDropping, drop=1),
    "LowRankEmbedding": partial(LowRankEmbedding, rank=1),
}
# Formats that need an extra, and which.
_RUNTIMES: dict[str, Callable[[], Any]] = {
    "onnx, onnx-int8": lambda: optional("onnxruntime", "onnx"),
    "openvino, openvino-int8": lambda: optional("openvino", "openvino"),
    "compressed-tensors": lambda: optional("compressed_tensors", "compressed-tensors"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a check.

    Args:
        level: ``ok``, ``warning`` for what may be meant, ``error`` for what a training or an export refuses.
        text: the key to change, and what is the matter.

    """

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level:8}{self.text}"


def model_findings(
    source: str, key: str, length: int | None = None, tokenizer: str | None = None, strategies: bool = True
) -> Iterator[Finding]:
    """What there is to say of a model; an error ends it where nothing more can be said.

    Args:
        source: folder, ``package:`` or hub name.
        key: config key of the model, for the lines.
        length: longest input that is asked for.
        tokenizer: where the tokenizer comes from; None is the source.
        strategies: also which strategies and formats will work.

    """
    try:
        model = _outline(source, key)
    except UserError as error:
        yield Finding(level="error", text=str(error))
        return
    yield _head(model, source, key)
    yield from _positions(model, source, key, length)
    yield from _tokenizer(model, source, key, tokenizer)
    if strategies:
        try:
            check_trainable(model, source, key)
        except UserError as error:
            yield Finding(level="error", text=str(error))
            return
        yield from _strategies(model, source, key)
        yield from _formats(model, source)
        yield _sizes(model, source, key)


def megabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e6:,.1f} MB"


def _outline(source: str, key: str) -> PreTrainedModel:
    """The model on the device ``meta``; of a hub name, its configuration alone is looked at."""
    path = resolve_source(source, key)
    config = load_config(source, key)
    if Path(path).is_dir() and config.architectures:
        return model_outline(path, key)
    with torch.device("meta"), quiet_transformers():
        return AutoModel.from_config(config)


def _head(model: PreTrainedModel, source: str, key: str) -> Finding:
    config = model.config
    name = f"{key}: {source!r} is a {type(model).__name__} ({config.model_type})"
    try:
        task = task_class_of(config)
    except UserError as error:
        return Finding(level="error", text=f"{key}: {error}")
    if task is EmbeddingTask:
        return _sentence_encoder(config, name)
    if task is None:
        return Finding(level="ok", text=f"{name} without a head of a known task; fit begins with a new one")
    if not task.has_classes:
        return Finding(level="ok", text=f"{name} with a head for {task.name}")
    names = label_names(config)
    shown = f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        text = f"{name} whose {len(names)} labels have no names and are taken in the order of the data; model.label_map"
        return Finding(level="warning", text=text)
    return Finding(level="ok", text=f"{name} with a head for {task.name}: {shown}")


def _sentence_encoder(config: PretrainedConfig, name: str) -> Finding:
    try:
        settings = settings_of(config)
        assert settings is not None
        if settings.dense is not None:
            dense_file(config)
    except UserError as error:
        text = f"{name}; its vectors of texts cannot be had: {error}; a fit for labels puts a head of its own on it"
        return Finding(level="warning", text=text)
    parts = [f"{settings.pooling} pooling"]
    parts += [f"a projection to {settings.dense['out_features']}"] if settings.dense else []
    parts += ["vectors of length 1"] if settings.normalize else []
    parts += [f"texts of {settings.max_length} tokens at most"] if settings.max_length else []
    parts += [f"the prompt {settings.own_prompt!r}"] if settings.own_prompt else []
    text = f"{name}, a sentence encoder ({', '.join(parts)}); SentencePairs and SentenceTexts keep that"
    return Finding(level="ok", text=text)


def _positions(model: PreTrainedModel, source: str, key: str, length: int | None) -> Iterator[Finding]:
    longest = longest_input(model.config)
    try:
        if length is not None:
            check_length(model.config, length, f"{key} {source!r}")
    except UserError as error:
        yield Finding(level="error", text=str(error))
        return
    room = "any number of tokens" if longest is None else f"{longest} tokens at most"
    asked = "" if length is None else f"; {length} are asked for"
    yield Finding(level="ok", text=f"data.max_length: {source!r} takes {room}{asked}")


def _tokenizer(model: PreTrainedModel, source: str, key: str, given: str | None) -> Iterator[Finding]:
    where, option = given or source, "data.tokenizer" if given else key
    try:
        tokenizer = load_tokenizer(where, option)
    except UserError as error:
        yield Finding(level="error", text=f"{error}; data.tokenizer names one from elsewhere")
        return
    rows, count = model.get_input_embeddings().weight.shape[0], len(tokenizer)  # type: ignore[union-attr]
    kind = "fast" if tokenizer.is_fast else "slow"
    if count > rows:
        text = f"data.tokenizer: {where!r} has {count} tokens, and {source!r} {rows} rows of word embeddings"
        yield Finding(level="error", text=text)
    else:
        yield Finding(level="ok", text=f"data.tokenizer: {kind}, {count} tokens in {rows} rows of word embeddings")
    if not tokenizer.is_fast:
        text = f"data.tokenizer: {where!r} has no fast version, which words with tags and places of answers need"
        yield Finding(level="warning", text=text)
    ours, theirs = tokenizer.pad_token_id, model.config.pad_token_id
    if ours is None:
        text = f'data.tokenizer: {where!r} has no padding token; name it in its tokenizer_config.json: "pad_token"'
        yield Finding(level="error", text=text)
    elif theirs is not None and ours != theirs:
        text = f"data.tokenizer: {where!r} pads with {ours}, and pad_token_id of {source!r} is {theirs}"
        yield Finding(level="warning", text=text)


def _strategies(model: PreTrainedModel, source: str, key: str) -> Iterator[Finding]:
    works = []
    for name, make in _STRATEGIES.items():
        holder: Any = nn.Module()
        holder.student = copy.deepcopy(model)
        strategy = make()
        trainer: Any = SimpleNamespace(callbacks=[strategy])
        try:
            strategy.setup(trainer, holder, "validate")
            works.append(name)
        except UserError as error:
            yield Finding(level="warning", text=f"compression: no {name}: {error}")
    if works:
        yield Finding(level="ok", text=f"compression: {', '.join(works)} will work on {source!r}")


def _formats(model: PreTrainedModel, source: str) -> Iterator[Finding]:
    works = ["hf, packed, sparse"]
    for formats, find in _RUNTIMES.items():
        try:
            find()
            works.append(formats)
        except MissingPackage as error:
            yield Finding(level="warning", text=f"--to: no {formats}: {error}")
    if "compressed-tensors" in works and (shapes := describe_shapes(model)):
        works.remove("compressed-tensors")
        text = f"--to: no compressed-tensors: {', '.join(shapes)} of {source!r} are not those of its configuration"
        yield Finding(level="warning", text=text)
    yield Finding(level="ok", text=f"--to: {', '.join(works)}")
    if (reason := why_never_fused(model)) is not None:
        yield Finding(level="warning", text=f"--to packed: its layers run one by one and are not fused: {reason}")
    else:
        yield Finding(level="ok", text="--to packed: its layers are fused")


def _sizes(model: PreTrainedModel, source: str, key: str) -> Finding:
    linears = set(_linears(model))
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    count = sum(parameter.numel() for parameter in model.parameters())
    integers = 0
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        eight = kind == "weight" and layer in linears | tables
        size = parameter.numel()
        integers += size_of(size, size, 8 if eight else 32, parameter.shape[0] if eight else 0).compressed_bytes
    text = (
        f"{key}: {source!r} has {count:,} parameters: {megabytes(4 * count)} in fp32, {megabytes(2 * count)} in fp16, "
    )
    return Finding(level="ok", text=text + f"about {megabytes(integers)} with 8-bit linears and tables")


def _linears(model: PreTrainedModel) -> list[str]:
    try:
        return list(layer_linears(model))
    except UserError:  # no strategy finds them either, which is said above
        return []
