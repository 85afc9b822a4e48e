"""The parts of a report as titles, sentences, tables and names of figures: what page, Markdown and model card show."""

import shlex
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from lit_compress.report.bootstrap import FEW_CHANGES
from lit_compress.report.changed_predictions import changed
from lit_compress.report.curves import training
from lit_compress.report.exported import exported
from lit_compress.report.phrasing import amount, bytes_text, metric_title, number, points_of, ratio, settings_text
from lit_compress.report.section import Section, Table
from lit_compress.report.summary import Results, basis, cautions, own_name, reference, title_of, verdict_lines

__all__ = ["layers", "metrics", "reproduce", "sections", "size_and_speed", "slices"]


def sections(results: Results) -> list[Section]:
    """Every part that has something to say, in reading order; none for results of before version 2."""
    if "comparison" not in results:
        return []
    parts = (metrics, size_and_speed, exported, layers, training, slices, changed, calibration, reproduce)
    return [section for part in parts if (section := part(results)) is not None]


def metrics(results: Results) -> Section:
    """Metrics with intervals, and answers that changed."""
    comparison = results["comparison"]
    models = list(next(iter(comparison["metrics"].values()))["models"])
    rows = []
    for metric, entry in comparison["metrics"].items():
        points = points_of(results, metric)
        cells = [_with_interval(entry["models"][name], points) for name in models]
        cells += [_difference(difference, points) for difference in entry["differences"].values()]
        rows.append((metric_title(results, metric), *cells))
    compared = [name for name in models if name != "dense"] if "dense" in models else []
    header = (
        "",
        *(title_of(name) for name in models),
        *("difference" if name == own_name(results) else f"difference, {title_of(name)}" for name in compared),
    )
    lines = [*cautions(results), *verdict_lines(results)]
    if compared:
        lines.append(f"{basis(results)[0].upper()}{basis(results)[1:]}; undecided wherever it touches 0.")
    if changes := results.get("changes"):
        lines.append(
            f"{changes['lost']} {comparison['unit']} that dense predicts correctly became wrong, "
            f"{changes['gained']} became correct; {changes['both_right']} are correct in both and "
            f"{changes['both_wrong']} wrong in both."
        )
    for option, value in results.get("tuned", {}).items():
        lines.append(
            f"data.{option} {value:.4g} would be best for F1 on these {comparison['unit']}. best_f1 and best_exact are "
            "what the best threshold gives; it was chosen on the same answers, so they are a little high."
        )
    title = "Metrics, compared with the dense model" if compared else "Metrics"
    return Section(
        name="metrics",
        title=title,
        lines=tuple(lines),
        figures=("metrics",),
        tables=(Table(header=header, rows=rows),),
    )


def size_and_speed(results: Results) -> Section:
    """Bytes and milliseconds."""
    models, (whose, bytes_of) = results["models"], reference(results)
    rows: list[tuple[str, ...]] = []
    for part, title in (("encoder", "encoder linears"), ("model", "whole model")):
        sizes = [model["size"][part] for model in models.values()]
        full = bytes_of[part]
        rows += [
            (f"{title}: parameters", *(f"{size['parameters']:,}" for size in sizes)),
            (f"{title}: non-zeros", *(f"{size['nonzeros']:,}" for size in sizes)),
            (f"{title}: values", *(f"{bytes_text(s['value_bytes'])} ({ratio(full, s['value_bytes'])})" for s in sizes)),
            (
                f"{title}: values + index",
                *(f"{bytes_text(s['compressed_bytes'])} ({ratio(full, s['compressed_bytes'])})" for s in sizes),
            ),
        ]
        if any(size["dense_bytes"] != full for size in sizes):
            own = (f"{bytes_text(s['dense_bytes'])} ({ratio(s['dense_bytes'], s['compressed_bytes'])})" for s in sizes)
            rows.append((f"{title}: own fp32 (and how many times more than values + index)", *own))
    for batch in next(iter(models.values()))["latency_ms"]:
        cells = [
            f"{m['latency_ms'][batch]:.1f} ms (" + " to ".join(f"{v:.1f}" for v in m["latency_spread_ms"][batch]) + ")"
            for m in models.values()
        ]
        rows.append((f"latency, batch {batch} × {results['data']['max_length']} tokens", *cells))
    return Section(
        name="size-and-speed",
        title="Size and speed",
        lines=(
            "Bytes are those of non-zeros in their stored type, with one bit per position where a matrix is stored "
            f"sparsely, and scales; in brackets how many times less than {whose}. The exported folder itself stores "
            "fp32 with zeros.",
            "Latency is the median of eager PyTorch (in brackets from the fastest to the slowest tenth), where zeros "
            "and simulated int8 save no time; only what is physically smaller does.",
        ),
        figures=("size", "latency"),
        tables=(Table(header=("", *models), rows=rows),),
    )


