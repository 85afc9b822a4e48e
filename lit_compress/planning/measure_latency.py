"""Latency tables and whole structures, measured on this machine in the runtime that a model is for.

Everything that is timed is a real export of a model of random weights, all loaded in this process; calls are
interleaved, and medians are taken. A table needs one model for each count: a stack of equal layers with that many
heads, or neurons. What it takes beyond a stack of average layers, divided by the number of its layers, is what the
count costs. One average layer, a stack of them and the whole depth give what a layer takes, and what is left without.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.constants import HF_ASSETS_CACHE
from scipy.optimize import nnls
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.choices import Target
from lit_compress.console import say
from lit_compress.errors import UserError, first_line
from lit_compress.files import atomic_file
from lit_compress.models.heads_and_neurons import KINDS, Kind
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.random_models import (
    ENGINES,
    check_target,
    dense_structure,
    export_random,
    outline,
)
from lit_compress.planning.structure import LayerShape, Structure
from lit_compress.progress import counted
from lit_compress.report.machine import instruction_sets, processor
from lit_compress.report.timing import Case, measure, opened, opened_here
from lit_compress.runtimes.engines import variants
from lit_compress.version import __version__

__all__ = [
    "Measured",
    "fit_times",
    "fixed_parts",
    "measure_structures",
    "measure_table",
    "table_file",
    "table_settings",
]

# Fractions of the dense model's counts that are measured; the fourth of six and the third of five are an average
# layer's.
_SHARES: dict[Kind, tuple[float, ...]] = {
    "heads": (1 / 12, 1 / 4, 1 / 2, 3 / 4, 1),
    "neurons": (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1),
}
_MULTIPLES: dict[Kind, int] = {"heads": 1, "neurons": 16}
_RANKS = (1 / 12, 1 / 2)  # of the embedding's width
# A stack has as many layers as hold this many weights: its caches are as full as the model's, and it is soon exported.
_WEIGHTS = 30_000_000
_WARMUP, _ROUNDS = 3, 25
# Of a configuration, what says nothing about the time that a model takes.
_NAMES = {"transformers_version", "_name_or_path", "architectures", "id2label", "label2id", "problem_type", "dtype"}


class Measured(NamedTuple):
    """Median seconds of a forward pass by the structure's name, and what to say of a machine that was busy, or ""."""

    seconds: dict[str, float]
    busy: str = ""


def measure_table(
    config: PretrainedConfig,
    target: Target,
    rows: int,
    tokens: int,
    threads: int | None = None,
    remeasure: bool = False,
) -> LatencyTable:
    """The latency table of a model on this machine; measured once and kept, for all models of these sizes.

    Args:
        config: of the dense model.
        target: format, and with it the runtime.
        rows: of a batch.
        tokens: of a row; all are of full length.
        threads: of the processor; as many as PyTorch has by default.
        remeasure: measure also when there is a table.

    Raises:
        UserError: the target's runtime is not installed, or the family is unknown.

    """
    check_target(target)
    threads = threads or torch.get_num_threads()
    settings = table_settings(config, target, rows, tokens, threads)
    path = table_file(settings)
    if not remeasure and (kept := _kept(path, settings)) is not None:
        say(f"Latency table from an earlier measurement: {path}")
        if kept.busy:
            say(
                f"The machine was busy then ({kept.busy}). When it is quiet, measure again: lit_compress latency MODEL "
                f"--target {target} --shape {rows}x{tokens} --threads {threads} --remeasure true"
            )
        return kept
    table = _measured(config, target, rows, tokens, threads, settings)
    try:
        with atomic_file(path) as staging:
            staging.write_text(json.dumps(table.to_json(), indent=1) + "\n")
        say(f"Latency table measured, and kept as {path}")
    except UserError as error:  # a disk that is full, or a home that is not to be written
        say(f"Latency table measured, and not kept: {error}")
    return table


