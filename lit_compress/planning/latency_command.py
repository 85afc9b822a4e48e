"""`lit_compress latency`: how long the parts of a model take on this machine, printed and drawn."""

import json
import re
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lit_compress.choices import Target
from lit_compress.console import say
from lit_compress.errors import UserError
from lit_compress.files import atomic_folder, check_folder
from lit_compress.models.heads_and_neurons import KINDS
from lit_compress.models.load import load_config
from lit_compress.models.positions import check_length
from lit_compress.planning.latency_table import LatencyTable
from lit_compress.planning.measure_latency import fixed_parts, measure_table
from lit_compress.planning.random_models import check_target, dense_structure
from lit_compress.planning.structure import Structure
from lit_compress.report.benchmark import check_sizes
from lit_compress.report.drawing import ACCENT, bare, chart, pixels, png

__all__ = ["latency", "parse_shape"]


def latency(
    model: str,
    target: Target = "onnx-int8",
    shape: str = "1x128",
    threads: int | None = None,
    output: str | None = None,
    remeasure: bool = False,
) -> None:
    """Measure how long heads, neurons and ranks of a model take on this machine, from its configuration alone.

    Options: :func:`lit_compress.commands.results.latency`.
    """
    if output is not None:
        check_folder(output, overwrite=True, kind="latency table", inputs=(model,))
    check_target(target)
    rows, tokens = parse_shape(shape)
    threads = torch.get_num_threads() if threads is None else threads
    check_sizes({"threads": [threads]})
    config = load_config(model, "model")
    dense, fixed = dense_structure(config), fixed_parts(config)
    check_length(config, tokens, f"model {model!r}", "--shape")
    for kind, reason in fixed.items():
        say(f"Only the dense number of {kind} is measured: {reason}")
    table = measure_table(config, target, rows, tokens, threads, remeasure)
    print_table(table, dense)
    if output is not None:
        save_table(table, Path(output))
        say(f"Saved as {output}: latency.json and latency.png")


def parse_shape(shape: str, key: str = "--shape") -> tuple[int, int]:
    """Examples and tokens of ``ROWSxTOKENS``.

    Raises:
        UserError: it is none, or one of them is 0.

    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)
    if found is None:
        raise UserError(f"{key}: {shape!r} must be ROWSxTOKENS, such as 1x128")
    return int(found[1]), int(found[2])


def print_table(table: LatencyTable, dense: Structure) -> None:
    """The times, and what the dense model takes by them."""
    settings = table.settings
    say(
        f"{settings['target']} at {settings['rows']} x {settings['tokens']}, {settings['threads']} threads, "
        f"{settings['processor']}: {settings['model']}"
    )
    lines = Table()
    lines.add_column("part", no_wrap=True)
    for column in ("count", "time"):
        lines.add_column(column, justify="right", no_wrap=True)
    for name, times in (
        ("heads of a layer", table.heads),
        ("neurons of a layer", table.neurons),
        ("rank of the word embedding, minus the whole table", table.ranks),
    ):
        for index, (count, time) in enumerate(sorted(times.items(), reverse=True)):
            lines.add_row(name if index == 0 else "", str(count), _duration(time))
        lines.add_section()
    lines.add_row("embeddings, head, runtime", "", _duration(table.fixed))
    lines.add_row("all of the dense model, as their sum", "", _duration(table.seconds(dense)))
    Console().print(lines)


def save_table(table: LatencyTable, folder: Path) -> None:
    """Write ``latency.json`` and ``latency.png``; the folder appears whole or not at all."""
    with atomic_folder(folder, overwrite=True, kind="latency table") as staging:
        (staging / "latency.json").write_text(json.dumps(table.to_json(), indent=1) + "\n")
        with chart(width=7.2, columns=len(KINDS)) as (figure, panels):
            for axes, kind in zip(panels, KINDS, strict=True):
                times = sorted(getattr(table, kind).items())
                axes.plot([count for count, _ in times], [1e6 * time for _, time in times], "o-", color=ACCENT)
                axes.set_xlabel(f"{kind} of a layer")
                axes.set_xlim(left=0)
                axes.set_ylim(bottom=0)
                bare(axes, "y")
            panels[0].set_ylabel("microseconds")
            (staging / "latency.png").write_bytes(png(pixels(figure)))


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if abs(seconds) >= 1e-3 else f"{1e6 * seconds:.0f} us"
