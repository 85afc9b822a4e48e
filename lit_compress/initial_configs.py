"""`lit_compress init`: a first teacher.yaml and student.yaml for somebody's own file."""

import json
import shlex
from pathlib import Path
from typing import Any

from lit_compress.choices import GuessedTask
from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.files import atomic_file, begins, check_file, check_shared_folder
from lit_compress.guessed_data import GuessedData, guess_data, student_epochs, teacher_epochs
from lit_compress.hub import is_reachable
from lit_compress.models.load import load_config
from lit_compress.sources import resolve_source

__all__ = ["init"]

_MARK = "# Made by `lit_compress init`"
_ASKED = ("embedding", "reranking")  # tasks that no column says


def init(
    file: str,
    val: str | None = None,
    model: str | None = None,
    output: str = ".",
    task: GuessedTask | None = None,
    text_columns: list[str] | None = None,
    label_column: str | None = None,
    overwrite: bool = False,
) -> None:
    """Look at a file of examples, and write a teacher.yaml and a student.yaml for it that say why.

    Options: :func:`lit_compress.commands.models.init_configs`.
    """
    folder = Path(output)
    check_shared_folder(folder)
    inputs = [path for path in (file, val) if path]
    for name in ("teacher", "student"):
        check_file(folder / f"{name}.yaml", begins(_MARK), overwrite, inputs=inputs)
    if model is not None:
        _check_model(model)
    guessed = guess_data(file, val, model, task, text_columns, label_column)
    data = _data(guessed)
    texts = {
        "teacher": _teacher(folder, guessed.model, data, guessed.steps),
        "student": _student(folder, data, guessed),
    }
    for name, text in texts.items():
        with atomic_file(folder / f"{name}.yaml") as staging:
            staging.write_text(text, encoding="utf-8")
    _say(file, guessed, folder)


def _check_model(model: str) -> None:
    """Refuse a model that is nowhere; one that the hub cannot be asked for now is written down, which is said."""
    try:
        load_config(model, "--model")
    except UserError:
        if Path(resolve_source(model, "--model")).exists() or is_reachable():
            raise
        say(f"--model: {model!r} is not here, and the hub cannot be asked for it now; `fit` will")


def _data(guessed: GuessedData) -> str:
    lines = [f"  class_path: {guessed.module}", "  init_args:"]
    for key, value in guessed.options.items():
        comment = (
            f"  # {' '.join(guessed.why[key].split())}" if key in guessed.why else ""
        )  # a label may hold a line break
        lines.append(f"    {key}: {_yaml(value)}{comment}")
    return "\n".join(["data:", *lines, ""])


def _yaml(value: Any) -> str:
    """JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


def _teacher(folder: Path, model: str, data: str, steps: int) -> str:
    epochs = teacher_epochs(steps)
    return f"""{_MARK}, to be changed as you like: a teacher, which the student of student.yaml learns from.
#   lit_compress fit --config {shlex.quote(str(folder / "teacher.yaml"))}
run: {_yaml(str(folder / "runs/teacher"))}
seed_everything: 42
model:
  class_path: LitTeacher
  init_args:
    pretrained: {_yaml(model)}  # any encoder on the hub, or a folder
    optimization:
      learning_rate: 5.0e-5  # usual for models of BERT's size; 1e-4 and more for smaller ones
      warmup: 10%
{data}trainer:
  max_epochs: {epochs}  # of {steps} optimizer steps each
"""


def _student(folder: Path, data: str, guessed: GuessedData) -> str:
    steps = guessed.steps
    teacher, epochs = _yaml(str(folder / "runs/teacher/model")), student_epochs(steps)
    kd = (
        "class_path: EmbeddingDistillation  # the teacher's vectors"
        if guessed.guess.task == "embedding"
        else "class_path: LogitDistillation\n"
        "        init_args: {hardness: 0.9, temperature: 2.0}  # the teacher's answers, and a tenth of the labels"
    )
    return f"""{_MARK}, to be changed as you like: a student with 80 % zeros and int8 weights.
#   lit_compress fit --config {shlex.quote(str(folder / "student.yaml"))}
run: {_yaml(str(folder / "runs/student"))}
seed_everything: 42
model:
  class_path: LitStudent
  init_args:
    pretrained: {teacher}  # what the teacher's fit leaves
    teacher: {teacher}
    distillation:
      kd:
        {kd}
    optimization:
      learning_rate: 1.0e-4  # sparse training wants more than a dense learning rate
      warmup: 5%
{data}compression:
  - class_path: MagnitudePruning  # in the first half
    init_args: {{sparsity: 0.8, initial_sparsity: 0.3, schedule: cubic, start: 0%, end: 50%, every: 1%}}
  - class_path: QuantAwareTraining  # in the rest; 7 bits are correct and fast on every processor
    init_args: {{start: 60%, freeze_observers: 90%, weight_bits: 7}}
trainer:
  max_epochs: {epochs}  # of {steps} optimizer steps each: pruning needs some
"""


def _say(file: str, guessed: GuessedData, folder: Path) -> None:
    say(f"{file}: {guessed.guess.task}")
    for key in (key for key in guessed.options if key not in ("train_file", "val_file", "batch_size")):
        reason = f" ({guessed.why[key]})" if key in guessed.why else ""
        say(f"  {key}: {_yaml(guessed.options[key])}{reason}")
    for doubt in guessed.guess.doubts:
        say(f"  to be checked: {doubt}")
    teacher, student = (shlex.quote(str(folder / f"{name}.yaml")) for name in ("teacher", "student"))
    say(f"Saved as {teacher} and {student}; another task or column: --task, --text_columns, --label_column")
    say(f"Next: lit_compress fit --config {teacher}")
    say(f"then: lit_compress fit --config {student}")
    command = ["--model", guessed.model, "--train", file]
    command += ["--val", val] if (val := guessed.options.get("val_file")) else []
    command += ["--task", guessed.guess.task] if guessed.guess.task in _ASKED else []
    say(f"Or a model as fast as you ask, measured: lit_compress compress {shlex.join(command)} --run runs/fast")
