"""Latency tables and whole structures, measured on this machine in the runtime that a model is for.

Everything that is timed is a real export of a model of random weights, loaded in a process of its own; calls are
interleaved, and medians are taken. A table needs one model for each count: a stack of equal layers with that many
heads, or neurons. What it takes beyond a stack of average layers, divided by the number of its layers, is what the
count costs. One average layer, a stack of them and the whole depth give what a layer takes, and what is left without.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_ASSETS_CACHE
from transformers import PretrainedConfig, PreTrainedModel

from lit_compress.choices import Target
from lit_compress.console import say
from lit_compress.errors import UserError, first_line
from lit_compress.files import atomic_file
from lit_compress.models.groups import KINDS, Kind
from lit_compress.models.layout import encoder_layers, layout_of
from lit_compress.planning.latency import LatencyTable
from lit_compress.planning.random_models import (
    ENGINES,
    check_target,
    dense_structure,
    export_random,
    outline,
)
from lit_compress.planning.structure import LayerShape, Structure
from lit_compress.progress import counted
from lit_compress.report.benchmark import Case, measure, opened
from lit_compress.report.machine import instruction_sets, processor
from lit_compress.serve.engines import variants
from lit_compress.version import __version__

__all__ = ["fixed_parts", "measure_structures", "measure_table", "table_file", "table_settings"]

# Shares of the dense model's counts that are measured; the fourth of six and the third of five are an average layer's.
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
    rounds: int = _ROUNDS,
) -> dict[str, float]:
    """Median seconds of a forward pass of whole models of random weights, by name, interleaved.

    Args:
        config: of the dense model.
        structures: what to time; one with a target of its own is timed in that one.
        target: of the others.
        rows: of a batch.
        tokens: of a row.
        threads: of the processor; as many as PyTorch has by default.
        rounds: in each of which everything is called once.

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
        with opened(cases, threads or torch.get_num_threads(), "cpu") as asks:
            measure(cases, asks, [(rows, tokens)], _WARMUP, rounds)
    return {case.model: case.results["times"][f"{rows}x{tokens}"]["median_ms"] / 1e3 for case in cases}


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
    """Where the table of these settings is kept, beside what Hugging Face's libraries keep."""
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
        say(f"{path} is damaged ({first_line(error)}) and is measured anew")
        return None
    return table


def _measured(
    config: PretrainedConfig, target: Target, rows: int, tokens: int, threads: int, settings: Mapping[str, str]
) -> LatencyTable:
    skeleton, depth = outline(config), len(dense_structure(config).layers)
    counts, ranks = _counts(config), _ranks(skeleton)
    weights = sum(parameter.numel() for parameter in encoder_layers(skeleton)[0].parameters())
    height = min(depth, max(2, _WEIGHTS // weights))
    stacks = _stacks(counts, ranks, height, depth)
    # Some are one: a stack with as many heads as the average, and one that is as high as the model.
    names = {structure: name for name, structure in stacks.items()}
    distinct = {name: structure for structure, name in names.items()}
    found = measure_structures(config, distinct, target, rows, tokens, threads)
    seconds = {name: found[names[structure]] for name, structure in stacks.items()}
    one, stack, whole = (seconds[name] for name in ("one layer", "stack", "all layers"))
    fixed = max(one - (stack - one) / (height - 1), 0.0) if height > 1 else 0.0
    beyond = {
        kind: {count: (seconds[f"{count} {kind}"] - stack) / height for count in each} for kind, each in counts.items()
    }
    # Nothing tells what the smallest attention takes from what the smallest feed-forward block does.
    smallest = max((whole - fixed) / depth + sum(times[min(times)] for times in beyond.values()), 0.0)
    parts = {
        kind: _rising({count: smallest / 2 + time - times[min(times)] for count, time in times.items()})
        for kind, times in beyond.items()
    }
    extra = _rising({rank: seconds[f"rank {rank}"] - one for rank in ranks})
    return LatencyTable(heads=parts["heads"], neurons=parts["neurons"], ranks=extra, fixed=fixed, settings=settings)


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
    """What is measured, by name."""
    middle = {kind: each[len(each) // 2] for kind, each in counts.items()}

    def stack(layers: int, rank: int | None = None, **count: int) -> Structure:
        shape = LayerShape(**{**middle, **count})
        return Structure(layers=(shape,) * layers + (None,) * (depth - layers), rank=rank)

    found = {"one layer": stack(1), "stack": stack(height), "all layers": stack(depth)}
    found |= {f"{count} {kind}": stack(height, **{kind: count}) for kind in KINDS for count in counts[kind]}
    return found | {f"rank {rank}": stack(1, rank) for rank in ranks}


def _rising(times: Mapping[int, float]) -> dict[int, float]:
    """Times that do not fall with the count: what does is noise."""
    counts = sorted(times)
    return dict(zip(counts, accumulate((times[count] for count in counts), max), strict=True))