def layers(results: Results) -> Section:
    """Strategies, and what became of layers, matrices and tables."""
    settings = results["settings"]
    lines = [f"{entry['name']}: {settings_text(entry['settings'])}" for entry in settings["compression"]]
    lines += [f"{entry['name']}: {settings_text(entry['settings'])}" for entry in settings["distillation"]]
    kept, before = len(results["layers"]), results["dense_layers"]
    if before and kept != before:
        lines.append(f"{kept} of {before} layers are left.")
    if results["attention"]:
        lines.append(f"Attention computes with quantized tensors in {len(results['attention'])} layers.")
    rows = _merged(
        (
            "–" if row["layer"] is None else str(row["layer"]),
            _of(row["heads"], row["dense_heads"]),
            _of(row["neurons"], row["dense_neurons"]),
            f"{row['sparsity']:.1%}",
            row["weights"],
            row["inputs"],
        )
        for row in results["layers"]
    )
    matrices = [
        (
            matrix["name"],
            _shape(matrix["shape"])
            + (f" of {_shape(matrix['dense_shape'])}" if matrix["dense_shape"] not in (None, matrix["shape"]) else ""),
            f"{matrix['sparsity']:.1%}",
            matrix["weights"] or "fp32",
            matrix["inputs"] or "fp32",
            bytes_text(matrix["bytes"]),
        )
        for matrix in results["matrices"]
    ]
    tables = [
        (
            table["name"],
            f"{table['rows']:,} × {table['width']}",
            str(table["rank"] or "full"),
            table["weights"] or "fp32",
        )
        for table in results["tables"]
    ]
    made = [Table(header=("layer", "heads", "feed-forward neurons", "zeros", "weights", "inputs"), rows=rows)]
    if tables:
        made.append(Table(header=("embedding table", "rows × width", "rank", "weights"), rows=tables))
    header = ("matrix", "shape", "zeros", "weights", "inputs", "values + index")
    made.append(Table(header=header, rows=matrices, summary=f"All {len(matrices)} matrices"))
    return Section(
        name="layers",
        title="Compression by layer",
        lines=tuple(lines) or ("Nothing was compressed.",),
        figures=("sparsity", "blocks"),
        tables=tuple(made),
    )


def slices(results: Results) -> Section | None:
    """Classes and slices."""
    comparison, name = results["comparison"], own_name(results)
    tables, count = [], 0
    for part, title in (("classes", "class"), ("slices", "slice")):
        if not comparison[part]:
            continue
        shown = list(next(iter(comparison[part].values()))["metrics"])
        rows = []
        for label, entry in comparison[part].items():
            cells = [_own_and_change(entry["metrics"][metric], name, points_of(results, metric)) for metric in shown]
            rows.append((label, f"{entry['units']:,}", *cells))
        count += len(rows) * len(shown)
        tables.append(Table(header=(title, "how many", *shown), rows=rows))
    if not tables:
        return None
    lines = ()
    if any(entry["differences"] for entry in comparison["metrics"].values()):
        lines = (
            "The model's own value, and in brackets the interval of its difference to dense, both in points.",
            f"Of {count} such intervals about {amount(count * (1 - comparison['confidence']))} leave out 0 by chance.",
        )
    return Section(
        name="slices", title="Classes and slices", lines=lines, figures=("parts", "confusion"), tables=tuple(tables)
    )


