"""The results of a report in the model card of the exported folder, where the Hugging Face hub looks for them."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from lit_compress.errors import UserError, first_line
from lit_compress.files import atomic_file
from lit_compress.report.markdown import section, table
from lit_compress.report.sections import layers, metrics, reproduce, size_and_speed, slices
from lit_compress.report.summary import own_name

__all__ = ["update_model_card", "with_results"]

_LOGGER = logging.getLogger("huggingface_hub.repocard")
_BEGIN, _END = "<!-- lit_compress report -->", "<!-- end of lit_compress report -->"


def update_model_card(path: Path, results: Mapping[str, Any]) -> None:
    """Put a report's results into a README.md, in the place of those of an earlier report; nothing else changes."""
    text = path.read_text() if path.is_file() else ""
    with atomic_file(path) as staging:
        staging.write_text(with_results(text, results))


def with_results(card: str, results: Mapping[str, Any]) -> str:
    """A model card with the results in its front matter (``model-index``) and as a section at its end.

    What somebody wrote stays: only the keys ``model-index`` and, if it is missing, ``pipeline_tag`` of the front matter
    change, and what is between the two comments around the section. Comments in the front matter, the layout of its
    YAML, and results of others in its ``model-index`` are not kept.

    Raises:
        UserError: its front matter is not a YAML mapping.

    """
    level = _LOGGER.level
    _LOGGER.setLevel(logging.ERROR)  # a new card has no front matter, which would be a warning
    try:
        made = ModelCard(card, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"README.md: damaged front matter: {first_line(error)}; fix it, or remove the file") from error
    finally:
        _LOGGER.setLevel(level)
    data: Any = made.data
    data.pipeline_tag = data.pipeline_tag or results["pipeline_tag"]
    data.model_name = Path(results["run"]).name or "model"
    data.eval_results = _entries(results)
    body = made.text
    begin, end = body.find(_BEGIN), body.find(_END)
    before, after = (body[:begin], body[end + len(_END) :]) if 0 <= begin < end else (body.rstrip("\n") + "\n\n", "\n")
    made.text = f"{before}{_BEGIN}\n{_section(results)}\n{_END}{after}"
    return str(made)


def _entries(results: Mapping[str, Any]) -> list[EvalResult]:
    """The results in the hub's form; a value that is not defined is left out, because the hub takes numbers only."""
    # Only its last part: the folders above are those of the machine where it was measured.
    data = results["data"]["source"].rstrip("/").rpartition("/")[2]
    return [
        EvalResult(
            task_type=results["pipeline_tag"] or "other",
            dataset_type=re.sub(r"[^\w.-]+", "-", data).strip("-") or "text",
            dataset_name=data,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in results["models"][own_name(results)]["accuracy"].items()
        if value == value
    ]


def _section(results: Mapping[str, Any]) -> str:
    lines: list[str] = ["# Measured"]
    parts = [metrics(results), size_and_speed(results), layers(results)]
    for part in (*parts, slices(results)):
        if part is not None:
            lines += section(part)
    facts = [
        (key, value) for key, value in reproduce(results).tables[0].rows if key not in ("started from", "compared with")
    ]
    lines += ["", "## Measured with", "", *table(("", ""), facts)]
    return "\n".join(lines)
