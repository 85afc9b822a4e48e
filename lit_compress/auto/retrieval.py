"""How far up the members of a sentence encoder's family find the right text, next to how well they score pairs."""

from collections.abc import Mapping
from typing import Any

from lit_compress.auto.request import Request
from lit_compress.errors import UserError
from lit_compress.guessed_data import guess_data
from lit_compress.models.load import load_config
from lit_compress.report.phrasing import number
from lit_compress.report.section import Table
from lit_compress.tasks import EmbeddingTask

__all__ = ["retrieval_section", "retrieval_table"]

# Options of the trainings' data that make vectors what they are.
_SHARED = ("pooling", "normalize", "prompts", "max_length")


def retrieval_section(request: Request) -> dict[str, Any]:
    """The `data` section that reads the queries and texts of ``request.retrieval``.

    Raises:
        UserError: the file cannot be read, or holds scores of pairs.

    """
    assert request.retrieval is not None
    length = EmbeddingTask.options_for(load_config(request.model, "--model")).get("max_length")
    given = {"max_length": length} if length else {}
    given |= {name: request.data[name] for name in _SHARED if name in request.data}
    try:
        guessed = guess_data(request.retrieval, model=request.model, task="embedding", given=given)
    except UserError as error:
        raise UserError(f"--retrieval: {error}") from error
    if label := guessed.options.get("label_column"):
        raise UserError(
            f"--retrieval: {request.retrieval!r} has scores of pairs in {label!r}; give queries and the text that each "
            "is to find, without scores"
        )
    section = guessed.section
    options = section["init_args"]
    options["val_file"] = options["train_file"]  # one that is not trained on must be named all the same
    options.pop("val_fraction", None)
    return section


def retrieval_table(results: Mapping[str, Any]) -> Table:
    """A line for each model that was asked, the dense one first, with the interval of the first metric."""
    found = results["retrieval"]
    first, *others = next(iter(found["scores"].values()))
    models = found["comparison"]["metrics"][first]["models"]
    rows = []
    for name, scores in found["scores"].items():
        entry = models[name]
        value = number(entry["value"], 100.0)
        if entry["low"] is not None:
            value += f" ({number(entry['low'], 100.0)}–{number(entry['high'], 100.0)})"
        rows.append((name, value, *(number(scores[metric], 100.0) for metric in others)))
    return Table(header=("", first, *others), rows=rows)