def calibration(results: Results) -> Section | None:
    """Calibration."""
    if not results["calibration"]:
        return None
    rows = [(title_of(name), f"{100 * model['ece']:.2f}") for name, model in results["calibration"].items()]
    return Section(
        name="calibration",
        title="Calibration",
        lines=(
            "Predictions with a probability of 80 % should be correct in 80 % of cases: the dashed line. Larger dots: "
            "more examples.",
        ),
        figures=("calibration",),
        tables=(Table(header=("", "expected calibration error, points"), rows=rows),),
    )


def reproduce(results: Results) -> Section:
    """Commands, configuration, machine."""
    settings = results["settings"]
    fit = shlex.join(["lit_compress", "fit", "--config", results["config"], "--run", "NEW_RUN"])
    facts = [
        ("started from", settings["pretrained"]),
        ("compared with", results["dense"]),
        ("validation data", results["data"]["source"]),
        ("validation examples", f"{results['data']['validation_rows']:,}"),
        ("epochs", settings["epochs"]),
        ("learning rate", settings["learning_rate"]),
        ("seed", settings["seed"]),
        *results["machine"].items(),
    ]
    comparison = results["comparison"]
    return Section(
        name="reproduce",
        title="How to reproduce it",
        lines=(
            f"Intervals: paired bootstrap, {comparison['resamples']:,} resamples of {comparison['units']:,} "
            f"{comparison['unit']}, seed {comparison['seed']}, percentiles. Where fewer than {FEW_CHANGES} predictions "
            "changed, McNemar's exact test decides, and fractions of correct predictions have the exact interval "
            "that belongs to it. They are about other data of this kind, not about other seeds of the training.",
        ),
        tables=(Table(header=("", ""), rows=[(key, str(value)) for key, value in facts if value is not None]),),
        code=(("Train again", fit), ("This report", results["command"]), ("Configuration", results["config_text"])),
    )


def _merged(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Layers that follow each other and say the same, as one row."""
    merged = []
    for cells, group in groupby(rows, key=lambda row: row[1:]):
        names = [row[0] for row in group]
        merged.append((names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", *cells))
    return merged


def _with_interval(estimate: Mapping[str, Any], points: float | None) -> str:
    if estimate["low"] is None:
        return number(estimate["value"], points)
    return (
        f"{number(estimate['value'], points)} ({number(estimate['low'], points)} to {number(estimate['high'], points)})"
    )


def _difference(estimate: Mapping[str, Any], points: float | None) -> str:
    return f"{_signed(estimate['value'], points)} ({_range(estimate, points)})"


def _own_and_change(entry: Mapping[str, Any], name: str, points: float | None) -> str:
    own = number(entry["models"][name]["value"], points)
    change = entry["differences"].get(name)
    return f"{own} ({_range(change, points)})" if change else own


def _range(estimate: Mapping[str, Any], points: float | None) -> str:
    if estimate["low"] is None:
        return "–"
    return f"{_signed(estimate['low'], points)} to {_signed(estimate['high'], points)}"


def _signed(value: float | None, points: float | None) -> str:
    if value is None:
        return "–"
    scaled = value * (points or 1)
    digits = 1 if points is not None else 2
    return f"{0.0:.{digits}f}" if round(scaled, digits) == 0 else f"{scaled:+.{digits}f}".replace("-", "−")


def _of(count: int | None, full: int | None) -> str:
    if count is None:
        return "–"
    return f"{count:,} of {full:,}" if full not in (None, count) else f"{count:,}"


def _shape(shape: list[int]) -> str:
    return " × ".join(f"{length:,}" for length in shape)
