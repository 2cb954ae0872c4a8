"""Reports: pure functions from a run record to text.

- :mod:`~safeedit.report.content`: what a report says, in any format; its limits
- :mod:`~safeedit.report.summary`: the first screen, five questions answered in sentences
- :mod:`~safeedit.report.gates`: a gate in plain words, with its interval and its bound
- :mod:`~safeedit.report.evidence`: what a supervisor asks, by ``evidence.yaml`` beside it
- :mod:`~safeedit.report.wording`: how figures are written
- :mod:`~safeedit.report.figures`: inline SVG
- :mod:`~safeedit.report.card`: the model card of an export
- :mod:`~safeedit.report.terminal`, :mod:`~safeedit.report.html`,
  :mod:`~safeedit.report.markdown`, :mod:`~safeedit.report.junit`,
  :mod:`~safeedit.report.sarif`, :mod:`~safeedit.report.bom`,
  :mod:`~safeedit.report.comment`, :mod:`~safeedit.report.github`,
  :mod:`~safeedit.report.json`: the formats, each with its ``render``

A record holds no text from the data, and neither does a report; tables of items are never
shown, not even by digest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safeedit.records import RunRecord
from safeedit.report import (
    bom,
    card,
    comment,
    github,
    html,
    json,
    junit,
    markdown,
    sarif,
)
from safeedit.report.files import write_files

__all__ = [
    *("BOM", "FILES", "FORMATS", "OF_AN_EXPORT"),
    *("render_all", "render_evidence", "write_all"),
]


FILES = ("report.json", "report.html", "report.md", "junit.xml", "report.sarif")
"""Names of the files that :func:`render_all` makes."""

BOM = "bom.cdx.json"
"""Name of the bill of materials among an export's evidence."""

FORMATS: dict[str, Callable[[RunRecord], str]] = {
    "html": html.render,
    "md": markdown.render,
    "junit": junit.render,
    "sarif": sarif.render,
    "comment": comment.render,
    "annotations": github.render,
    "card": card.render,
    "bom": bom.render,
}
"""What ``safeedit report --format`` knows beside the terminal; the last two are of an export."""
OF_AN_EXPORT = ("card", "bom")


def render_all(record: RunRecord) -> dict[str, str]:
    """Every format that is a file: name -> text."""
    return {
        "report.json": json.render(record),
        "report.html": html.render(record),
        "report.md": markdown.render(record),
        "junit.xml": junit.render(record),
        "report.sarif": sarif.render(record),
    }


def render_evidence(record: RunRecord) -> dict[str, str]:
    """Every format, the bill of materials and the model card: what an export's evidence holds."""
    return {**render_all(record), BOM: bom.render(record), "README.md": card.render(record)}


def write_all(record: RunRecord, folder: Path, option: str = "--report") -> None:
    """Write every format into a folder; the record first, so that it is there whatever happens to
    the others (``safeedit report`` makes them from it).

    Raises:
        ExportError: See :func:`~safeedit.report.files.write_files`.
    """
    write_files({"report.json": json.render(record)}, folder, option)
    write_files(render_all(record), folder, option)
