"""`lit_compress recipe`: several fits in a row, each an ordinary configuration that may start from an earlier one."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.files import atomic_file, begins, check_file, last_of
from lit_compress.shipped_configs import config_path, short_path

__all__ = ["Stage", "load_recipe", "read_recipe", "recipe", "run_stage"]

_STAGE = "stage:"
# Settings of a stage that are the recipe's own; everything else goes to `fit`.
_OWN = ("config", "dense")
# How the file of a stage begins.
_MARK = "# from "
# What a stage is stopped with.
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One fit of a recipe.

    Args:
        name: its name; its run is the folder of that name in the recipe's.
        folder: run folder.
        settings: what the recipe says itself, as a `fit` configuration.
        written: the same as it is written there, whichever folder it is run in.
        configs: configuration files below it, in order.
        overrides: options of the command line, last of all.
        dense: model that its report compares with; None is its teacher.

    """

    name: str
    folder: Path
    settings: dict[str, Any]
    written: dict[str, Any]
    configs: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    dense: str | None = None

    @property
    def file(self) -> Path:
        """Where its settings are kept, for `fit` to read and for people to run it alone."""
        return self.folder.parent / "stages" / f"{self.name}.yaml"

    @property
    def state(self) -> str:
        """``finished``, ``interrupted`` (there is a checkpoint to resume from) or ``new``."""
        if (self.folder / "model" / "config.json").is_file():
            return "finished"
        return "interrupted" if last_of(self.folder).is_file() else "new"

    @property
    def unfinished(self) -> list[str]:
        """What a finished training has left undone of its compression, in lines."""
        if self.state != "finished":
            return []
        from lit_compress.export.run_folder import parse_file
        from lit_compress.models.manifest_file import MANIFEST_FILE, unfinished_lines

        return unfinished_lines(parse_file(self.folder / "model" / MANIFEST_FILE, json.loads, [], "recipe"))

    @property
    def fingerprints(self) -> list[str]:
        """Changes with anything that the stage is made from; and as it was when the place was part of it."""
        files = [path.read_text() for path in self.configs]
        parts = [[yaml.safe_dump(settings), *files, *self.overrides] for settings in (self.written, self.settings)]
        return [hashlib.sha256("\0".join(each).encode()).hexdigest() for each in parts]

    def command(self) -> list[str]:
        """Arguments of `lit_compress` that run it, or continue with it."""
        files = [*(_short(path) for path in self.configs), str(self.file)]
        resume = ["--ckpt_path", "last"] if self.state == "interrupted" else []
        return ["fit", *(word for file in files for word in ("--config", file)), *self.overrides, *resume]

    def check(self) -> None:
        """Refuse a place that is taken by what no fit of this stage left; for before any work.

        Raises:
            UserError: what is in the folder or in the file is not part of a fit that can begin again.

        """
        from lit_compress.training.run_lock import check_new, has_begun

        check_file(self.file, begins(_MARK), key="--run")
        if self.state == "new":
            check_new(self.folder, begun=has_begun(self.folder))

    def write(self) -> None:
        """Keep the settings; of a stage that was begun before they must be the same.

        Raises:
            UserError: the stage was begun with other settings.

        """
        from lit_compress.export.run_folder import absolute_paths

        marks = [f"{_MARK}{fingerprint}" for fingerprint in self.fingerprints]
        if self.file.is_file():
            known = {*marks} & {*self.file.read_text().splitlines()}
            if not known and self.state != "new":
                raise UserError(
                    f"recipe: stage {self.name!r} in {str(self.folder)!r} was made with other settings; "
                    "choose another --run, or remove that folder and those of later stages"
                )
        # For whoever runs it alone, from another working directory.
        settings = absolute_paths(self.settings)
        with atomic_file(self.file) as staging:
            staging.write_text(f"{marks[0]}\n{yaml.safe_dump(settings, sort_keys=False)}")


def recipe(
    config: str,
    overrides: Sequence[str] = (),
    run: str | None = None,
    only: str | None = None,
    dry_run: bool = False,
    unfinished: bool = False,
) -> None:
    """Run the stages of a recipe, each a `fit`; finished ones are skipped, an interrupted one continues.

    Args:
        config: YAML file with `run` and `stages`, or the name of one of the package's (`@recipes/rosita/small`).
        overrides: options of `fit` for every stage (`--trainer.max_epochs 1`) or, after a stage's name, for that one
            (`--teacher.trainer.max_epochs 1`).
        run: folder for all stages, instead of the file's.
        only: run only this stage; the ones it reads must be finished.
        dry_run: print the plan and do nothing.
        unfinished: continue from a stage whose training stopped before its compression was complete.

    """
    stages = load_recipe(config, run, overrides)
    if only is not None and only not in stages:
        raise UserError(f"--only: {only!r} is not a stage of {config!r}; it has {', '.join(stages)}")
    console = Console(highlight=False, emoji=False)
    todo = [stages[only]] if only else list(stages.values())
    if not dry_run:
        from lit_compress.report.compare import check_comparison, compare

        for stage in todo:
            stage.check()
        check_comparison(todo[0].folder.parent)
    for number, stage in enumerate(todo, 1):
        console.rule(f"{number} of {len(todo)}: {stage.name} ({stage.state})", align="left")
        say(shlex.join(["lit_compress", *stage.command()]))
        if dry_run:
            console.print(yaml.safe_dump(stage.settings, sort_keys=False), markup=False)
            continue
        if stage.state != "finished" and not unfinished:
            _require_finished(stages, stage)
        stage.write()
        if stage.state != "finished":
            run_stage(stage)
        elif stage.unfinished:
            say(f"Not finished: {'; '.join(stage.unfinished)}")
    if not dry_run:
        finished = {name: (stage.folder, stage.dense) for name, stage in stages.items() if stage.state == "finished"}
        compare(finished, next(iter(stages.values())).folder.parent)


