"""A report as one HTML file: no scripts, nothing loaded from elsewhere, dark and light, for desk and phone."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_compress.report.section import Section
from lit_compress.report.sections import sections
from lit_compress.report.summary import basis, cautions, highlights, verdict_lines

__all__ = ["page", "render"]


def page(results: Mapping[str, Any], drawn: Mapping[str, tuple[str, str]]) -> str:
    """The report of one run.

    Args:
        results: of :func:`lit_compress.report.measure.measure_run`.
        drawn: caption and ``<svg>`` of each figure, by name.

    """
    machine = results["machine"]
    where = f"{results['data']['validation_rows']:,} validation examples, {results['data'].get('source', '')}"
    return render(
        title=f"Report of {results['run']}",
        kicker=str(results.get("task", "")).replace("_", " "),
        subtitle=f"{where}; {machine['device']}, {machine['threads']} threads",
        lead=_lead(results),
        tiles=highlights(results),
        parts=sections(results),
        drawn=drawn,
    )


def render(
    *,
    title: str,
    kicker: str,
    subtitle: str,
    lead: str = "",
    tiles: list[tuple[str, str, str]],
    parts: list[Section],
    drawn: Mapping[str, tuple[str, str]],
) -> str:
    """The page of a report or a comparison; every text is escaped, only the ``<svg>`` of figures is taken as it is."""
    # Not kept as a global: the template is read once for each report, and import stays fast.
    environment = Environment(
        loader=PackageLoader("lit_compress.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=title,
        kicker=kicker,
        subtitle=subtitle,
        lead=lead,
        tiles=tiles,
        parts=parts,
        drawn={name: {"caption": caption, "svg": Markup(svg)} for name, (caption, svg) in drawn.items()},
    )


def _lead(results: Mapping[str, Any]) -> str:
    """The verdict on the first metric, which is what most readers came for, and what to doubt about it."""
    if "comparison" not in results:
        return ""
    lines = verdict_lines(results)
    said = f"{lines[0][0].upper()}{lines[0][1:]} ({basis(results)})." if lines else ""
    return " ".join([said, *cautions(results)]).strip()
