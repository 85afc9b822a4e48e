"""Whether what a runtime computes from a file is the model: on random token ids for its structure, and on examples.

Rounding cannot be judged on random ids, whose outputs mean nothing: what counts there is that shapes, lengths and
operators are right. What rounding costs is measured on texts that the model is for, as people measure it: predictions
that stay the same, and the task's score.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lit_compress.errors import UserError
from lit_compress.export.graph_form import GraphForm
from lit_compress.models.layout import encoder_layers
from lit_compress.models.positions import longest_input
from lit_compress.tasks import Batch, Task

__all__ = [
    "TOLERANCE_INT8",
    "CheckOptions",
    "Comparison",
    "Examples",
    "Reference",
    "check_structure",
    "compare",
    "first_wrong_layer",
    "judge",
    "of_tokens",
    "reference",
    "sample_inputs",
    "sample_lengths",
]

# Largest difference from PyTorch on random ids, as a fraction of the largest output: of any row in floating point,
# where only the order of sums differs; of the median row with integers, where values near the middle of two steps of a
# scale fall on either side, and what follows is computed from another number.
TOLERANCE = 1e-3
TOLERANCE_INT8 = 0.5
# Of examples. Less is worth a warning, and a file below the second is not this model any more.
EQUAL, EQUAL_AT_LEAST = 0.98, 0.8
LOSS, LOSS_AT_MOST = 0.01, 0.1
# An output that is one number is the same when it differs by less than this fraction of their standard deviation.
SAME_VALUE = 0.1
_LONGEST = 512  # tokens; longer ones take a model of ordinary size too long
_TRACED = 8  # examples whose layers are kept to say where a difference begins

Run = Callable[[Mapping[str, Any]], list[Any]]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Texts that a model is for.

    Attributes:
        batches: of a data module, on the CPU.
        task: what the model predicts.
        origin: where they come from, in words.
        labelled: whether the batches have what the task's metrics compare with.

    """

    batches: list[Batch]
    task: Task
    origin: str
    labelled: bool

    def __len__(self) -> int:
        return sum(batch.rows for batch in self.batches)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a file is judged.

    Attributes:
        examples: what it is judged on; None checks its structure alone.
        strict: refuse a file whose predictions or score are worse than PyTorch's, instead of saying so.

    """

    examples: Examples | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What PyTorch gives for examples: outputs of each batch by name, and of some examples what each layer gives."""

    outputs: list[dict[str, Tensor]]
    layers: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A file compared with PyTorch on examples.

    Attributes:
        examples: how many.
        equal: fraction of predictions that are the same; of tokens where each has one.
        score: name of the task's score, PyTorch's and the file's; None without labels.

    """

    examples: int
    equal: float
    score: tuple[str, float, float] | None

    def words(self) -> str:
        """The figures in one line."""
        score = "" if self.score is None else f", {self.score[0]} {self.score[2]:.4f} (PyTorch {self.score[1]:.4f})"
        return f"{100 * self.equal:.1f} % of predictions as PyTorch's on {self.examples} examples{score}"

    @property
    def loss(self) -> float:
        """How much lower the file's score is, 0 without labels."""
        return 0.0 if self.score is None else self.score[1] - self.score[2]


def sample_lengths(form: GraphForm) -> list[int]:
    """Lengths in tokens at which a graph is tried: short ones, and one near the longest that the model takes."""
    config: Any = form.model.config
    limit = min(longest_input(config) or _LONGEST, _LONGEST)
    return sorted({min(length, limit) for length in (3, 7, 60, limit)})


