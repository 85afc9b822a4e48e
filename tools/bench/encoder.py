"""What a packed encoder gains over dense ones, end to end.

Measured: a forward pass of the whole encoder on random token ids, the cases in turn, several batches one after the
other so that no input is met twice in a row. Batches are of full length and, as ``fill 0.5``, padded ones whose lengths
are evenly spread so that half of all positions are padding.

On a CPU each packed variant is divided by its own folded fp32 model (same weights before rounding, same shapes). On a
GPU each is divided by the fastest dense bf16 model of ``tools/bench/baselines.py``, whose name is in the row; padded
batches by the fastest that computes no padding, and in a second row by the fastest that does. The other baselines and,
with ``torchao``, its int8 and fp8 have rows, too; so has ``our fused encoder in bf16``, which is what one can build by
hand: queries, keys and values joined, norms fused, no padding, nothing rounded. A baseline whose profile shows
attention that is not fused, or in fp32, counts for nothing: its row says ``REFUSED`` and why. Ours are captured in CUDA
graphs; padded batches with a row budget of their unpadded tokens.

Variants, each on top of ``8 bit``: ``tall blocks 83 %`` keeps every sixth block of 128 x 32; ``FFN/4, half the heads``
cuts neurons and heads out; ``and half the layers`` drops every second layer of that one. Their inputs have static
scales, calibrated as ``lit_compress export --calibration_batches`` does it, so that a layer is 7 launches;
``8 bit, dynamic scales`` is what comes of a model without them. How many kernels a pass starts is in the settings.

Gate, before any timing: the last hidden states of each packed variant differ from those of its folded model by at most
15 % (relative, root of the summed squares over unpadded tokens; weights are random). The figure is in the row's
settings.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from lit_compress.errors import first_line
from lit_compress.export import pack
from lit_compress.export.activation_ranges import PERCENTILE, calibrate, layers_of_static_inputs
from lit_compress.models import drop_layers, layer_linears, remove_heads, remove_neurons
from lit_compress.models.fused import FusedEncoder, fuse
from lit_compress.models.heads_and_neurons import KINDS, removable_groups
from lit_compress.models.pack import Ranges
from lit_compress.ops.dispatch import forced
from tools.bench.baselines import Batch, Forward, candidates, captured, faults, forward, kernel_names, torchao_models
from tools.bench.measure import (
    RESULTS,
    Row,
    interleave,
    milliseconds,
    model_source,
    publish,
    quiet,
    synchronize,
)
from tools.bench.targets import ENCODERS, HALF_FULL

TOLERANCE = 0.15
FOLDED = "folded fp32"
DYNAMIC = "8 bit, dynamic scales"
BY_HAND = "our fused encoder in bf16"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A folded model and what packing makes of it."""

    name: str
    folded: PreTrainedModel
    packed: PreTrainedModel


