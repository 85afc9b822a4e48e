"""How well a latency table predicts whole structures: its times for random ones beside those measured.

Each structure lacks some layers, has other heads and neurons in each, and a factorised embedding or none. The table is
measured anew, then the structures, interleaved, in the same runtime, all without a head; the row has a ratio of
predicted and measured time for each structure, and is written before the next target is begun.
"""

import random
from pathlib import Path

import torch
from jsonargparse import auto_cli
from transformers import PretrainedConfig

from lit_compress.choices import Target
from lit_compress.errors import UserError
from lit_compress.models.load import load_config
from lit_compress.planning.latency_command import parse_shape
from lit_compress.planning.measure_latency import measure_structures, measure_table
from lit_compress.planning.random_models import dense_structure
from lit_compress.planning.structure import LayerShape, Structure
from tools.bench.measure import MINILM, RESULTS, Row, publish, quiet


def latency_table(
    model: str = MINILM,
    targets: list[Target] = ["onnx-int8", "openvino-int8"],  # noqa: B006 (jsonargparse shows and never changes it)
    shape: str = "1x64",
    structures: int = 20,
    threads: int | None = None,
    repetitions: int = 40,
    seed: int = 0,
    output: Path = RESULTS,
) -> list[Row]:
    """Compare predicted with measured times.

    Args:
        model: hub name, folder or ``package:...``; a configuration is enough.
        targets: formats, one after the other.
        shape: ``ROWSxTOKENS``.
        structures: how many.
        threads: of the processor; as many as PyTorch has by default.
        repetitions: measured calls of each structure.
        seed: of the structures.
        output: CSV to append to.

    """
    rows, tokens = parse_shape(shape)
    threads = threads or torch.get_num_threads()
    config = load_config(model, "--model")
    config.architectures = None  # a head that scores every word has no factorised embedding
    draw = random.Random(seed)
    chosen = {f"structure {number}": random_structure(config, draw) for number in range(structures)}
    found = []
    for target in targets:
        with quiet():
            table = measure_table(config, target, rows, tokens, threads, remeasure=True)
            measured = measure_structures(config, chosen, target, rows, tokens, threads, repetitions).seconds
        predicted = {name: table.seconds(structure) for name, structure in chosen.items()}
        ratios = [predicted[name] / measured[name] for name in chosen]
        settings = {
            "model": model,
            "seed": seed,
            "largest error": round(max(abs(ratio - 1) for ratio in ratios), 4),
            "predicted ms": [round(1e3 * time, 3) for time in predicted.values()],
            "measured ms": [round(1e3 * time, 3) for time in measured.values()],
            "table": table.to_json(),
        }
        row = Row(
            benchmark="latency_table",
            case=f"{target}, {rows} x {tokens}, {threads} threads: predicted",
            baseline="measured",
            ratios=ratios,
            settings=settings,
        )
        publish([row], output)
        found.append(row)
    return found


def random_structure(config: PretrainedConfig, draw: random.Random) -> Structure:
    """A structure with a fifth of its layers gone and every other count between few and all."""
    dense = dense_structure(config)
    layers: list[LayerShape | None] = [
        LayerShape(draw.randint(1, shape.heads), 16 * draw.randint(1, shape.neurons // 16))
        if draw.random() > 0.2
        else None
        for shape in dense.shapes
    ]
    layers[0] = layers[0] or dense.shapes[0]
    width: int = config.hidden_size  # type: ignore[assignment]  (of every family with such a factorised embedding)
    rank = draw.choice([None, draw.randint(width // 12, width // 2)])
    return Structure(layers=tuple(layers), rank=rank)


if __name__ == "__main__":
    try:
        auto_cli(latency_table, as_positional=False)
    except UserError as error:
        raise SystemExit(f"latency_table: {error}") from error
