"""SparseML's learning-rate modifiers, all of a recipe together, as one course of the learning rate."""

from dataclasses import dataclass
from typing import Any

from lit_compress.migrate.draft import Draft, Options, duration

__all__ = ["Rates"]

_SHAPES = {"linear": "linear", "cosine": "cosine", "cyclic_linear": "linear"}
_ONE_GROUP = "the rate is that of all parameters here"


@dataclass
class _Function:
    options: Options
    shape: str
    start: float
    end: float
    first: float
    last: float
    cycle: float | None


class Rates:
    """Collects what sets the learning rate; :meth:`finish` writes ``model.optimization``.

    Args:
        draft: what is filled.

    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._functions: list[_Function] = []
        self._constants: list[tuple[float, float, Options]] = []

    def function(self, options: Options) -> None:
        """``LearningRateFunctionModifier``."""
        shape = options.take("lr_func", "linear")
        if shape not in _SHAPES:
            options.leave_out("lr_func", shape, "there are linear and cosine decays here, and cycles of linear ones")
            options.leave_out_all("without its function it says nothing")
            return
        start = max(options.numeric("start_epoch", 0), 0)
        end = options.numeric("end_epoch", -1)
        cycle = options.numeric("cycle_epochs", 1.0) if shape == "cyclic_linear" else None
        options.drop("it only concerns cycles", "cycle_epochs")
        first, last = options.numeric("init_lr", 0), options.numeric("final_lr", 0)
        self._common(options, end)
        self._functions.append(_Function(options, shape, start, end, first, last, cycle))

    def constant(self, options: Options) -> None:
        """``SetLearningRateModifier``."""
        start = max(options.numeric("start_epoch", 0), 0)
        rate = options.numeric("learning_rate", 0)
        self._common(options, -1)
        self.draft.lasts(start)
        self._constants.append((start, rate, options))

    def finish(self) -> None:
        """Write what was collected; every modifier is known by now, and so is the length of the run."""
        functions = sorted(self._functions, key=lambda function: function.start)
        for function in functions:
            function.end = function.end if function.end > 0 else self.draft.epochs
        if not functions:
            self._write_constant()
            return
        for _, rate, options in self._constants:
            options.leave_out("learning_rate", f"{rate:g}", "the rate is that of the recipe's functions")
        self._write(functions)

    def _common(self, options: Options, end: float) -> None:
        self.draft.lasts(end)
        options.drop(_ONE_GROUP, "param_groups")
        options.drop("it only concerns what is logged; the rate is in TensorBoard", "constant_logging")
        if options.take("update_frequency", -1) not in (-1, -1.0):
            options.change("update_frequency", "the rate changes at every step")

    def _write_constant(self) -> None:
        constants = sorted(self._constants, key=lambda entry: entry[0])
        if not constants:
            self.draft.left_out.append("learning rate: the file does not set it; set model.optimization.learning_rate")
            return
        for start, rate, options in constants[1:]:
            options.leave_out("learning_rate", f"{rate:g} at epoch {start:g}", "a constant rate stays what it is here")
        self.draft.optimization |= {"learning_rate": constants[0][1], "warmup": "0%", "decay": "constant"}

    def _write(self, functions: list[_Function]) -> None:
        found: dict[str, Any] = {"warmup": "0%"}
        head = functions[0]
        if head.shape == "linear" and head.first < head.last:
            if head.first:
                head.options.change("init_lr", f"{head.first:g}; a warm-up starts at 0 here")
            found["warmup"] = duration(head.end)
            functions = functions[1:]
        elif head.start > 0:
            head.options.change("start_epoch", f"{head.start:g}; it starts with the training here")
        peak = max([head.last if head not in functions else 0.0, *(function.first for function in functions)])
        found |= {"learning_rate": peak}
        falling = self._falling(functions, peak)
        if not falling:
            self.draft.optimization |= found | {"decay": "constant"}
            return
        shape = _SHAPES[falling[0].shape]
        for function in falling:
            if _SHAPES[function.shape] != shape:
                function.options.leave_out("lr_func", function.shape, f"all decays have one shape; {shape} is taken")
        if falling[-1].end < self.draft.epochs:
            falling[-1].options.change("end_epoch", f"{falling[-1].end:g}; the last decay ends with the training here")
        found |= {"decay": shape, "final_learning_rate": falling[-1].last}
        if len(falling) > 1 or falling[0].cycle is not None:
            found["phases"] = [self._phase(function, falling) for function in falling]
        self.draft.optimization |= found

    def _falling(self, functions: list[_Function], peak: float) -> list[_Function]:
        falling = []
        for function in functions:
            if function.last >= function.first:
                if len(functions) > 1 or function.last > function.first:
                    values = f"{function.first:g} to {function.last:g}"
                    function.options.leave_out("init_lr, final_lr", values, "only a decay can follow the warm-up here")
                continue
            if function.first != peak:
                function.options.change("init_lr", f"{function.first:g}; every decay begins at the peak, {peak:g}")
            falling.append(function)
        return falling

    def _phase(self, function: _Function, functions: list[_Function]) -> dict[str, Any]:
        position = functions.index(function)
        phase: dict[str, Any] = {}
        if position + 1 < len(functions):
            follower = functions[position + 1]
            phase["until"] = duration(follower.start)
            if follower.start != function.end:
                function.options.change(
                    "end_epoch", f"{function.end:g}; a phase lasts until the next, {follower.start:g}"
                )
        if function.last != functions[-1].last:
            phase["final_learning_rate"] = function.last
        return phase | ({"cycle": duration(function.cycle)} if function.cycle is not None else {})