def measure_structures(
    config: PretrainedConfig,
    structures: Mapping[str, Structure | tuple[Structure, Target]],
    target: Target,
    rows: int,
    tokens: int,
    threads: int | None = None,
    rounds: int | None = None,
    apart: bool = False,
) -> Measured:
    """Median seconds of a forward pass of whole models of random weights, by name, interleaved.

    Args:
        config: of the dense model.
        structures: what to time; one with a target of its own is timed in that one.
        target: of the others.
        rows: of a batch.
        tokens: of a row.
        threads: of the processor; as many as PyTorch has by default.
        rounds: that count, in each of which everything is called once; 25 by default.
        apart: whether each has a process of its own, as :func:`~lit_compress.report.timing.opened` gives it and as
            `compress` times its members; only few fit into the memory.

    Raises:
        UserError: a runtime is not installed, or the family cannot be cut to a structure.

    """
    named: dict[str, tuple[Structure, Target]] = {
        name: each if isinstance(each, tuple) else (each, target) for name, each in structures.items()
    }
    for used in {used for _, used in named.values()}:
        check_target(used)
    cases = []
    with tempfile.TemporaryDirectory(prefix="lit_compress-") as root:
        with counted("Exporting", len(named), "models") as tell:
            for number, (name, (structure, used)) in enumerate(named.items()):
                folder = Path(root, str(number))
                folder.mkdir()
                export_random(config, structure, used, folder)
                variant = next(each for each in variants(folder) if each.engine == ENGINES[used])
                vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
                cases.append(Case(model=name, source=used, variant=variant, vocabulary=vocabulary, longest=None))
                tell(number + 1)
        threads = threads or torch.get_num_threads()
        with opened(cases, threads, "cpu") if apart else opened_here(cases, threads) as asks:
            busy = measure(cases, asks, [(rows, tokens)], _WARMUP, rounds or _ROUNDS)
    found = {case.model: case.results["times"][f"{rows}x{tokens}"] for case in cases}
    return Measured({name: times["median_ms"] / 1e3 for name, times in found.items()}, ", ".join(busy.values()))


def fixed_parts(config: PretrainedConfig) -> dict[Kind, str]:
    """What single layers of this family cannot lose, and why: a table has only the dense count of it."""
    layout = layout_of(outline(config))
    if layout.shared:
        return dict.fromkeys(KINDS, layout.unsupported["layers"])
    return {kind: layout.unsupported[kind] for kind in KINDS if kind in layout.unsupported}


def table_settings(config: PretrainedConfig, target: Target, rows: int, tokens: int, threads: int) -> dict[str, str]:
    """What a latency table depends on, by name."""
    dense, skeleton = dense_structure(config), outline(config)
    heads, neurons = dense.shapes[0].heads, dense.shapes[0].neurons
    sizes = {
        name: value
        for name, value in skeleton.config.to_dict().items()
        if name not in _NAMES and not name.endswith("_token_id")
    } | {"labels": skeleton.config.num_labels}
    runtime = {"eager": "torch"}.get(ENGINES[target], ENGINES[target])
    return {
        "model": f"{type(skeleton).__name__}, {len(dense.layers)} layers of {heads} heads and {neurons} neurons",
        "sizes": hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16],
        "target": target,
        "rows": str(rows),
        "tokens": str(tokens),
        "threads": str(threads),
        "processor": processor(),
        "instruction sets": instruction_sets(),
        "lit_compress": __version__,
    } | {name: version(name) for name in sorted({"torch", "transformers", runtime})}


def table_file(settings: Mapping[str, str]) -> Path:
    """Where the table of these settings is kept, next to the caches of Hugging Face's libraries."""
    key = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]
    return Path(HF_ASSETS_CACHE, "lit_compress", "latency", f"{key}.json")


