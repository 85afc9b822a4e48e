"""How many tokens a model can read."""

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig

from lit_compress.errors import UserError, first_line
from lit_compress.models.load import quiet_transformers

__all__ = ["check_length", "longest_input"]

# What encoders call their table of absolute positions.
_TABLES = ("position_embeddings", "embed_positions")


def longest_input(config: PretrainedConfig) -> int | None:
    """The most tokens that a model takes; None when it counts positions relatively and takes any number.

    The model's own modules say so, whatever its family: the table of positions has an end, and where the table has a
    padding index (RoBERTa's, MPNet's), positions begin after it. Models that rotate by position are taken at the word
    of their configuration.

    Raises:
        UserError: the configuration describes no model.

    """
    try:
        with torch.device("meta"), quiet_transformers():
            modules = dict(AutoModel.from_config(config).named_modules())
    except Exception as error:  # whatever a foreign configuration makes Transformers raise is its fault
        what = config.name_or_path or config.model_type
        raise UserError(f"config.json of {what!r} describes no model: {first_line(error)}") from error
    said = getattr(config, "max_position_embeddings", None)
    tables = [
        module
        for name, module in modules.items()
        if name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding)
    ]
    if tables:
        # The first: others count something else than tokens.
        table = tables[0]
        longest = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        return min(longest, said or longest)
    return said if any("rotary" in name for name in modules) else None


def check_length(config: PretrainedConfig, length: int, whose: str, setting: str = "data.max_length") -> None:
    """Refuse a longest input that a model has no positions for: it would end when the first long text comes.

    Args:
        config: of the model.
        length: in tokens.
        whose: option and source of the model, for the error.
        setting: config key of the length, for the error.

    Raises:
        UserError: it has not.

    """
    longest = longest_input(config)
    if longest is not None and length > longest:
        raise UserError(f"{setting}: {length} is above {longest}, the longest input of {whose}")