def encoder(
    model: str = "random:12x768",
    shapes: list[str] = ["1x128", "32x128", "256x128", "64x384"],  # noqa: B006 (jsonargparse shows and never changes it)
    fills: list[float] = [1.0, 0.5],  # noqa: B006
    dtype: Literal["int8", "fp8"] = "fp8",
    torchao: bool = True,
    repetitions: int = 9,
    output: Path = RESULTS,
    plot: Path | None = None,
) -> list[Row]:
    """Time packed encoders beside dense ones.

    Args:
        model: hub name, folder, ``package:...`` or ``random:LAYERSxWIDTH``.
        shapes: batches as ``ROWSxTOKENS``.
        fills: mean fractions of unpadded tokens in a batch; 1 is without padding.
        dtype: of the packed weights.
        torchao: whether torchao's models are timed, too, on a GPU; compiling them takes a minute.
        repetitions: forward passes of each case.
        output: CSV to append to.
        plot: picture of the ratios as bars.

    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            dense = AutoModel.from_pretrained(model_source(model, Path(folder)), dtype=torch.float32).eval()
            variants = list(make_variants(dense, dtype, device))
        for shape in shapes:
            for fill in fills:
                with quiet():
                    given = batches(shape, fill, dense.config.vocab_size, device)
                    errors = {variant.name: gate(variant, given[0]) for variant in variants}
                    settings = {"model": model, "shape": shape, "fill": fill, "dtype": dtype}
                    measured = measure(dense, variants, given, repetitions, settings, errors, torchao)
                publish(measured, output)  # at once: whatever ends this process does not take it away
                rows += measured
    if plot is not None:
        draw(rows, plot)
    return rows


@torch.inference_mode()
def measure(
    dense: PreTrainedModel,
    variants: list[Variant],
    given: list[Batch],
    repetitions: int,
    settings: dict[str, Any],
    errors: dict[str, float],
    torchao: bool = False,
) -> list[Row]:
    """Rows of one shape."""
    if given[0]["input_ids"].is_cuda:
        return beside_bf16(dense, variants, given, repetitions, settings, errors, torchao)
    cases: dict[str, Forward] = {}
    against: list[tuple[str, str]] = []
    for variant in variants:
        name = f"{FOLDED}, {variant.name}"
        cases |= {name: partial(forward, variant.folded), variant.name: partial(forward, variant.packed)}
        against.append((variant.name, name))
    seconds = time_cases(cases, given, repetitions)
    return [
        row(case, baseline, seconds, settings | {"relative_error": round(errors[case], 4)}, 1.0)
        for case, baseline in against
    ]


def beside_bf16(
    dense: PreTrainedModel,
    variants: list[Variant],
    given: list[Batch],
    repetitions: int,
    settings: dict[str, Any],
    errors: dict[str, float],
    torchao: bool,
) -> list[Row]:
    """Rows of one shape on a GPU."""
    padded = "attention_mask" in given[0]
    half = in_place(copy.deepcopy(dense), "cuda")
    expected = forward(half, given[0])
    theirs = candidates(half, given)
    others = torchao_models(half) if torchao and not padded else {}
    # Dynamo compiles a function eight times at most, and all models are run by the same one.
    torch._dynamo.reset()
    cases: dict[str, Forward] = {}
    failed: dict[str, str] = {}
    for case, make in (theirs | others).items():
        try:
            cases[case] = make()
            timed(cases[case], given)  # compiles
            error = relative_error(cases[case](given[0]), expected, given[0])
            if not error <= TOLERANCE:
                raise RuntimeError(f"its hidden states are off by {error:.1%}")
        except Exception as error:  # code of others: what fails here is no baseline, and stops nothing
            cases.pop(case, None)
            failed[case] = first_line(error)
            print(f"REFUSED {case}: {failed[case]}", file=sys.stderr)
    for variant in variants:
        if padded:
            allow_rows(variant.packed, max(int(batch["attention_mask"].sum()) for batch in given))
        cases[variant.name] = captured(partial(forward, variant.packed), given)
    cases[BY_HAND] = captured(partial(without_rounding, variants[0].packed), given)
    names = {case: kernel_names(partial(run, given[0])) for case, run in cases.items()}
    wrong = {case: faults(names[case], masked=case.startswith("padded")) for case in theirs if case in cases}
    seconds = time_cases(cases, given, repetitions)
    settings = settings | {"kernels": {case: len(found) for case, found in names.items()}, "failed": failed}
    return list(comparisons(seconds, wrong, [BY_HAND, *(case for case in others if case in cases)], settings, errors))


def without_rounding(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The last hidden states of a packed model that multiplies dense weights in its own dtype."""
    with forced("dense"):
        return forward(model, batch)


