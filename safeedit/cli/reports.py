"""``safeedit report``, and the schemas of what is read and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeedit.cli.terminal import console, put, put_json
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from safeedit.records import RunRecord


@click.command()
@click.argument("records", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--format",
    "kind",
    type=click.Choice(
        ["terminal", "html", "md", "junit", "sarif", "comment", "annotations", "card", "bom"]
    ),
    default="terminal",
    show_default=True,
    help="comment: a few lines of Markdown for a pull request; annotations: GitHub's; card, bom: "
    "the model card and the CycloneDX ML-BOM of what was exported.",
)
def report(records: tuple[Path, ...], kind: str) -> None:
    """Render a record again: a report.json, or a folder holding one.

    Several RECORDS are set beside each other in the order of their runs, and what became worse is
    said first.
    """
    from safeedit.report import FORMATS, OF_AN_EXPORT
    from safeedit.report.terminal import render

    found = [_read_record(path) for path in records]
    if len(found) > 1:
        _compare(found, kind)
    elif kind == "terminal":
        render(found[0], console(stderr=False))
    elif kind in OF_AN_EXPORT and found[0].export is None:
        raise UsageError(
            f"this run exported nothing, so there is nothing for a {kind} to be about",
            file=records[0],
            field="--format",
            remedy="give the record of an export",
        )
    else:
        put(FORMATS[kind](found[0]), lines=True)


def _compare(records: list[RunRecord], kind: str) -> None:
    from safeedit.report.history import history
    from safeedit.report.over_time import as_html, as_markdown, on_screen

    if kind not in ("terminal", "md", "html"):
        raise UsageError(
            f"'{kind}' is of one run", field="--format", remedy="choose terminal, md or html"
        )
    if len({record.run_id for record in records}) < len(records):
        raise UsageError("a run is given twice", field="RECORDS", remedy="give each run once")
    found = history(records)
    if kind == "terminal":
        on_screen(found, console(stderr=False))
    else:
        put(as_html(found) if kind == "html" else as_markdown(found), lines=True)


@click.command()
@click.argument("kind", type=click.Choice(["policy", "report"]), default="policy")
def schema(kind: str) -> None:
    """Print the JSON Schema of policies, or of report.json, for editors and pipelines."""
    from safeedit import catalog
    from safeedit.policy import json_schema
    from safeedit.report.json import schema as report_schema

    found = report_schema() if kind == "report" else json_schema(*catalog.schemas())
    put_json(found)


def _read_record(path: Path) -> RunRecord:
    from safeedit.policy.files import MAX_JSON_BYTES, read_regular
    from safeedit.records import RunRecord

    if path.is_dir():
        candidates = (path / "report.json", path / "evidence" / "report.json")
        path = next((file for file in candidates if file.exists()), candidates[0])
    try:
        return RunRecord.model_validate_json(read_regular(path, limit=MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UsageError(
            "not a readable run record", file=path, remedy="give a report.json of this version"
        ) from error
