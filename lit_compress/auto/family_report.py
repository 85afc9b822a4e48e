"""A family as a table in the terminal, and as report.html, report.md and report.json."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from rich.console import Console

from lit_compress.auto.retrieval import retrieval_table
from lit_compress.console import say
from lit_compress.files import atomic_file, begins, check_file
from lit_compress.report.drawing import ACCENT, DENSE, INK, MUTED, bare, chart, svg
from lit_compress.report.html_page import render
from lit_compress.report.markdown import cell, section
from lit_compress.report.pareto import pareto_front
from lit_compress.report.phrasing import number
from lit_compress.report.section import Section, Table
from lit_compress.report.terminal import screen_table

__all__ = ["check_page", "save_page", "speed_axis", "table"]

Results = Mapping[str, Any]
_STARTS = {
    "report.md": r"# Family of ",
    "report.json": r'\{\n "schema": \d+,\n "command": ',
    "report.html": r"<!doctype html>(?s:.*?)<title>Family of ",
}
_MANY = "texts/s"
# What loads models that are not a pipeline of Transformers, by task.
_SENTENCE_SNIPPETS = {
    "embedding": """\
import lit_compress  # teaches Transformers uneven shapes
from sentence_transformers import SentenceTransformer
print(SentenceTransformer("{0}").encode(["a text"]))""",
    "reranking": """\
import lit_compress  # teaches Transformers uneven shapes
from sentence_transformers import CrossEncoder
print(CrossEncoder("{0}").predict([("a query", "a document")]))""",
}


def check_page(folder: Path) -> None:
    """Refuse a folder in which a page would have to replace a file of someone else; for before any work."""
    for name, start in _STARTS.items():
        check_file(folder / name, begins(start), key="--run")


def save_page(results: Results, folder: Path) -> None:
    """Print the table, and write the three files."""
    check_page(folder)
    title = f"Family of {results['model']}"
    parts = _sections(results)
    drawn = {}
    with _front(results) as figure:
        drawn["front"] = _CAPTION, svg(figure, "front", _CAPTION)
    threads = str(results["machine"]["threads"])
    subtitle = (
        f"{results['target']} at {results['shape']} tokens; {results['validation']['rows']:,} validation examples; "
        f"{results['machine']['device']}, {threads} thread{'' if threads == '1' else 's'}"
    )
    html = render(
        title=title,
        kicker=results["task"].replace("_", " "),
        subtitle=subtitle,
        lead=lead(results),
        tiles=_tiles(results),
        parts=parts,
        drawn=drawn,
    )
    text = (
        "\n".join([f"# {cell(title)}", "", lead(results), *(line for part in parts for line in section(part))]) + "\n"
    )
    contents = {"report.json": json.dumps(results, indent=1) + "\n", "report.md": text, "report.html": html}
    for name, content in contents.items():
        with atomic_file(folder / name) as staging:
            staging.write_text(content)
    _print(results, folder)


def lead(results: Results) -> str:
    """What is recommended, and how sure that is."""
    best = _best(results)
    if best is None:
        return f"Recommended: the dense model; {results['why']}."
    return (
        f"Recommended: {best['name']}, {best['speedup']:.1f}x the speed of the dense model in fp32 in the same "
        f"runtime and {best['speedup_to_eager']:.1f}x that of Hugging Face eager; {results['why']}."
    )


def table(results: Results) -> Table:
    """A line for each model, the dense ones first."""
    header = ("", results["score"], "gain", "x dense", "x eager", "ms", _MANY, "file")
    eager, dense = results["references"]
    models = results["comparison"]["metrics"][results["score"]]["models"]
    points = results["points"][results["score"]]

    def figures(entry: Mapping[str, Any]) -> tuple[str, ...]:
        mine = entry["times"][results["shape"]]["median_ms"]
        ratios = (other["times"][results["shape"]]["median_ms"] / mine for other in (dense, eager))
        most = max(_throughput(times) for times in entry["times"].values())
        return (*(f"{each:.2f}" for each in ratios), f"{mine:.2f}", f"{most:,.0f}", f"{entry['bytes'] / 1e6:.1f} MB")

    rows = [
        ("eager", "", "", *figures(eager)),
        ("dense", _interval(models["dense"], points), "", *figures(dense)),
    ]
    rows += [
        (
            each["name"],
            _interval(dict(zip(("value", "low", "high"), (each["score"], *each["interval"]), strict=True)), points),
            _gain(each["loss"]),
            *figures(each),
        )
        for each in results["members"]
    ]
    return Table(header=header, rows=rows)


def _gain(loss: float | None) -> str:
    if loss is None:
        return number(None)
    gain = -round(loss, 1)
    return f"{gain:+.1f}" if gain else "0.0"


def _throughput(times: Mapping[str, float]) -> float:
    """Texts per second, also of a report from before the key had this name."""
    return times["texts_per_second"] if "texts_per_second" in times else times["rows_per_second"]


def _interval(estimate: Mapping[str, Any], points: float | None) -> str:
    value = number(estimate["value"], points)
    if estimate["low"] is None:
        return value
    return f"{value} ({number(estimate['low'], points)}–{number(estimate['high'], points)})"


def _sections(results: Results) -> list[Section]:
    members = results["members"]
    return [
        Section(
            name="family",
            title="The family",
            lines=(
                f"{results['score']} on {results['validation']['rows']:,} validation examples "
                f"({results['validation']['source']}), computed by the runtime that is timed, with its 95 % interval; "
                "gain: points better than the dense model, negative: worse.",
                "x dense: times the speed of the dense model in fp32 in the same runtime; x eager: of the dense model "
                f"in Hugging Face eager; ms: median of a call at {results['shape']} tokens, calls interleaved; "
                f"{_MANY}: at the larger batch.",
            ),
            figures=("front",),
            tables=(table(results),),
        ),
        *_found(results),
        Section(name="members", title="How each member was made", lines=tuple(map(_done, members))),
        Section(name="load", title="Use it", code=_snippets(results)),
        Section(name="layers", title="What is left of each layer", tables=(_layers(members),)),
        Section(
            name="reproduce",
            title="How to reproduce it",
            lines=(", ".join(f"{key} {value}" for key, value in results["machine"].items()),),
            code=(
                ("the family", results["command"]),
                *((each["name"], f"lit_compress fit --config {each['run']}/config.yaml") for each in _own(members)),
            ),
        ),
    ]


def _found(results: Results) -> list[Section]:
    """What members find, where they were asked."""
    found = results.get("retrieval")
    if found is None:
        return []
    line = (
        f"{found['queries']:,} queries of {found['source']}, each among the texts of all rows, computed by the runtime "
        "that is timed; the first metric with its 95 % interval, in points."
    )
    return [Section(name="retrieval", title="What it finds", lines=(line,), tables=(retrieval_table(results),))]


def _own(members: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Members that are not the same model as an earlier one."""
    return [each for each in members if each["same_as"] is None]