def comparisons(
    seconds: dict[str, list[float]],
    wrong: dict[str, list[str]],
    others: list[str],
    settings: dict[str, Any],
    errors: dict[str, float],
) -> Iterator[Row]:
    """What is said of a GPU's times.

    Args:
        seconds: of every case, a number for each repetition.
        wrong: dense bf16 models, each with why it is no fair baseline; none where it is one.
        others: models of others that are compared with the baseline as ours are.
        settings: of the rows.
        errors: relative ones, of our cases.

    Raises:
        SystemExit: no fair baseline is left.

    """
    fair = {case: statistics.median(seconds[case]) for case, reasons in wrong.items() if not reasons}
    # The fastest without padding counts; of those that compute it the fastest is a second line.
    kinds = ([case for case in fair if case.startswith(kind)] for kind in ("bf16", "unpadded bf16", "padded bf16"))
    best = [min(of_kind, key=lambda case: fair[case]) for of_kind in kinds if of_kind]
    if not best or best[0].startswith("padded"):
        raise SystemExit(f"{settings['shape']}: no fair baseline, no row was written: {wrong} {settings.get('failed')}")
    for case, reasons in wrong.items():
        if reasons:
            refused = f"REFUSED {case}"
            yield row(refused, best[0], seconds | {refused: seconds[case]}, settings | {"refused": reasons})
        elif case != best[0]:
            yield row(case, best[0], seconds, settings)
    for case in others:
        yield row(case, best[0], seconds, settings)
    for case, error in errors.items():
        for place, baseline in enumerate(best):
            target = target_of(case, settings) if place == 0 else None
            yield row(case, baseline, seconds, settings | {"relative_error": round(error, 4)}, target)


def row(
    case: str, baseline: str, seconds: dict[str, list[float]], settings: dict[str, Any], target: float | None = None
) -> Row:
    """A figure of one shape."""
    return Row(
        benchmark="encoder",
        case=f"{case}, {settings['shape']}, fill {settings['fill']:g}",
        baseline=baseline,
        ratios=[a / b for a, b in zip(seconds[case], seconds[baseline], strict=True)],
        target=target,
        settings=settings | {"ms": milliseconds(seconds)},
    )


def target_of(case: str, settings: dict[str, Any]) -> float | None:
    """Largest time divided by the baseline's that the project aims at."""
    goals = ENCODERS.get(case, {}) if settings["fill"] == 1 else HALF_FULL if case == next(iter(ENCODERS)) else {}
    return 1 / goals[settings["shape"]] if settings["shape"] in goals else None


def time_cases(cases: dict[str, Forward], given: list[Batch], repetitions: int) -> dict[str, list[float]]:
    """Seconds of a forward pass of each case, interleaved."""
    runs = {case: partial(timed, run, given) for case, run in cases.items()}
    interleave(runs, 1)  # captures, dequantizes
    return interleave(runs, repetitions)


