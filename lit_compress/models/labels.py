"""The order of a head's classes: that of the data, whatever order the model was trained with."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.errors import UserError

__all__ = ["LabelMap", "label_names", "label_order", "reorder_head"]

# Names of a model's classes -> labels of the data. YAML reads a label of digits as a number.
LabelMap = Mapping[str, str | int]

_SHOWN = 10


def label_names(config: PretrainedConfig) -> list[str]:
    """Names of a model's classes in the order of their ids."""
    names: Any = config.id2label or {}
    return [str(names[index]) for index in sorted(names)]


def label_order(
    config: PretrainedConfig, labels: Sequence[str] | None, label_map: LabelMap | None, source: str, key: str
) -> list[int] | None:
    """Which class of a model each label of the data is; None when the orders are the same.

    Names are compared, not numbers. A model whose names say nothing (``LABEL_0``, ``LABEL_1``) is taken to have the
    order of the data.

    Args:
        config: of a model with a head.
        labels: of the data, in the order of their ids; None for a regression.
        label_map: names of the model's classes -> labels of the data, where they differ; others stand for themselves.
        source: where the model comes from, for the error and for what is said about another order.
        key: config key named in the error.

    Raises:
        UserError: other classes than those of the data.

    """
    wanted = len(labels) if labels else 1
    if config.num_labels != wanted:
        raise UserError(
            f"{key}: {source!r} has {config.num_labels} labels and the data has {wanted}; "
            "give a model fine-tuned on the same labels"
        )
    if not labels:
        return None
    id2label: dict[Any, Any] = config.id2label or {}
    names = [str(id2label.get(index, index)) for index in range(len(labels))]
    if names == list(labels):
        return None
    given = {str(name): str(label) for name, label in (label_map or {}).items()}
    generic = names == [f"LABEL_{index}" for index in range(len(names))]
    if generic and not any(name in given for name in names):
        return None
    # What a name says already needs no map: the same map serves a teacher with other names.
    mapped = names if sorted(names) == sorted(labels) else [given.get(name, name) for name in names]
    if sorted(mapped) != sorted(labels) or len(set(mapped)) < len(mapped):
        as_mapped = "" if mapped == names else f", by label_map {_shown(mapped)},"
        raise UserError(
            f"{key}: {source!r} has the classes {_shown(names)}{as_mapped} and the data {_shown(labels)}; "
            f"say which is which with {'model.label_map' if key.startswith('model.') else '--label_map'}: "
            f"{{{names[0]}: one of the data's, ...}}"
        )
    order = [mapped.index(label) for label in labels]
    if order == list(range(len(order))):
        return None
    logging.getLogger(__name__).warning(
        "%s: %r has its classes in the order %s; its head was brought into that of the data, %s",
        *(key, source, _shown(names), _shown(labels)),
    )
    return order


@torch.no_grad()
def reorder_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Bring the classes of a head into another order, in place.

    Args:
        model: with a head for classification or token classification.
        order: for each class to come, its number now.

    """
    inside = {id(module) for module in model.base_model.modules()}
    *_, last = (each for each in model.modules() if isinstance(each, nn.Linear) and id(each) not in inside)
    assert last.out_features == len(order)
    for parameter in (last.weight, last.bias):
        if isinstance(parameter, Tensor):
            parameter.copy_(parameter[list(order)])


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{list(names[:_SHOWN])}{more}"
