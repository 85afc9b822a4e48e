"""A request to `compress`, checked before anything is read, and kept in the run folder so that it can be resumed."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from lit_compress.choices import GuessedTask, Target, TrainerPrecision
from lit_compress.errors import UserError
from lit_compress.files import atomic_file, check_shared_folder

__all__ = ["PLAN", "SPEEDUPS", "Request", "is_family", "keep_request"]

SPEEDUPS = (2.0, 4.0, 8.0)
REQUEST = "compress.json"  # in the folder of a family
PLAN = "plan.json"  # next to it, once there is a plan


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a family is to be.

    Args:
        model: encoder, with or without the head of the task.
        train: training examples.
        val: validation examples; None holds some of the training examples out.
        speedups: ascending, to the dense model in fp32 in the same runtime.
        max_loss: points that the recommended member may lose.
        target: runtime and precision.
        shape: batch size and tokens at which speed is measured; None is one text of ``max_length``.
        threads: CPU threads; None leaves it to PyTorch.
        minutes: time limit for all trainings together; None trains for the usual number of steps.
        task: task; None guesses it from the columns.
        text_columns: columns with the texts; None guesses them.
        label_column: column with the labels; None guesses it.
        data: options of the data module that are decided.
        label_map: names of the model's classes -> labels of the data.
        retrieval: file of queries and the texts that they are to find, on which a sentence encoder is measured, too.
        seed: of every training.
        precision: of every training, as Lightning's Trainer names it.

    """

    model: str
    train: str
    val: str | None = None
    speedups: tuple[float, ...] = SPEEDUPS
    max_loss: float = 1.0
    target: Target = "onnx-int8"
    shape: tuple[int, int] | None = None
    threads: int | None = None
    minutes: float | None = None
    task: GuessedTask | None = None
    text_columns: list[str] | None = None
    label_column: str | None = None
    data: Mapping[str, Any]
    label_map: Mapping[str, str | int] | None = None
    retrieval: str | None = None
    seed: int = 42
    precision: TrainerPrecision = "32-true"

    @property
    def int8(self) -> bool:
        """Whether members compute with integers."""
        return self.target.endswith("-int8")

    @property
    def runtime(self) -> Target:
        """The same runtime in fp32, which speed is compared with."""
        name: Any = self.target.removesuffix("-int8")
        return name

    def check(self) -> None:
        """Raise a ``UserError`` for the first option that cannot be."""
        for key in ("model", "train"):
            if not getattr(self, key):
                raise UserError(f"--{key}: is missing; give --model, an encoder, and --train, a file of examples")
        wrong = next((each for each in self.speedups if not 1 <= each < math.inf), None)
        if wrong is not None or not self.speedups:
            given = "nothing" if wrong is None else f"{wrong:g}"
            raise UserError(f"--speedup: {given} must be one or more numbers from 1 on, such as 4 or '[2,4,8]'")
        for key, choices in (("target", get_args(Target)), ("precision", get_args(TrainerPrecision))):
            if (chosen := getattr(self, key)) not in choices:
                raise UserError(f"--{key}: {chosen!r} must be one of {', '.join(choices)}")
        for key in ("minutes", "threads"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{key}: {value:g} must be above 0")
        if self.retrieval is not None and self.task != "embedding":
            raise UserError("--retrieval: ranks texts by their vectors; give --task embedding, or leave it out")
        if not 0 <= self.max_loss < math.inf:
            raise UserError(f"--max_loss: {self.max_loss:g} must be 0 or more points")


def is_family(folder: str) -> bool:
    """Whether a folder is one of `lit_compress compress`."""
    return (Path(folder) / REQUEST).is_file()


def keep_request(folder: Path, request: Request, found: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What an earlier command found for the same request in a run folder; keeps what is found when it is given.

    Args:
        folder: run folder of the family.
        request: of this command.
        found: about the data, to be kept.

    Returns:
        None where nothing was found before.

    Raises:
        UserError: the folder was begun with another request, or holds something else.

    """
    file, asked = folder / REQUEST, json.loads(json.dumps(asdict(request)))
    if found is not None:
        with atomic_file(file) as staging:
            staging.write_text(json.dumps({"asked": asked, "found": found}, indent=1) + "\n")
        return None
    check_shared_folder(folder, "--run")
    if not file.exists():
        # A first call that was killed may have left its file half written, under another name.
        if folder.is_dir() and any(not each.name.startswith(f".{REQUEST}.new-") for each in folder.iterdir()):
            raise UserError(f"--run: {str(folder)!r} holds something else; choose another --run")
        return None
    try:
        kept = json.loads(file.read_text())
        before, earlier = dict(kept["asked"]), dict(kept["found"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--run: {str(file)!r} is damaged; choose another --run") from error
    if changed := _changed(before, asked, (folder / PLAN).exists()):
        raise UserError(
            f"--run: {str(folder)!r} was begun with another {' and '.join(changed)}; "
            "choose another --run, or give what was given then"
        )
    return earlier


def _changed(before: Mapping[str, Any], asked: Mapping[str, Any], planned: bool) -> Sequence[str]:
    """Options that differ, but for those that only choose among the members, or of which nothing was made yet."""
    names, free = {"speedups": "--speedup"}, {"max_loss", "retrieval"} | (set() if planned else {"speedups"})
    return [
        names.get(key, f"--{key}") for key in asked if key not in free and before.get(key, asked[key]) != asked[key]
    ]
