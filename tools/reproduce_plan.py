"""What is to be run: the plans of tools/reproduce*.yaml, and the settings of the stages that they change."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "MASKED_WORDS",
    "MINILM",
    "PLAN",
    "TEACHER",
    "UPSTREAM",
    "merged",
    "place_of",
    "plan_of",
    "replaced",
    "stages_of",
]

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "tools" / "reproduce.yaml"
TEACHER, MINILM = "teacher", "minilm"
MASKED_WORDS = "MaskedLanguageModeling"
UPSTREAM = (MASKED_WORDS, "SentenceTexts")  # data without labels, of stages that are trained once for all tasks


def plan_of(model: str) -> dict[str, Any]:
    """The plan of a model: its own recipes, and the data sets of all with what it changes of them.

    Raises:
        SystemExit: no plan has this name.

    """
    plan = yaml.safe_load(PLAN.read_text())
    if model == MINILM:
        return plan
    own = PLAN.with_name(f"reproduce_{model}.yaml")
    if not own.is_file():
        raise SystemExit(f"--model: {model!r} has no plan {own.name}; use {MINILM}, mpnet")
    changes = yaml.safe_load(own.read_text())
    return changes | {"data": merged(plan["data"], changes.get("data") or {})}


def place_of(stage: str, settings: dict[str, Any], name: str, plan: dict[str, Any], dataset: str) -> Path:
    """Where a stage runs, the seed apart: the dense model with its data set, upstream stages once for all tasks."""
    if stage == TEACHER:
        return Path(dataset)
    upstream = settings["data"]["class_path"] in UPSTREAM
    return Path(plan["recipes"][name].get("upstream", dataset) if upstream else dataset) / name


def stages_of(plan: dict[str, Any], name: str, dataset: str) -> dict[str, dict[str, Any]]:
    """Settings of the stages of one recipe on one data set, as the plan changes them.

    Args:
        plan: content of reproduce.yaml.
        name: recipe.
        dataset: data set.

    Raises:
        KeyError: the plan changes a stage that the recipe does not have.

    """
    entry = plan["recipes"][name]
    path = ROOT / entry["recipe"]
    own, upstream = plan["data"][dataset], plan["data"][entry.get("upstream", dataset)]
    stages: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["stages"]
    for stage, given in stages.items():
        if "config" in given:
            # One of the package is meant wherever the file is.
            given["config"] = [
                file if file.startswith("@") else str((path.parent / file).resolve()) for file in given["config"]
            ]
        source = upstream if given["data"]["class_path"] in UPSTREAM else own
        augmented = "augmentation" in given["data"]["init_args"] and plan.get("augmentation")
        more = {"init_args": {"augmentation": plan["augmentation"]}} if augmented else {}
        scaled = _scaled(given, entry.get("learning_rate_factor", 1.0) if stage != TEACHER else 1.0)
        stages[stage] = scaled | {"data": merged(source["data"], more)}
    dense = merged(plan.get(TEACHER) or {}, own.get(TEACHER) or {})
    for changes in ({TEACHER: dense}, entry.get("stages") or {}, entry["data"][dataset] or {}):
        for stage, change in changes.items():
            if change is None:
                del stages[stage]
            elif "from" in change:  # another of its kind
                rest = {key: value for key, value in change.items() if key != "from"}
                stages[stage] = merged(deepcopy(stages[change["from"]]), rest)
            elif stage in stages or stage != TEACHER:
                stages[stage] = merged(stages[stage], change)
    return stages


def _scaled(value: Any, factor: float) -> Any:
    """Settings with every learning rate of the weights times a factor."""
    if isinstance(value, list):
        return [_scaled(inner, factor) for inner in value]
    if not isinstance(value, dict):
        return value
    rates = ("learning_rate", "final_learning_rate")
    return {
        key: float(f"{inner * factor:.3g}") if key in rates and factor != 1 else _scaled(inner, factor)
        for key, inner in value.items()
    }


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them; mappings are merged at any depth, all else is replaced, and null removes."""
    found = dict(base)
    for key, value in over.items():
        if value is None:
            found.pop(key, None)
            continue
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def replaced(value: Any, words: dict[str, str]) -> Any:
    """The same settings with words in them replaced: the start of a path, the seed, the model of a stage."""
    if isinstance(value, dict):
        return {key: replaced(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, words) for inner in value]
    if isinstance(value, str):
        if value.startswith("stage:"):
            return words.get(value, value)
        for old, new in words.items():
            value = value.replace(old, new)
    return value
