"""What a SentenceTransformer or a CrossEncoder has around its Hugging Face model, saved with that model."""

import copy
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lit_compress.errors import UserError
from lit_compress.models.sentence_embedding import DENSE, load_dense
from lit_compress.sentence_settings import CROSS_ENCODER_KEY, SENTENCE_KEY, keep_settings, settings_of

__all__ = ["check_prompts", "with_settings_of"]

_log = logging.getLogger(__name__)


@contextmanager
def with_settings_of(model: Any, student: PreTrainedModel) -> Iterator[None]:
    """Let the Hugging Face model in a SentenceTransformer or CrossEncoder say what the others do, until the block ends.

    Args:
        model: that is trained; of another kind, nothing is done.
        student: the Hugging Face model in it.

    """
    library: Any = sys.modules.get("sentence_transformers")
    if library is None:  # then it is neither
        yield
        return
    before = student.config
    student.config = copy.deepcopy(before)
    try:
        if isinstance(model, library.CrossEncoder):
            kind = type(model.activation_fn)
            setattr(student.config, CROSS_ENCODER_KEY, {"activation_fn": f"{kind.__module__}.{kind.__qualname__}"})
        elif isinstance(model, library.SentenceTransformer):
            _take_settings(model, student)
        elif type(model).__module__.startswith("sentence_transformers."):
            _log.warning("save_compressed: of a %s the transformer alone is saved", type(model).__name__)
        yield
    finally:
        student.config = before
        student._modules.pop(DENSE, None)


def check_prompts(model: nn.Module | None) -> None:
    """Raise a ``UserError`` where a reranker puts a text before every pair, which a compressed one would lose."""
    library: Any = sys.modules.get("sentence_transformers")
    if library is None or not isinstance(model, library.CrossEncoder):
        return
    if name := getattr(model, "default_prompt_name", None):
        raise UserError(
            f"strategies: the CrossEncoder has default_prompt_name {name!r}, which is not kept; set it to None, and "
            "put the prompt into the data"
        )


def _take_settings(model: Any, student: PreTrainedModel) -> None:
    """Read the settings of a SentenceTransformer as it saves them itself, without its transformer."""
    source = student.config.name_or_path
    with TemporaryDirectory() as folder:
        _write_modules(model, Path(folder))
        student.config.name_or_path = folder
        vars(student.config).pop(SENTENCE_KEY, None)
        try:
            settings = settings_of(student.config)
            assert settings is not None  # its file is there
            keep_settings(student.config, settings)
            load_dense(student)
        except UserError as error:
            vars(student.config).pop(SENTENCE_KEY, None)
            reason = str(error).replace(repr(folder), "the SentenceTransformer")
            _log.warning("save_compressed: the transformer alone is saved, because %s", reason)
        finally:
            student.config.name_or_path = source


def _write_modules(model: Any, folder: Path) -> None:
    entries = []
    for index, module in enumerate(model):
        kind = type(module)
        path = f"{index}_{kind.__name__}" if index else ""
        entries.append({"idx": index, "name": str(index), "path": path, "type": f"{kind.__module__}.{kind.__name__}"})
        if index:
            (folder / path).mkdir()
            module.save(str(folder / path))
    contents = {
        "modules.json": entries,
        "sentence_bert_config.json": {
            "max_seq_length": model.max_seq_length,
            "do_lower_case": getattr(model[0], "do_lower_case", False),
        },
        "config_sentence_transformers.json": {
            "prompts": model.prompts,
            "default_prompt_name": model.default_prompt_name,
            "similarity_fn_name": getattr(model, "similarity_fn_name", None),
        },
    }
    model.tokenizer.save_pretrained(folder)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
