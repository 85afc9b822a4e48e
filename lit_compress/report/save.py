"""A report as files: page, Markdown, JSON, pictures, and TensorBoard's event file."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lit_compress.files import atomic_folder
from lit_compress.report.drawing import pixels, png, svg
from lit_compress.report.figures import figures
from lit_compress.report.html_page import page
from lit_compress.report.markdown import markdown
from lit_compress.report.tensorboard import write_events

__all__ = ["save_report"]


def save_report(results: dict[str, Any], folder: str | Path) -> Path:
    """Write report.html, report.md, report.json, pictures and events; the folder appears whole or not at all.

    Raises:
        UserError: the folder exists and is not an earlier report.

    """
    drawn: dict[str, tuple[str, str]] = {}
    pictures: dict[str, np.ndarray] = {}
    for name, described, figure in figures(results):
        drawn[name] = described, svg(figure, name, described)
        pictures[name] = pixels(figure)
    with atomic_folder(folder, overwrite=True, kind="report") as staging:
        for name, image in pictures.items():
            (staging / f"{name}.png").write_bytes(png(image))
        (staging / "report.json").write_text(json.dumps(results, indent=1) + "\n")
        (staging / "report.md").write_text(markdown(results, list(pictures)))
        (staging / "report.html").write_text(page(results, drawn))
        write_events(staging, results, pictures)
    return Path(folder)