def sample_inputs(form: GraphForm, lengths: list[int] | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Batches of random ids at several lengths, the same every time; all but the longest with padding."""
    config: Any = form.model.config
    lengths = sample_lengths(form) if lengths is None else lengths
    for length in lengths:
        rows = 1 if length == max(lengths) else 3
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:, max(1, length // 2) :] = 0
        types = torch.zeros_like(ids)
        if getattr(config, "type_vocab_size", 2) > 1:
            types[:, length // 3 :] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        yield tuple(given[name] for name in form.inputs)


@torch.no_grad()
def check_structure(
    form: GraphForm, expected: list[tuple[Tensor, ...]], run: Run, integers: bool, most: float = TOLERANCE_INT8
) -> None:
    """Compare a runtime with PyTorch on :func:`sample_inputs`.

    Args:
        form: the model.
        expected: what PyTorch gives for them.
        run: inputs by name, as NumPy arrays, to the outputs in the order of the model's.
        integers: whether the file rounds activations, to integers or to 16-bit floating point.
        most: by how much the median row may differ then, as a fraction of the largest output.

    Raises:
        UserError: an output has another shape, is not finite where PyTorch's is, or differs too much.

    """
    places = range(len(form.outputs))
    largest = [max(float(outputs[index].abs().max()) for outputs in expected) or 1.0 for index in places]
    found: list[list[Tensor]] = [[] for _ in places]
    for length, inputs, outputs in zip(sample_lengths(form), sample_inputs(form), expected, strict=True):
        results = run(_arrays(form, inputs))
        for index, name in enumerate(form.outputs):
            result = torch.as_tensor(results[index])
            _check_shape(f"{name} for {length} tokens", outputs[index], result)
            found[index].append((outputs[index] - result).abs().flatten(1).amax(1) / largest[index])
            worst = float(found[index][-1].max())
            if not integers and not worst <= TOLERANCE:  # also for NaN
                raise UserError(
                    f"export: {name} for {length} tokens differs from PyTorch in the runtime by {worst:.2g} of the "
                    f"largest output, and may by {TOLERANCE:.2g}; nothing was written"
                )
    for name, differences in zip(form.outputs, found, strict=True):
        median = float(torch.cat(differences).median())
        if not median <= most:
            raise UserError(
                f"export: {name} of most random ids differs from PyTorch in the runtime by {median:.2g} of the largest "
                f"output, and may by {most:.2g}; nothing was written"
            )


def _check_shape(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Refuse an output of another shape, or one that is not finite where PyTorch's is."""
    if theirs.shape != ours.shape:
        raise UserError(
            f"export: {what} has shape {tuple(theirs.shape)} in the runtime and {tuple(ours.shape)} in PyTorch: the "
            "graph of this family depends on the length; nothing was written"
        )
    if not torch.isfinite(theirs[torch.isfinite(ours)]).all():
        raise UserError(f"export: {what} is not finite in the runtime, and is in PyTorch; nothing was written")


@torch.no_grad()
def reference(form: GraphForm, examples: Examples) -> Reference:
    """What PyTorch gives for examples."""
    layers: list[Tensor] = []

    def keep(module: Any, given: Any, output: Any) -> None:
        layers.append((output[0] if isinstance(output, tuple) else output)[:_TRACED].clone())

    hooks = [layer.register_forward_hook(keep) for layer in encoder_layers(form.model)]
    outputs: list[dict[str, Tensor]] = []
    for batch in examples.batches:
        values = form(*_inputs(form, batch))
        outputs.append(dict(zip(form.outputs, values, strict=True)))
        for hook in hooks:
            hook.remove()  # after the first batch
    return Reference(outputs=outputs, layers=layers)


@torch.no_grad()
def compare(form: GraphForm, examples: Examples, expected: Reference, run: Run) -> Comparison:
    """Compare a runtime with PyTorch on examples.

    Args:
        form: the model, for the names of its inputs.
        examples: texts.
        expected: of :func:`reference`.
        run: as in :func:`check_structure`.

    """
    metrics = [examples.task.metrics("") for _ in range(2)]
    same: list[Tensor] = []
    close = _close(expected)
    for batch, ours in zip(examples.batches, expected.outputs, strict=True):
        results = run(_arrays(form, _inputs(form, batch)))
        theirs = {name: torch.as_tensor(value) for name, value in zip(form.outputs, results, strict=True)}
        mask = batch.inputs["attention_mask"]
        # Hidden states are judged by the vectors that are made of them.
        judged = [name for name in ours if name == "sentence_embedding"] or list(ours)
        for name, value in ((name, ours[name]) for name in judged):
            same.append(_same(examples.task, value, theirs[name], mask, close))
        if examples.labelled:
            for metric, outputs in zip(metrics, (ours, theirs), strict=True):
                examples.task.update(metric, SimpleNamespace(**outputs), batch)
    return Comparison(
        examples=len(examples),
        equal=float(torch.cat(same).double().mean()),
        score=_score(examples.task, *metrics) if examples.labelled else None,
    )


def _score(task: Task, *metrics: MetricCollection) -> tuple[str, float, float] | None:
    """Name of a task's score, PyTorch's and the file's, from 0 to 1; None where PyTorch's is undefined."""
    ours, theirs = (metric.compute() for metric in metrics)
    # The first that is a share: a perplexity has no points.
    name, points = next((name, points) for name in ours if (points := task.points(name)) is not None)
    found = (name, float(ours[name]) * points / 100, float(theirs[name]) * points / 100)
    return None if math.isnan(found[1]) else found


def judge(comparison: Comparison, strict: bool, layer: Callable[[], str], advice: str) -> str:
    """Refuse a file that is another model than PyTorch's, and say in a sentence how a file compares.

    Args:
        comparison: of :func:`compare`.
        strict: refuse a worse file, too.
        layer: asks where the difference begins, in words; only of files that are worse.
        advice: what to do about it.

    Raises:
        UserError: too many predictions are other ones.

    """
    measured = comparison.words()
    if comparison.equal >= EQUAL and comparison.loss <= LOSS:
        return f"Compared: {measured}."
    labelled = comparison.score is not None
    usable = comparison.loss <= LOSS_AT_MOST if labelled else comparison.equal >= EQUAL_AT_LEAST
    where = f"The difference begins in {layer()}"
    if strict:
        asked = f"--strict true asks for {100 * EQUAL:.0f} % and a loss of at most {LOSS:g}"
        raise UserError(f"export: {measured}; {asked}. {where}; {advice}; nothing was written")
    if not usable:
        asked = f"a loss of at most {LOSS_AT_MOST:g}" if labelled else f"at least {100 * EQUAL_AT_LEAST:.0f} %"
        raise UserError(f"export: {measured}; {asked} is asked. {where}; {advice}; nothing was written")
    return f"Warning: {measured}. {where}; {advice}, or refuse such a file with --strict true."


def first_wrong_layer(form: GraphForm, examples: Examples, expected: Reference, run: Run) -> str:
    """The first layer whose output is off by a tenth of its mean magnitude, in words.

    Args:
        form: the model, for the names of its inputs.
        examples: texts.
        expected: of :func:`reference`.
        run: inputs by name, as NumPy arrays, to what each layer gives.

    """
    inputs = tuple(tensor[:_TRACED] for tensor in _inputs(form, examples.batches[0]))
    found = [torch.as_tensor(layer) for layer in run(_arrays(form, inputs))]
    mask = examples.batches[0].inputs["attention_mask"][:_TRACED]
    if len(found) != len(expected.layers):  # ALBERT runs one layer several times
        return "an unknown layer"
    for index, (ours, theirs) in enumerate(zip(expected.layers, found, strict=True)):
        ours, theirs = of_tokens(ours, mask), of_tokens(theirs, mask)
        if not float((ours - theirs).abs().mean()) <= 0.1 * float(ours.abs().mean()):
            return f"layer {index} of {len(found)}"
    return "the head"


def _same(task: Task, ours: Tensor, theirs: Tensor, mask: Tensor, close: float) -> Tensor:
    """Which predictions are the same: of each token, or each example; classes, labels, positions or values."""
    if ours.ndim == 3:
        ours, theirs = of_tokens(ours, mask), of_tokens(theirs, mask)
    if ours.shape[-1] == 1:
        return ((ours - theirs).abs() <= close).flatten()
    same = task.same(ours, theirs)
    return same.all(-1) if same.ndim > 1 else same


def _close(expected: Reference) -> float:
    """How much outputs that are one number may differ and be the same."""
    values = [value.flatten() for outputs in expected.outputs for value in outputs.values() if value.shape[-1] == 1]
    if not values:
        return 0.0
    every = torch.cat(values)
    largest = float(every.abs().max()) or 1.0
    return max(SAME_VALUE * float(every.std(unbiased=False)), TOLERANCE * largest)


def of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Values of each token in a row of their own, without padding; others as they are."""
    return values[mask.bool()] if values.ndim == 3 and values.shape[:2] == mask.shape else values


def _inputs(form: GraphForm, batch: Batch) -> tuple[Tensor, ...]:
    given = batch.inputs
    return tuple(given[name] if name in given else torch.zeros_like(given["input_ids"]) for name in form.inputs)


def _arrays(form: GraphForm, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in zip(form.inputs, inputs, strict=True)}