def _done(member: Mapping[str, Any]) -> str:
    if member["same_as"]:
        return f"{member['name']}: {member['same_as']} is that fast already, and is this member."
    missed = member["asked"] and member["speedup"] < 0.95 * member["asked"]
    return (
        f"{member['name']}: {member['done']}, {member['engine']}; {member['said']}"
        + (f"; {member['speedup']:.2f}x where {member['asked']:g}x was asked" if missed else "")
        + ("; planned a second time, by what the first plan measured" if member["planned_twice"] else "")
        + "."
    )


def _layers(members: list[Mapping[str, Any]]) -> Table:
    own = _own(members)
    count = len(own[0]["structure"]["layers"])
    rows = [
        (
            str(layer),
            *(
                "gone" if (left := each["structure"]["layers"][layer]) is None else f"{left[0]} / {left[1]:,}"
                for each in own
            ),
        )
        for layer in range(count)
    ]
    return Table(header=("layer: heads / neurons", *(each["name"] for each in own)), rows=rows)


def _snippets(results: Results) -> tuple[tuple[str, str], ...]:
    """A few lines that load the recommended member and ask it something."""
    best = _best(results) or results["members"][0]
    texts = '["a query"], ["a document"]' if results["task"] == "reranking" else '["a text"]'
    tokens = f"""batch = transformers.AutoTokenizer.from_pretrained("{best["folder"]}")({texts}, return_tensors="np")"""
    if best["engine"].startswith("onnxruntime"):
        lines = [
            "import onnxruntime, transformers",
            f'session = onnxruntime.InferenceSession("{best["file"]}")',
            tokens,
            "print(session.run(None, {each.name: batch[each.name] for each in session.get_inputs()}))",
        ]
    elif best["engine"].startswith("openvino"):
        lines = [
            "import openvino, transformers",
            f'model = openvino.Core().compile_model("{best["file"]}", "CPU")',
            tokens,
            "print(model({each.get_any_name(): batch[each.get_any_name()] for each in model.inputs}))",
        ]
    else:
        lines = _SENTENCE_SNIPPETS.get(results["task"], "").format(best["folder"]).splitlines() or [
            "import lit_compress, transformers  # the first teaches the second uneven shapes",
            f'model = transformers.pipeline("{results["pipeline_tag"]}", model="{best["folder"]}")',
            'print(model("a text"))',
        ]
    return ((f"{best['name']}, in Python", "\n".join(lines)),)