def load_recipe(config: str | Path, run: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Stage]:
    """The stages of a recipe by name, in order.

    ``stage:NAME`` anywhere in a stage's settings is the model that an earlier stage leaves.

    Args:
        config: YAML file, or the name of one of the package's: ``run``, ``stages`` (name to `fit` settings, with
            ``config: [files]`` relative to the recipe and ``dense: model``), and keys beginning with ``x-`` to hang
            YAML anchors on.
        run: folder for all stages instead of the file's.
        overrides: options of `fit`, see :func:`recipe`.

    Raises:
        UserError: no such file, no recipe, a stage that reads a later one, a missing file.

    """
    path = Path(config_path(str(config), "recipe"))
    content = read_recipe(path)
    root = Path(run or content["run"])
    shared, own = _split_overrides(overrides, list(content["stages"]))
    stages: dict[str, Stage] = {}
    for name, settings in content["stages"].items():
        if not isinstance(settings, Mapping):
            raise UserError(f"recipe: stage {name!r} of {str(path)!r} must be the settings of a fit, by name")
        if name == "stages" or not str(name).replace("_", "").replace("-", "").isalnum():
            raise UserError(f"recipe: {name!r} in {str(path)!r} cannot name a stage; use letters, digits, _ and -")
        resolved = _resolve(dict(settings), {known: stages[known].folder / "model" for known in stages}, name)
        configs = tuple(
            path.parent / config_path(file, f"recipe: stages.{name}.config") for file in resolved.get("config") or []
        )
        if missing := [file for file in configs if not file.is_file()]:
            raise UserError(f"recipe: stages.{name}.config: {str(missing[0])!r} does not exist")
        stages[name] = Stage(
            name=name,
            folder=root / name,
            settings={k: v for k, v in resolved.items() if k not in _OWN} | {"run": str(root / name)},
            written={k: v for k, v in settings.items() if k not in _OWN},
            configs=configs,
            overrides=(*shared, *own[name]),
            dense=resolved.get("dense"),
        )
    return stages


def read_recipe(path: Path) -> dict[str, Any]:
    """The content of a recipe: ``run`` and ``stages``, as they are written.

    Raises:
        UserError: no such file, or no recipe.

    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"recipe: {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe: {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict) or not content["stages"]:
        raise UserError(f"recipe: {str(path)!r} has no `stages`; a single fit is run with `lit_compress fit --config`")
    if unknown := [key for key in content if key not in ("run", "stages") and not str(key).startswith("x-")]:
        raise UserError(f"recipe: unknown key {unknown[0]!r} in {str(path)!r}; known are run, stages and x-*")
    return {"run": "runs/" + path.stem} | content


def _resolve(value: Any, made: Mapping[str, Path], stage: str) -> Any:
    """Settings with every ``stage:NAME`` replaced by a folder."""
    if isinstance(value, dict):
        return {key: _resolve(inner, made, stage) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner, made, stage) for inner in value]
    if isinstance(value, str) and value.startswith(_STAGE):
        name = value.removeprefix(_STAGE)
        if name not in made:
            raise UserError(
                f"recipe: stage {stage!r} reads {value!r}, which is not an earlier stage; earlier are "
                f"{', '.join(made) or '(none)'}"
            )
        return str(made[name])
    return value


def _reads(value: Any, stage: str) -> bool:
    """Whether settings name the model of a stage."""
    if isinstance(value, dict | list):
        return any(_reads(inner, stage) for inner in (value.values() if isinstance(value, dict) else value))
    return value == f"{_STAGE}{stage}"


def _split_overrides(words: Sequence[str], stages: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Options for all stages, and options by stage without its name."""
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in stages}
    target = shared
    for word in words:
        if word.startswith("--"):
            first, _, rest = word[2:].partition(".")
            target = own[first] if first in own and rest else shared
            word = f"--{rest}" if target is not shared else word
        elif target is shared and not shared:
            raise UserError(f"recipe: {word!r} is not an option; write --key value, or --stage.key value for one stage")
        target.append(word)
    return shared, own


def _require_finished(stages: Mapping[str, Stage], stage: Stage) -> None:
    """Refuse to resume from a stage whose compression is not complete."""
    for name, earlier in stages.items():
        if _reads(stage.written, name) and (lines := earlier.unfinished):
            raise UserError(
                f"recipe: stage {name!r}: {'; '.join(lines)}; train it longer in another --run, or continue "
                "from it with --unfinished true"
            )


def _short(path: Path) -> str:
    """Its name, when it comes with the package; relative to where the command is given, when it is below."""
    if shipped := short_path(Path(os.path.normpath(path))):
        return shipped
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def run_stage(stage: Stage) -> None:
    """Run a stage in a process of its own: its memory, its seeds and its ranks end with it.

    Raises:
        UserError: it ended with an error.

    """
    command = [sys.executable, "-m", "lit_compress", *stage.command()]
    process = subprocess.Popen(command)
    # It saves before it ends, so it is waited for.
    before = [(number, signal.signal(number, lambda n, _: process.send_signal(n))) for number in _STOPPING]
    try:
        status = process.wait()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if status in [128 + number for number in _STOPPING]:
        sys.stderr.write("lit_compress: stopped, too; the same command continues with this stage\n")
        sys.exit(status)
    if status:
        raise UserError(
            f"recipe: stage {stage.name!r} ended with exit status {status} (see above); "
            "run the same command again to continue from here"
        )