def make_variants(dense: PreTrainedModel, dtype: Literal["int8", "fp8"], device: str) -> list[Variant]:
    """The folded models and their packed twins; bf16 on a GPU."""
    blocks, narrow = copy.deepcopy(dense), copy.deepcopy(dense)
    keep_every_sixth_block(blocks)
    heads, neurons = (removable_groups(dense, kind)[0].count for kind in KINDS)
    remove_heads(narrow, None, torch.arange(heads) < max(heads // 2, 1))
    remove_neurons(narrow, None, torch.arange(neurons) < max(neurons // 4, 1))
    shallow = copy.deepcopy(narrow)
    drop_layers(shallow, range(0, dense.config.num_hidden_layers, 2))
    folded = dict(zip(ENCODERS, (dense, blocks, narrow, shallow), strict=True)) | {DYNAMIC: dense}
    return [
        Variant(
            name=name,
            folded=in_place(copy.deepcopy(model), device),
            packed=in_place(fuse(packed(model, name, dtype)), device),
        )
        for name, model in folded.items()
    ]


def packed(model: PreTrainedModel, name: str, dtype: Literal["int8", "fp8"]) -> PreTrainedModel:
    """A packed model with static scales of a few random texts, as a trained one has them."""
    ranges = {}
    if name != DYNAMIC:
        texts = batches("4x32", 1.0, model.config.vocab_size, "cpu", count=2)
        share = PERCENTILE if dtype == "int8" else 1.0
        found = calibrate(model, texts, layers_of_static_inputs(model), share)
        ranges = {linear: Ranges(largest_input=largest) for linear, largest in found.items()}
    layout = "tall_blocks" if name.startswith("tall") else "dense"
    return pack(model, layout=layout, dtype=dtype, ranges=ranges)


@torch.no_grad()
def keep_every_sixth_block(model: PreTrainedModel) -> None:
    """Leave a sixth of the blocks of 128 x 32 of every linear of the layers, the same number in each 128 rows."""
    generator = torch.Generator().manual_seed(0)
    for linear in layer_linears(model).values():
        outputs, inputs = linear.weight.shape
        count = max(inputs // 32, 1)
        for start in range(0, outputs, 128):
            kept = torch.randperm(count, generator=generator)[: max(count // 6, 1)]
            mask = torch.zeros(count, dtype=torch.bool).index_fill(0, kept, True)
            linear.weight[start : start + 128] *= mask.repeat_interleave(32)[:inputs]


def batches(shape: str, fill: float, vocabulary: int, device: str, count: int = 4) -> list[Batch]:
    """Batches of random ids; below a fill of 1 padded on the right, with lengths evenly spread around the mean."""
    size, tokens = (int(number) for number in shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    reach = min(fill, 1 - fill)
    spread = torch.linspace(fill - reach, fill + reach, size) if size > 1 else torch.tensor([fill])
    made = []
    for _ in range(count):
        lengths = (spread[torch.randperm(size, generator=generator)] * tokens).round().clamp(min=1)
        batch = {"input_ids": torch.randint(vocabulary, (size, tokens), generator=generator)}
        if fill < 1:
            batch["attention_mask"] = (torch.arange(tokens) < lengths.unsqueeze(1)).long()
        made.append({name: tensor.to(device) for name, tensor in batch.items()})
    return made


def relative_error(got: Tensor, expected: Tensor, batch: Batch) -> float:
    """Root of the summed squares of the difference, over unpadded tokens, divided by that of what is expected."""
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).unsqueeze(-1) != 0
    got, expected = got.float().where(real, 0), expected.float().where(real, 0)
    return float((got - expected).norm() / expected.norm())


@torch.inference_mode()
def gate(variant: Variant, batch: Batch) -> float:
    """Relative error of the packed model at unpadded tokens; stop when it is no rounding any more."""
    error = relative_error(forward(variant.packed, batch), forward(variant.folded, batch), batch)
    if not error <= TOLERANCE:
        raise SystemExit(f"gate: {variant.name} differs from its folded model by {error:.1%}; no row was written")
    return error


def allow_rows(model: PreTrainedModel, rows: int) -> None:
    """Room in a captured graph for as many unpadded tokens."""
    for module in model.modules():
        if isinstance(module, FusedEncoder):
            module.token_budget = rows


def timed(run: Forward, given: list[Batch]) -> float:
    """Seconds of a forward pass, the batches one after the other."""
    synchronize()
    started = time.perf_counter()
    for batch in given:
        run(batch)
    synchronize()
    return (time.perf_counter() - started) / len(given)


def in_place(model: PreTrainedModel, device: str) -> PreTrainedModel:
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()


def draw(rows: list[Row], path: Path) -> None:
    """Bars of how many times as fast each case is as its baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.3 * len(rows) + 1.5), layout="constrained")
    names = [f"{row.case} / {row.baseline.split(', ')[0]}" for row in rows]
    bars = axes.barh(names, [1 / row.median for row in rows], color="#4c72b0")
    axes.bar_label(bars, fmt="%.2fx", padding=3)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as its baseline (median)")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    auto_cli(encoder, as_positional=False)
