"""`lit_compress migrate`: another tool's file as a configuration of `lit_compress fit`."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lit_compress.errors import UserError
from lit_compress.files import atomic_file, begins, check_file
from lit_compress.migrate.draft import FILL_IN, Draft, TaskName
from lit_compress.migrate.nn_pruning import from_nn_pruning, is_nn_pruning
from lit_compress.migrate.nncf import from_nncf, is_nncf
from lit_compress.migrate.sparseml import from_sparseml

__all__ = ["migrate", "migrated"]

_LARGEST = 1_000_000
_MARK = "# Made by `lit_compress migrate`"


def migrate(
    file: str,
    output: str,
    task: TaskName = "classification",
    pretrained: str | None = None,
    teacher: str | None = None,
    layers: int | None = None,
    recipe_args: dict[str, Any] | None = None,
    run: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn a SparseML recipe, an NNCF JPQD configuration or nn_pruning's arguments into a configuration of `fit`.

    Args:
        file: SparseML's .yaml or .md; NNCF's or nn_pruning's .json.
        output: YAML file to write.
        task: task of the model, which a recipe does not contain.
        pretrained: pretrained model of the student, which a recipe does not contain either.
        teacher: of the student, if there is distillation.
        layers: transformer layers of the model, for a recipe that drops layers.
        recipe_args: values of a recipe's variables, like SparseML's option of that name.
        run: run folder; default: `runs/` and the name of the file.
        overwrite: replace an existing file written by this command.

    """
    target = Path(output)
    check_file(target, begins(_MARK), overwrite, inputs=[file])
    draft = Draft(task=task, pretrained=pretrained, teacher=teacher)
    kind = migrated(file, draft, recipe_args, layers)
    settings = draft.settings(run or f"runs/{Path(file).stem}")
    with atomic_file(target) as staging:
        staging.write_text(_head(file, kind, draft, settings) + yaml.safe_dump(settings, sort_keys=False, width=120))
    console = Console(highlight=False, soft_wrap=True)
    for title, lines in _lists(draft, settings):
        console.print(f"{title}:", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)
    shown = shlex.join(["lit_compress", "fit", "--config", output, "--print_config"])
    console.print(f"Saved as {target}; look at it with: {shown}", markup=False)


def migrated(file: str, draft: Draft, recipe_args: dict[str, Any] | None = None, layers: int | None = None) -> str:
    """Fill a draft from a file; gives the name of what the file is.

    Raises:
        UserError: no such file, or none of the three.

    """
    path = Path(file)
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"file: {file!r} is larger than any recipe; give a SparseML recipe or a JSON of settings")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"file: {file!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"file: {file!r} is not text; give a SparseML recipe or a JSON of settings") from error
    if path.suffix != ".json":
        from_sparseml(text, draft, recipe_args, layers)
        return "SparseML recipe"
    for name, value in (("recipe_args", recipe_args), ("layers", layers)):
        if value is not None:
            raise UserError(f"--{name}: {value} has no effect on a JSON file; leave it out")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"file: {file!r} is not JSON: {error}") from error
    if isinstance(content, dict) and is_nn_pruning(content):
        from_nn_pruning(content, draft)
        return "set of nn_pruning arguments"
    if isinstance(content, dict) and is_nncf(content):
        from_nncf(content, draft)
        return "NNCF configuration"
    raise UserError(
        f"file: {file!r} is neither an NNCF configuration (it has no `compression`) nor arguments of nn_pruning "
        "(such as `dense_pruning_method`)"
    )


def _lists(draft: Draft, settings: dict[str, Any]) -> list[tuple[str, list[str]]]:
    lists = [
        ("To fill in", _open(settings)),
        ("Not translated", draft.left_out),
        ("Translated with a difference", draft.changed),
    ]
    return [(title, lines) for title, lines in lists if lines]


def _open(settings: dict[str, Any]) -> list[str]:
    found = []
    for part in ("model", "data"):
        found += [f"{part}.{key}" for key, value in settings[part]["init_args"].items() if value == FILL_IN]
    return found


def _head(file: str, kind: str, draft: Draft, settings: dict[str, Any]) -> str:
    lines = [f"{_MARK} from the {kind} {Path(file).name}."]
    for title, entries in _lists(draft, settings):
        lines += ["#", f"# {title}:", *(f"#   {' '.join(entry.split())}" for entry in entries)]
    return "\n".join(lines) + "\n"