def _kept(path: Path, settings: Mapping[str, str]) -> LatencyTable | None:
    """A table of these settings; None where there is none, or one that is damaged, which is said."""
    try:
        table = LatencyTable.from_json(json.loads(path.read_text()))
        if table.settings != settings:
            raise ValueError("it is of other settings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"{path} is damaged ({first_line(error)}) and is measured again")
        return None
    return table


def _measured(
    config: PretrainedConfig, target: Target, rows: int, tokens: int, threads: int, settings: Mapping[str, str]
) -> LatencyTable:
    skeleton, depth = outline(config), len(dense_structure(config).layers)
    weights = sum(parameter.numel() for parameter in encoder_layers(skeleton)[0].parameters())
    height = min(depth, max(2, _WEIGHTS // weights))
    counts, ranks = _counts(config), _ranks(skeleton)
    stacks = _stacks(counts, ranks, height, depth)
    found = measure_structures(config, stacks, target, rows, tokens, threads)
    times = fit_times([(stacks[name], seconds) for name, seconds in found.seconds.items()], counts, ranks)
    return LatencyTable(**times, settings=settings, busy=found.busy)


def fit_times(
    measured: Sequence[tuple[Structure, float]], counts: Mapping[Kind, Sequence[int]], ranks: Sequence[int]
) -> dict[str, Any]:
    """Times of the parts whose sums come closest to those of whole structures, by their relative squared error.

    No part takes less than none, and none takes less when it has more: what says so is noise.

    Args:
        measured: structures of these counts and ranks, and their seconds.
        counts: of heads and neurons, in ascending order.
        ranks: of the word embedding, in ascending order.

    Returns:
        ``heads``, ``neurons``, ``ranks`` and ``fixed`` of a :class:`LatencyTable`.

    """
    # What is sought: the fixed time, that of a layer with the fewest of all, and then each step to the next count. An
    # embedding of the lowest rank may save time, so that it has a column of either sign.
    columns = ["fixed", "layer", "rank saves", *((kind, count) for kind in KINDS for count in counts[kind][1:])]
    columns += [("rank", rank) for rank in ranks]
    matrix = np.zeros((len(measured), len(columns)))
    for row, (structure, seconds) in zip(matrix, measured, strict=True):
        steps = ["fixed"]
        for shape in structure.shapes:
            steps.append("layer")
            steps += [(kind, each) for kind in KINDS for each in counts[kind][1:] if each <= getattr(shape, kind)]
        if structure.rank is not None:
            row[columns.index("rank saves")] = -1 / seconds
            steps += [("rank", each) for each in ranks if each <= structure.rank]
        for step in steps:
            row[columns.index(step)] += 1 / seconds
    found = dict(zip(columns, nnls(matrix, np.ones(len(measured)))[0].tolist(), strict=True))
    # Nothing tells what the smallest attention takes from what the smallest feed-forward block does.
    smallest = found["layer"] / 2
    parts = {
        kind: _summed(smallest, {count: found.get((kind, count), 0.0) for count in counts[kind]}) for kind in KINDS
    }
    extra = _summed(-found["rank saves"], {rank: found["rank", rank] for rank in ranks})
    return {**parts, "ranks": extra, "fixed": found["fixed"]}


def _summed(start: float, steps: Mapping[int, float]) -> dict[int, float]:
    return dict(zip(steps, (start + step for step in accumulate(steps.values())), strict=True))


def _counts(config: PretrainedConfig) -> dict[Kind, list[int]]:
    """Heads and neurons that are measured, in ascending order."""
    shape, fixed = dense_structure(config).shapes[0], fixed_parts(config)
    found: dict[Kind, list[int]] = {}
    for kind in KINDS:
        full, multiple = getattr(shape, kind), _MULTIPLES[kind]
        shares = (1.0,) if kind in fixed else _SHARES[kind]
        found[kind] = sorted({min(max(round(full * share / multiple), 1) * multiple, full) for share in shares})
    return found


def _ranks(skeleton: PreTrainedModel) -> list[int]:
    """Ranks that are measured; none where the head needs the table, too."""
    if skeleton.get_output_embeddings() is not None:
        return []
    table: Any = skeleton.get_input_embeddings()
    width = table.embedding_dim
    return sorted({max(round(width * share), 1) for share in _RANKS})


def _stacks(counts: Mapping[Kind, list[int]], ranks: list[int], height: int, depth: int) -> dict[str, Structure]:
    """What is measured, each once, by what it is for."""
    average = {kind: each[len(each) // 2] for kind, each in counts.items()}

    def stack(layers: int, rank: int | None = None, **count: int) -> Structure:
        shape = LayerShape(**{**average, **count})
        return Structure(layers=(shape,) * layers + (None,) * (depth - layers), rank=rank)

    found = {f"{layers} layers": stack(layers) for layers in sorted({1, min(2, depth), height, depth})}
    found |= {f"{count} {kind}": stack(height, **{kind: count}) for kind in KINDS for count in counts[kind]}
    found |= {f"rank {rank}": stack(1, rank) for rank in ranks}
    names = {structure: name for name, structure in found.items()}
    return {name: structure for structure, name in names.items()}
