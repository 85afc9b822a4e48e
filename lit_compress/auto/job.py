"""A request together with what is known of its data and model, and what its folder keeps for the next call."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.auto.family_report import check_page
from lit_compress.auto.plans import INT8, member_name
from lit_compress.auto.request import Request, keep_request
from lit_compress.auto.retrieval import retrieval_section
from lit_compress.auto.stages import TEACHER, Training
from lit_compress.console import say
from lit_compress.errors import UserError, first_line
from lit_compress.files import atomic_file, check_folder
from lit_compress.guessed_data import GuessedData, guess_data
from lit_compress.models.labels import label_order
from lit_compress.models.load import load_config, load_model
from lit_compress.models.positions import check_length
from lit_compress.planning.random_models import check_target
from lit_compress.sources import absolute_source

__all__ = ["DENSE", "Job", "begin", "keep", "kept"]

Kept = TypeVar("Kept")

DENSE = "dense"  # the export of the dense model
# Hidden sizes below this learn faster.
_SMALL, _SMALL_RATE, _RATE = 512, 1e-4, 5e-5
# More rows are needed for an interval that decides anything.
_FEW_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request together with what is known of its data and model.

    Args:
        request: what is asked.
        folder: of the family.
        guessed: what the data is.
        config: of the model that was given; it names no head where that is not the task's.
        has_head: whether that has the task's head, so that it is the teacher itself.

    """

    request: Request
    folder: Path
    guessed: GuessedData
    config: PretrainedConfig
    has_head: bool

    @property
    def teacher(self) -> str:
        """The dense model, as a stage of the recipe names it."""
        return absolute_source(self.request.model) if self.has_head else f"stage:{TEACHER}"

    @property
    def dense(self) -> str:
        """Folder or hub name of the dense model."""
        return self.request.model if self.has_head else str(self.folder / TEACHER / "model")

    @property
    def shape(self) -> tuple[int, int]:
        """Examples and tokens at which speed is asked for."""
        return self.request.shape or (1, self.guessed.options["max_length"])

    @property
    def training(self) -> Training:
        """What all trainings have in common."""
        config: Any = self.config
        return Training(
            data=self.guessed.section,
            seed=self.request.seed,
            precision=self.request.precision,
            learning_rate=_SMALL_RATE if config.hidden_size < _SMALL else _RATE,
            label_map=self.request.label_map,
            embeds=self.guessed.guess.task == "embedding",
        )

    def model(self, source: str) -> PreTrainedModel:
        """A dense model with the head of the task, in evaluation mode."""
        task = self.guessed.texts(source).task
        return load_model(source, task, "--model", self.request.label_map).eval()


def begin(request: Request, folder: Path, dry_run: bool) -> Job:
    """Look at data and model, say what was found, and keep it for the next call.

    Raises:
        UserError: folder, data or model cannot be; nothing was written then.

    """
    check_target(request.target)
    if request.retrieval is not None:
        retrieval_section(request)  # says what is wrong with the file before anything is trained
    known = keep_request(folder, request)
    _check_places(request, folder)
    config = load_config(request.model, "--model")
    if known is None:
        columns = (request.task, request.text_columns, request.label_column)
        guessed = guess_data(request.train, request.val, request.model, *columns, given=request.data)
    else:
        try:
            guessed = GuessedData.from_json(known)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"--run: what {str(folder)!r} says of the data is damaged or of another version; choose another --run"
            ) from error
    data = guessed.texts(request.model)
    held = data.rows("val") if data.files["val"] else None
    rows = guessed.rows * guessed.options.get("val_fraction", 0) if held is None else len(held)
    if rows < _FEW_ROWS:
        raise UserError(
            f"--val: {round(rows)} validation examples are too few to measure a loss of {request.max_loss:g} points; "
            f"give {_FEW_ROWS} or more, hundreds if you can"
        )
    task = data.task
    has_head = task.has_head(config)
    if has_head and task.outputs is not None:
        label_order(config, task.labels, request.label_map, request.model, "--model")
    elif not has_head:
        config.architectures = None  # the head that it has is another, which may take longer than all layers
    job = Job(request=request, folder=folder, guessed=guessed, config=config, has_head=has_head)
    check_length(config, job.shape[1], f"--model {request.model!r}", "--shape")
    say(f"{request.train}: {guessed.guess.task}, {guessed.rows:,} examples, {round(rows):,} of them for validation")
    for key in (key for key in ("text_columns", "label_column", "max_length", "pooling") if key in guessed.options):
        why = f" ({guessed.why[key]})" if key in guessed.why else ""
        say(f"  --data.{key}: {guessed.options[key]}{why}")
    say(f"Teacher: {request.model}" + ("" if has_head else ", to be trained for the task first"))
    if not dry_run:
        keep_request(folder, request, guessed.to_json())
    return job


def _check_places(request: Request, folder: Path) -> None:
    """Refuse a folder in which something of someone else would be replaced at the end; for before any work."""
    check_page(folder)
    for name in (DENSE, INT8, *map(member_name, request.speedups)):
        check_folder(folder / "exports" / name, overwrite=True, inputs=(request.model, request.train), key="--run")


def kept(file: Path, parse: Callable[[Any], Kept]) -> Kept | None:
    """What an earlier call kept; None where it did not come that far.

    Args:
        file: JSON.
        parse: from its content.

    Raises:
        UserError: it is damaged.

    """
    if not file.is_file():
        return None
    try:
        return parse(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--run: {str(file)!r} is damaged ({type(error).__name__}: {first_line(error)}); remove it to measure again"
        ) from error


def keep(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON for :func:`kept`."""
    with atomic_file(file) as staging:
        staging.write_text(json.dumps(content, indent=1) + "\n")