def _best(results: Results) -> Mapping[str, Any] | None:
    return next((each for each in results["members"] if each["name"] == results["recommended"]), None)


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    best = _best(results)
    if best is None:
        return []
    dense = results["references"][1]
    return [
        ("speed", f"{best['speedup']:.1f}x", "of dense fp32 in the same runtime"),
        ("speed", f"{best['speedup_to_eager']:.1f}x", "of dense Hugging Face eager"),
        (results["score"], number(best["score"], results["points"][results["score"]]), best["said"]),
        (
            "file",
            f"{best['bytes'] / 1e6:.1f} MB",
            f"{dense['bytes'] / best['bytes']:.1f} times smaller than dense fp32",
        ),
    ]


_CAPTION = "Score and speed of each member, with the 95 % interval of the score; on the line those that none beats"


@contextmanager
def _front(results: Results) -> Iterator[Figure]:
    """Speed against score, the front as a line."""
    points = results["points"][results["score"]] or 1.0
    models = results["comparison"]["metrics"][results["score"]]["models"]
    dense = models["dense"] | {"speed": 1.0, "name": "dense", "color": DENSE}
    entries = [dense] + [
        {"speed": each["speedup"], "name": each["name"], "color": ACCENT}
        | dict(zip(("value", "low", "high"), (each["score"], *each["interval"]), strict=True))
        for each in _own(results["members"])
    ]
    entries = [each for each in entries if each["value"] is not None]  # a score that is not defined is nowhere
    sign = -1 if results["score"] in results["lower_is_better"] else 1
    front = pareto_front([-each["speed"] for each in entries], [sign * each["value"] for each in entries])
    with chart(height=3.4) as (figure, (axes,)):
        line = sorted((entries[index]["speed"], points * entries[index]["value"]) for index in front)
        axes.plot(*zip(*line, strict=True), color=ACCENT, linewidth=1.4, alpha=0.5)
        for index, each in enumerate(entries):
            value = points * each["value"]
            if each["low"] is not None:
                axes.plot([each["speed"]] * 2, [points * each["low"], points * each["high"]], color=MUTED, linewidth=1)
            axes.plot(each["speed"], value, "o", color=each["color"], markersize=7)
            ink = INK if index in front else MUTED
            axes.annotate(
                each["name"], (each["speed"], value), (7, 5), textcoords="offset points", fontsize=9, color=ink
            )
        speed_axis(axes, max((each["speed"] for each in entries), default=1.0))
        axes.set_ylabel(results["score"] + (", points" if results["points"][results["score"]] else ""))
        bare(axes, "both")
        yield figure


def speed_axis(axes: Any, fastest: float) -> None:
    """Times the speed of the dense model, on a logarithmic scale up to the fastest."""
    axes.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 4, 8, 16, 32, 64) if tick <= 1.3 * fastest]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("times the speed of the dense model in fp32, same runtime")


def _print(results: Results, folder: Path) -> None:
    made = table(results)
    for each in (made, *([retrieval_table(results)] if results.get("retrieval") else [])):
        Console(highlight=False).print(screen_table("", each.header, each.rows, words=each.header[:1]))
    for line in (*map(_done, results["members"]), lead(results)):
        say(line)
    say(f"Saved as {folder / 'report.html'}, report.md and report.json")
    if best := _best(results):
        say(f"The recommended model: {best['folder']}")
