"""What a packed encoder gains over the folded dense one, end to end.

Measured: a forward pass of the whole encoder on random token ids, the cases in turn, several batches one after the
other so that no input is met twice in a row. Batches are of full length and, as ``fill 0.5``, padded ones whose lengths
are evenly spread so that half of all positions are padding.

On a CPU each packed variant is divided by its own folded fp32 model (same weights before rounding, same shapes). On a
GPU each is divided by the dense model in bf16 under ``torch.compile(mode="max-autotune")`` with SDPA and CUDA graphs,
and so are the other baselines: eager bf16, and torchao's int8 and fp8 with its recommended inductor settings where
torchao is installed. Ours are captured in CUDA graphs; padded batches with a row budget of their unpadded tokens.

Variants, each on top of ``8 bit``: ``tall blocks 83 %`` keeps every sixth block of 128 x 32; ``FFN/4, half the heads``
cuts neurons and heads out; ``and half the layers`` drops every second layer of that one.

Gate, before any timing: the last hidden states of each packed variant differ from those of its folded model by at most
15 % (relative, root of the summed squares over unpadded tokens; weights are random). The figure is in the row's
settings.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from lit_compress.export import pack
from lit_compress.models import drop_layers, layer_linears, remove_heads, remove_neurons
from lit_compress.models.fused import FusedEncoder, fuse
from lit_compress.models.groups import removable_groups
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

BASELINE = {"cpu": "folded fp32", "cuda": "dense bf16, compiled"}
TOLERANCE = 0.15

# Variant -> shape -> how many times as fast as compiled bf16 it is meant to be, on an H200 at BERT-base size.
TARGETS = {
    "8 bit": {"1x128": 1.4, "32x128": 1.9, "256x128": 1.9, "64x384": 1.8},
    "tall blocks 83 %": {"1x128": 1.4, "32x128": 3.0, "256x128": 3.1, "64x384": 2.8},
    "FFN/4, half the heads": {"1x128": 1.4, "32x128": 3.6, "256x128": 4.2, "64x384": 3.9},
    "and half the layers": {"1x128": 2.6, "32x128": 7.0, "256x128": 8.0, "64x384": 7.8},
}

Batch = dict[str, Tensor]
Forward = Callable[[Batch], Tensor]


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
    dtype: Literal["int8", "fp8"] = "int8",
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
        repetitions: forward passes of each case.
        output: CSV to append to.
        plot: picture of the ratios as bars.

    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        dense = AutoModel.from_pretrained(model_source(model, Path(folder)), dtype=torch.float32).eval()
        variants = list(make_variants(dense, dtype, device))
        for shape in shapes:
            for fill in fills:
                given = batches(shape, fill, dense.config.vocab_size, device)
                errors = {variant.name: gate(variant, given[0]) for variant in variants}
                settings = {"model": model, "shape": shape, "fill": fill, "dtype": dtype}
                rows += measure(dense, variants, given, repetitions, settings, errors)
    publish(rows, output)
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
) -> list[Row]:
    """Rows of one shape."""
    device, fill = given[0]["input_ids"].device.type, settings["fill"]
    cases: dict[str, Forward]
    if device == "cuda":
        cases = baselines(dense) | {variant.name: captured(variant.packed, given) for variant in variants}
        against = dict.fromkeys(cases, BASELINE[device])
    else:
        cases, against = {}, {}
        for variant in variants:
            name = f"{BASELINE[device]}, {variant.name}"
            cases |= {name: partial(forward, variant.folded), variant.name: partial(forward, variant.packed)}
            against[variant.name] = name
    runs = {case: partial(timed, run, given) for case, run in cases.items()}
    interleave(runs, 1)  # compiles, captures, dequantizes
    seconds = interleave(runs, repetitions)
    rows = []
    for case, baseline in against.items():
        if case == baseline:
            continue
        target = 1 / TARGETS[case][settings["shape"]] if _has_target(case, device, settings) else None
        rows.append(
            Row(
                benchmark="encoder",
                case=f"{case}, {settings['shape']}, fill {fill:g}",
                baseline=baseline,
                ratios=[a / b for a, b in zip(seconds[case], seconds[baseline], strict=True)],
                target=1.0 if device == "cpu" else target,
                settings=settings | {"relative_error": round(errors.get(case, 0.0), 4), "ms": milliseconds(seconds)},
            )
        )
    return rows


def make_variants(dense: PreTrainedModel, dtype: Literal["int8", "fp8"], device: str) -> list[Variant]:
    """The folded models and their packed twins; bf16 on a GPU."""
    blocks, narrow = copy.deepcopy(dense), copy.deepcopy(dense)
    keep_every_sixth_block(blocks)
    for layer, (heads, neurons) in enumerate(
        zip(removable_groups(dense, "heads"), removable_groups(dense, "neurons"), strict=True)
    ):
        remove_heads(narrow, layer, torch.arange(heads.count) < max(heads.count // 2, 1))
        remove_neurons(narrow, layer, torch.arange(neurons.count) < max(neurons.count // 4, 1))
    shallow = copy.deepcopy(narrow)
    drop_layers(shallow, range(0, dense.config.num_hidden_layers, 2))
    folded = dict(zip(TARGETS, (dense, blocks, narrow, shallow), strict=True))
    return [
        Variant(
            name=name,
            folded=in_place(copy.deepcopy(model), device),
            packed=in_place(fuse(pack(model, layout=_format(name), dtype=dtype)), device),
        )
        for name, model in folded.items()
    ]


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


@torch.inference_mode()
def gate(variant: Variant, batch: Batch) -> float:
    """Relative error of the packed model at unpadded tokens; stop when it is no rounding any more."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).unsqueeze(-1)
    expected, got = (forward(model, batch).float() * mask for model in (variant.folded, variant.packed))
    error = float((got - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise SystemExit(f"gate: {variant.name} differs from its folded model by {error:.1%}; no row was written")
    return error


def baselines(dense: PreTrainedModel) -> dict[str, Forward]:
    """Dense models in bf16 on a GPU: eager, compiled, and by torchao."""
    plain = in_place(copy.deepcopy(dense), "cuda")
    cases: dict[str, Forward] = {
        BASELINE["cuda"]: partial(forward, torch.compile(plain, mode="max-autotune")),
        "dense bf16, eager": partial(forward, plain),
    }
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
            quantize_,
        )
        from torchao.quantization.utils import recommended_inductor_config_setter
    except ImportError:
        return cases
    recommended_inductor_config_setter()
    for name, config in {
        "torchao int8": Int8DynamicActivationInt8WeightConfig(),
        "torchao fp8": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    }.items():
        theirs = copy.deepcopy(plain)
        quantize_(theirs, config)
        cases[name] = partial(forward, torch.compile(theirs, mode="max-autotune"))
    return cases


def captured(model: PreTrainedModel, given: list[Batch]) -> Forward:
    """A packed model as a CUDA graph, with room for the unpadded tokens of the largest batch."""
    static = {name: tensor.clone() for name, tensor in given[0].items()}
    if "attention_mask" in static:
        for module in model.modules():
            if isinstance(module, FusedEncoder):
                module.row_budget = max(int(batch["attention_mask"].sum()) for batch in given)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(model, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden = forward(model, static)

    def replay(batch: Batch) -> Tensor:
        for name, tensor in batch.items():
            static[name].copy_(tensor)
        graph.replay()
        return hidden

    return replay


def timed(run: Forward, given: list[Batch]) -> float:
    """Seconds of a forward pass, the batches one after the other."""
    synchronize()
    started = time.perf_counter()
    for batch in given:
        run(batch)
    synchronize()
    return (time.perf_counter() - started) / len(given)


def forward(model: Any, batch: Batch) -> Tensor:
    return model(**batch).last_hidden_state


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


def _format(name: str) -> Literal["dense", "tall_blocks"]:
    return "tall_blocks" if name.startswith("tall") else "dense"


def _has_target(case: str, device: str, settings: dict[str, Any]) -> bool:
    return device == "cuda" and settings["fill"] == 1 and settings["shape"] in TARGETS.get(case, {})


if __name__ == "__main__":
    auto_cli(encoder, as_positional=False)
