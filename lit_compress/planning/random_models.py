"""Models of random weights with a given structure, exported as a trained one is: what they are for is to be timed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lit_compress.choices import EngineName, Target
from lit_compress.errors import UserError, first_line
from lit_compress.export.command import format_writer
from lit_compress.models.drop_layers import drop_layers
from lit_compress.models.folded import from_student
from lit_compress.models.heads_and_neurons import KINDS, removable_groups, remove_from_layers
from lit_compress.models.in_place import quantize_
from lit_compress.models.input_names import model_inputs
from lit_compress.models.layout import LAYOUTS, Layout, layer_linears, layout_of
from lit_compress.models.load import quiet_transformers
from lit_compress.models.shapes import update_config
from lit_compress.nn.factorized import FactorizedEmbedding
from lit_compress.planning.structure import LayerShape, Structure

__all__ = ["ENGINES", "check_target", "dense_structure", "export_random", "outline", "random_model"]

# What runs each.
ENGINES: dict[str, EngineName] = {
    "onnx-int8": "onnxruntime",
    "onnx": "onnxruntime",
    "openvino-int8": "openvino",
    "openvino": "openvino",
    "hf": "eager",
}
# Ids are below it. Every call of a measurement has the same ones, and so a larger table takes no longer.
_VOCABULARY = 1024


def check_target(target: str, key: str = "--target") -> None:
    """Refuse a target that there is not, or whose runtime is not installed.

    Raises:
        UserError: says what there is, or what to install.

    """
    if target not in ENGINES:
        raise UserError(f"{key}: {target!r} is not one of {', '.join(ENGINES)}")
    needs = () if target == "hf" else ("onnx", ENGINES[target])
    if missing := [package for package in needs if find_spec(package) is None]:
        extra = target.removesuffix("-int8")
        install = f"pip install 'lit_compress[{extra}]'"
        raise UserError(f"{key}: {target!r} needs {missing[0]!r}, which is not installed; {install}")


def dense_structure(config: PretrainedConfig, key: str = "model") -> Structure:
    """The structure in which nothing is removed.

    Args:
        config: of any family with a layout.
        key: option named in errors.

    Raises:
        UserError: another family.

    """
    layout, sizes = _layout(config, key), config.to_dict()
    shape = LayerShape(heads=sizes[layout.heads_key], neurons=sizes[layout.width_key])
    return Structure(layers=(shape,) * sizes[layout.layers_key])


def outline(config: PretrainedConfig, key: str = "model") -> PreTrainedModel:
    """The dense model of a configuration on the device ``meta``, with the head that it names; without one, with none.

    A vocabulary that only the table of word embeddings depends on is small, and shapes that a compressed model's
    configuration says are left out.

    Raises:
        UserError: it describes no model.

    """
    _layout(config, key)
    with torch.device("meta"):
        model = _built(config, key)
        # A head that scores each word takes a time that the vocabulary decides.
        return model if model.get_output_embeddings() is not None else _built(_small(config), key)


def random_model(config: PretrainedConfig, structure: Structure) -> PreTrainedModel:
    """A model of random weights, the same every time, in evaluation mode; see :func:`outline`.

    Args:
        config: of the dense model.
        structure: what is left of it.

    Raises:
        UserError: the family cannot be cut to this structure.

    """
    dense = dense_structure(config)
    assert len(structure.layers) == len(dense.layers)
    with _seeded():
        model = _built(outline(config).config, "model")
        drop_layers(model, structure.kept)
        for kind in KINDS:
            counts = [getattr(shape, kind) for shape in structure.shapes]
            if any(count != getattr(dense.shapes[0], kind) for count in counts):
                _keep_first(model, kind, counts)
        if structure.rank is not None:
            table: Any = model.get_input_embeddings()
            model.set_input_embeddings(FactorizedEmbedding.empty_like(table, structure.rank))
    update_config(model)
    return model


def export_random(config: PretrainedConfig, structure: Structure, target: Target, folder: Path) -> None:
    """Fill an empty folder with :func:`random_model` in the format of a target.

    Those of integers are what quantization-aware training with weights of 7 bits gives, after a step on random ids.

    Raises:
        UserError: a package is missing, or the format cannot hold the model.

    """
    model = random_model(config, structure)
    if target.endswith("int8"):
        quantize_(model, bits=7, targets=list(layer_linears(model)))
        ids = torch.arange(32).reshape(2, 16)
        with _seeded(), torch.no_grad():
            model.train()(input_ids=ids, attention_mask=torch.ones_like(ids))  # ranges of activations
        model.eval()
    with quiet_transformers():
        format_writer(target)(from_student(model, _tokenizer(model)), folder)


def _layout(config: PretrainedConfig, key: str) -> Layout:
    if config.model_type not in LAYOUTS:
        raise UserError(f"{key}: {config.model_type!r} is not one of {', '.join(LAYOUTS)}")
    return LAYOUTS[config.model_type]


def _built(config: PretrainedConfig, key: str) -> PreTrainedModel:
    dense: Any = copy.deepcopy(config)
    if hasattr(dense, "quantization_config"):
        del dense.quantization_config
    name = str((config.architectures or [""])[0])
    head: Any = getattr(transformers, name, None) if name.isidentifier() else None
    try:
        with quiet_transformers():
            if head is not None:
                return head(dense).eval()
            return transformers.AutoModel.from_config(dense, dtype=torch.float32).eval()
    except Exception as error:  # whatever a foreign configuration makes Transformers raise is its fault
        raise UserError(f"{key}: the configuration describes no model: {first_line(error)}") from error


def _small(config: PretrainedConfig) -> PretrainedConfig:
    small: Any = copy.deepcopy(config)
    small.vocab_size = min(small.vocab_size, _VOCABULARY)
    if (small.pad_token_id or 0) >= small.vocab_size:
        small.pad_token_id = 0
    return small


def _keep_first(model: PreTrainedModel, kind: Any, counts: list[int]) -> None:
    layout = layout_of(model)
    if layout.shared:
        raise UserError(f"{kind} cannot be removed from single layers: {layout.unsupported['layers']}")
    selection = [
        (groups, torch.arange(groups.count) < count)
        for count, groups in zip(counts, removable_groups(model, kind), strict=True)
        if count < groups.count
    ]
    remove_from_layers(model, selection, kind)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """A tokenizer of the inputs that tokenizers of such a model make; nothing is tokenized with it."""
    several = getattr(model.config, "type_vocab_size", 2) > 1  # RoBERTa has one type, which its tokenizers leave out
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0}, unk_token="[PAD]")),
        pad_token="[PAD]",
        model_input_names=[name for name in model_inputs(model) if several or name != "token_type_ids"],
    )
