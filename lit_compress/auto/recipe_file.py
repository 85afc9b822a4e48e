"""The recipe of a family, which somebody may have changed since."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_compress.auto.stages import TEACHER
from lit_compress.errors import UserError
from lit_compress.files import atomic_file
from lit_compress.recipe import read_recipe

__all__ = ["keep_recipe", "teacher_steps"]


def teacher_steps(file: Path) -> int | None:
    """Optimizer steps of the teacher in a recipe; None where it is not in it, or there is no recipe yet."""
    stages = read_recipe(file)["stages"] if file.is_file() else {}
    match stages.get(TEACHER):
        case {"trainer": {"max_steps": int(steps)}}:
            return steps
    return None


def keep_recipe(file: Path, stages: Mapping[str, Any]) -> None:
    """Write the recipe, unless it has these stages already.

    Args:
        file: of the recipe.
        stages: configurations of `fit`, by name.

    Raises:
        UserError: it has others of these names: somebody changed it, and it stays.

    """
    wanted = yaml.safe_load(yaml.safe_dump(dict(stages), sort_keys=False))  # as it is read
    recipe = read_recipe(file) if file.is_file() else None
    known = recipe["stages"] if recipe else {}
    complete = wanted.keys() <= known.keys()
    # One that is complete is not written again: it may have stages and comments of somebody's own.
    changed = [name for name in known if known[name] != wanted.get(name) and (name in wanted or not complete)]
    if changed or (recipe and not complete and file.read_text() != _recipe_text(recipe["run"], known)):
        what = f"another stage {changed[0]!r}" if changed else "other lines"
        raise UserError(
            f"--run: {str(file)!r} has {what} than compress wrote; run it with "
            f"`lit_compress recipe {shlex.quote(str(file))}`, or choose another --run"
        )
    if complete:
        return
    with atomic_file(file) as staging:
        staging.write_text(_recipe_text(str(file.parent), wanted))


def _recipe_text(run: str, stages: Mapping[str, Any]) -> str:
    text = "# Made by `lit_compress compress`; a stage alone: lit_compress recipe THIS_FILE --only NAME\n"
    return text + yaml.safe_dump({"run": run, "stages": dict(stages)}, sort_keys=False)
