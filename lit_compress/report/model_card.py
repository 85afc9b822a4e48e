"""The results of a report in the model card of the exported folder, where the Hugging Face hub looks for them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_compress.files import atomic_file
from lit_compress.report.card import section, table
from lit_compress.report.sections import again, cost, done, gain, own_name, where

__all__ = ["update_model_card", "with_results"]

_BEGIN, _END = "<!-- lit_compress report -->", "<!-- end of lit_compress report -->"
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# Names of tasks on the hub; pretraining has none of its own.
_TASKS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "masked_lm": "fill-mask",
    "pretraining": "fill-mask",
}


def update_model_card(path: Path, results: Mapping[str, Any]) -> None:
    """Put a report's results into a README.md, in the place of those of an earlier report; nothing else changes."""
    text = path.read_text() if path.is_file() else ""
    with atomic_file(path) as staging:
        staging.write_text(with_results(text, results))


def with_results(card: str, results: Mapping[str, Any]) -> str:
    """A model card with the results in its front matter (``model-index``) and as a section at its end.

    What somebody wrote stays: only the keys ``model-index`` and, if it is missing, ``pipeline_tag`` of the front matter
    change, and what is between the two comments around the section.
    """
    found = _FRONT.match(card)
    front = yaml.safe_load(found[1]) if found else {}
    if not isinstance(front, dict):
        front = {}
    body = card[found.end() :] if found else card
    front |= {"pipeline_tag": front.get("pipeline_tag", _TASKS[results["task"]]), "model-index": [_entry(results)]}
    begin, end = body.find(_BEGIN), body.find(_END)
    before, after = (body[:begin], body[end + len(_END) :]) if 0 <= begin < end else (body.rstrip("\n") + "\n\n", "\n")
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{before}{_BEGIN}\n{_section(results)}\n{_END}{after}"


def _entry(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results in the hub's form; a value that is not defined is left out, because the hub takes numbers only."""
    accuracy = results["models"][own_name(results)]["accuracy"]
    # Only its last part: the folders above are those of the machine where it was measured.
    data = results["data"]["source"].rstrip("/").rpartition("/")[2]
    return {
        "name": Path(results["run"]).name or "model",
        "results": [
            {
                "task": {"type": _TASKS[results["task"]]},
                "dataset": {"name": data, "type": re.sub(r"[^\w.-]+", "-", data).strip("-") or "text"},
                "metrics": [
                    {"type": metric, "name": metric, "value": value}
                    for metric, value in accuracy.items()
                    if value == value
                ],
            }
        ],
    }


def _section(results: Mapping[str, Any]) -> str:
    lines: list[str] = ["# Measured"]
    parts = [cost(results), gain(results), done(results)]
    for part in (*parts, where(results)):
        if part is not None:
            lines += section(part)
    facts = [
        (key, value) for key, value in again(results).tables[0].rows if key not in ("started from", "compared with")
    ]
    lines += ["", "## Measured with", "", *table(("", ""), facts)]
    return "\n".join(lines)
