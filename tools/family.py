"""A family of `lit_compress compress` as rows of results.csv: the command that makes it, and what it measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["family_command", "family_rows"]

_TASKS = {"TokenClassification": "token-classification", "QuestionAnswering": "question-answering"}
_OWN = ("train_file", "val_file", "text_columns", "label_column", "task")


def family_command(
    options: Mapping[str, Any], kind: str, data: Mapping[str, Any], model: Path, run: Path, seed: int
) -> list[str]:
    """Arguments of `lit_compress`.

    Args:
        options: of the plan: speedup, shape, target, minutes; ``members`` are not asked for but expected.
        kind: class of the data module.
        data: its arguments.
        model: dense model of the task.
        run: folder of the family.
        seed: of every training.

    """
    task = _TASKS.get(kind, data.get("task", "classification"))
    words = ["compress", f"--model={model}", f"--train={data['train_file']}", f"--run={run}", f"--task={task}"]
    words += [f"--val={data['val_file']}"] if "val_file" in data else []
    words += [f"--text_columns={json.dumps(data['text_columns'])}"] if "text_columns" in data else []
    words += [f"--label_column={data['label_column']}"] if "label_column" in data else []
    rest = {key: value for key, value in data.items() if key not in _OWN}
    given = {key: value for key, value in options.items() if key != "members"}
    words += [f"--{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in given.items()]
    return [*words, f"--data={json.dumps(rest)}", f"--seed={seed}"]


def family_rows(report: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each member that the plan names.

    Args:
        report: ``report.json`` of the family.
        options: of the plan.

    Raises:
        KeyError: a member is missing.

    """
    found = json.loads(report.read_text())
    members = {member["name"]: member for member in found["members"]}
    metric, machine = found["score"], found["machine"]
    dense_bytes = found["references"][1]["bytes"]
    differences = found["comparison"]["metrics"][metric]["differences"]
    return [
        {
            "stage": name,
            "metric": metric,
            "value": round(members[name]["score"], 5),
            "dense": round(found["scores"]["dense"][metric], 5),
            "model_compression": round(dense_bytes / members[name]["bytes"], 2),
            "int8_value": round(members[name]["score"], 5),
            "int8_speedup": round(members[name]["speedup"], 2),
            "int8_bytes": members[name]["bytes"],
            "machine": f"{machine['device']}, {machine['threads']} threads, {found['target']} at {found['shape']}",
            "device": machine["device"],
            "instructions": machine.get("processor", ""),
            "runtime": found["target"],
            # One that became the same model as another was measured as that one.
            **_interval(differences[members[name].get("same_as") or name]),
        }
        for name in options["members"]
    ]


def _interval(difference: Mapping[str, Any]) -> dict[str, float]:
    """Ends of the interval of a difference, if it has one."""
    ends = {f"difference_{end}": difference[end] for end in ("low", "high")}
    return {name: round(value, 5) for name, value in ends.items() if value is not None}
