"""A configuration of `lit_compress fit` in the making, and the list of what it does not say."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_compress.migrate.expressions import number

__all__ = ["FILL_IN", "Draft", "Options", "TaskName", "duration"]

TaskName = Literal["classification", "regression", "token_classification", "question_answering", "masked_lm"]

# Stands where the other tool's file says nothing and `fit` cannot do without.
FILL_IN = "fill_in"

_DATA = {
    "classification": "TextClassification",
    "regression": "TextClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
    "masked_lm": "MaskedLanguageModeling",
}


@dataclass
class Draft:
    """What translators fill; :meth:`settings` makes the configuration of it.

    Args:
        task: what the model is trained for.
        pretrained: where the student starts, when it is known.
        teacher: of the student, when it is known.
        optimization: options of :class:`lit_compress.modules.Optimization`.
        distillation: named terms.
        penalties: named penalties.
        compression: strategies, in order.
        data: options of the data module.
        trainer: options of Lightning's `Trainer`.
        seed: of the run.
        epochs: how long the run must be for everything in it.
        left_out: what has no counterpart, and why.
        changed: what is said in another way than in the file, and what is different.
        ends: entries that end somewhere, which only matters if that is before the run does; and where.

    """

    task: TaskName = "classification"
    pretrained: str | None = None
    teacher: str | None = None
    optimization: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    penalties: dict[str, Any] = field(default_factory=dict)
    compression: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    epochs: float = 0.0
    left_out: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    ends: list[tuple["Options", float]] = field(default_factory=list)

    def add(self, strategy: str, **options: Any) -> None:
        """Append a strategy; options that are None are left to their defaults."""
        given = {name: value for name, value in options.items() if value is not None}
        self.compression.append({"class_path": strategy} | ({"init_args": given} if given else {}))

    def lasts(self, epoch: float) -> None:
        """The run is at least this long."""
        self.epochs = max(self.epochs, epoch)

    def settings(self, run: str) -> dict[str, Any]:
        """The configuration.

        Args:
            run: folder of the run.

        """
        model: dict[str, Any] = {"pretrained": self.pretrained or FILL_IN}
        if self.distillation:
            model |= {"teacher": self.teacher or FILL_IN, "distillation": self.distillation}
        if self.penalties:
            model["penalties"] = self.penalties
        if self.optimization:
            model["optimization"] = self.optimization
        data = ({"task": "regression"} if self.task == "regression" else {}) | {"train_file": FILL_IN} | self.data
        settings: dict[str, Any] = {"run": run} | ({} if self.seed is None else {"seed_everything": self.seed})
        settings["model"] = {"class_path": "LitPrunedStudent" if self.penalties else "LitStudent", "init_args": model}
        settings["data"] = {"class_path": _DATA[self.task], "init_args": data}
        if self.compression:
            settings["compression"] = self.compression
        trainer = ({"max_epochs": math.ceil(self.epochs - 1e-9)} if self.epochs else {}) | self.trainer
        return settings | ({"trainer": trainer} if trainer else {})


class Options:
    """Options of one entry of a foreign file; those that nobody takes are listed as left out.

    Args:
        owner: how the entry is named in the lists.
        values: options by name.
        draft: what is filled.

    """

    def __init__(self, owner: str, values: Mapping[str, Any], draft: Draft) -> None:
        self.owner, self.draft = owner, draft
        self._values = dict(values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def peek(self, name: str) -> Any:
        """An option, which someone else deals with."""
        return self._values.get(name)

    def take(self, name: str, default: Any = None) -> Any:
        """An option, which counts as dealt with from now on."""
        return self._values.pop(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def take_into(self, name: str, target: dict[str, Any], key: str) -> bool:
        """Move an option, if it is there, into a mapping."""
        if name in self._values and self._values[name] is not None:
            target[key] = self.take(name)
            return True
        self.take(name)
        return False

    def take_number_into(self, name: str, target: dict[str, Any], key: str) -> None:
        """Move an option that is a number, if it is there, into a mapping; anything else is left out."""
        value = self.take(name)
        if value is None:
            return
        found = number(value)
        if found is None:
            self.leave_out(name, value, "it is not a number")
        else:
            target[key] = int(found) if isinstance(value, str) and found == int(found) else found

    def inner(self, name: str) -> "Options":
        """The options that are inside an option; one that has none is left out."""
        values = self.take(name) or {}
        if not isinstance(values, Mapping):
            self.leave_out(name, values, "it has no options by name")
            values = {}
        return Options(f"{self.owner}.{name}", values, self.draft)

    def listed(self, name: str) -> list[Any]:
        """An option that is a list, or one text of it; anything else is left out."""
        found = self.take(name) or []
        if isinstance(found, list | str):
            return [found] if isinstance(found, str) else found
        self.leave_out(name, found, "it is no list")
        return []

    def numeric(self, name: str, default: float) -> float:
        """An option that is a number; anything else is left out and the default taken."""
        value = self.take(name, default)
        if (found := number(value)) is None:
            self.leave_out(name, value, f"it is not a number; {default:g} is taken")
            return default
        return found

    def drop(self, reason: str, *names: str) -> None:
        """List those of some options that are there as left out, for one reason."""
        for name in names:
            if name in self._values:
                self.leave_out(name, self.take(name), reason)

    def leave_out(self, name: str, value: Any, reason: str) -> None:
        """List an option as left out."""
        self.draft.left_out.append(f"{self.owner}.{name}: {_short(value)}: {reason}")

    def change(self, name: str, what: str) -> None:
        """List an option as translated with a difference."""
        self.draft.changed.append(f"{self.owner}.{name}: {what}")

    def leave_out_all(self, reason: str) -> None:
        """List the whole entry as left out."""
        given = ", ".join(f"{name}={_short(value)}" for name, value in self._values.items())
        self.draft.left_out.append(f"{self.owner}({given}): {reason}")
        self._values = {}

    def finish(self) -> None:
        """List what is left."""
        for name, value in self._values.items():
            self.leave_out(name, value, "this option has no counterpart here")
        self._values = {}


def duration(epochs: float) -> str:
    """Epochs as this package writes them.

    Example:
        >>> duration(2.0), duration(0.01)
        ('2 epochs', '0.01 epochs')

    """
    return f"{epochs:.8f}".rstrip("0").rstrip(".") + " epochs"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
