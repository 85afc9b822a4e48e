"""Whether a folder's tokenizer, loaded as everybody loads it, reads texts as the model was trained on them."""

from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_compress.data.tables import load_tokenizer
from lit_compress.data.text_data import TextData
from lit_compress.errors import UserError

__all__ = ["check_tokenizer"]

# What a serving program relies on, apart from the ids of a text.
_SETTINGS = (
    *("padding_side", "truncation_side", "model_max_length"),
    *(f"{name}_token_id" for name in ("pad", "cls", "sep", "mask", "unk", "bos", "eos")),
)


def check_tokenizer(folder: str | Path, data: TextData, rows: int = 100) -> None:
    """Compare ``AutoTokenizer.from_pretrained(folder)`` with what a data module gave the model.

    Args:
        folder: with a saved tokenizer.
        data: set up for validation; its first validation examples are the examples.
        rows: how many of them.

    Raises:
        UserError: ids, token types, padding, truncation or special tokens differ; it names what does.

    """
    plain = load_tokenizer(str(folder), "data.tokenizer")
    name = data.tokenizer_name
    if settings := _differing(plain, data.tokenizer, _SETTINGS):
        raise UserError(
            f"data.tokenizer: {name!r} has other settings once it is saved and loaded by AutoTokenizer ({settings}); "
            "give a folder that save_pretrained wrote"
        )
    for call, seen in islice(data.token_examples(), rows):
        read: Any = plain(**call)
        if wrong := next((column for column in seen if column in read and list(read[column]) != seen[column]), None):
            text = call["text"] if isinstance(call["text"], str) else " ".join(call["text"])
            settings = _differing(plain, data.tokenizer, ("add_prefix_space", "do_lower_case"))
            raise UserError(
                f"data.tokenizer: {name!r} gave training the {wrong} {seen[wrong][:8]} for {text[:40]!r}, and once it "
                f"is saved and loaded by AutoTokenizer gives {list(read[wrong])[:8]}{settings and f' ({settings})'}; "
                "give a folder that save_pretrained wrote"
            )


def _differing(plain: PreTrainedTokenizerBase, trained: PreTrainedTokenizerBase, names: tuple[str, ...]) -> str:
    values = ((name, getattr(trained, name, None), getattr(plain, name, None)) for name in names)
    return ", ".join(
        f"{name} {before!r} in training, {after!r} there" for name, before, after in values if before != after
    )
