"""The exports that lie in a run folder; nothing of them is loaded or measured."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_compress.models.manifest_file import MANIFEST_FILE
from lit_compress.report.phrasing import bytes_text, ratio
from lit_compress.report.section import Section, Table
from lit_compress.report.summary import reference
from lit_compress.runtimes.engines import variants

__all__ = ["exported", "exports_in"]

# What :meth:`lit_compress.export.check.Comparison.words` says, in the model card of an export.
_CHECK = re.compile(r"^[\d.]+ % of predictions as PyTorch's on .*$", re.MULTILINE)


def exports_in(run: Path) -> list[dict[str, Any]]:
    """``{"file", "engine", "bytes", "check"}`` of each file that an engine loads, ``check`` a line of its card or None.

    Files are relative to the run folder; that of PyTorch is the folder.
    """
    found = []
    for folder in sorted(manifest.parent for manifest in run.rglob(MANIFEST_FILE)):
        card = folder / "README.md"
        check = _CHECK.search(card.read_text()) if card.is_file() else None
        found += [
            {
                "file": str(variant.file.relative_to(run)),
                "engine": variant.engine,
                "bytes": variant.bytes,
                "check": check and check[0],
            }
            for variant in variants(folder)
            if variant.engine != "compile"  # the same files as eager
        ]
    return found


def exported(results: Mapping[str, Any]) -> Section | None:
    """The part of a report that lists them."""
    found = results.get("exports")
    if not found:
        return None
    whose, full = reference(results)
    rows = []
    for entry in found:
        smaller, check = ratio(full["model"], entry["bytes"]), entry["check"] or "not compared"
        rows.append((entry["file"], entry["engine"], bytes_text(entry["bytes"]), smaller, check))
    header = ("file or folder", "runs on", "weights on disk", f"smaller than {whose}", "at export")
    return Section(
        name="exports",
        title="Exports",
        lines=("Files in the run folder as they are; nothing of them was measured again.",),
        tables=(Table(header=header, rows=rows),),
    )
