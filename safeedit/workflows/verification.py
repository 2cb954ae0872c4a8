"""``safeedit verify``: an export against its evidence, renderings included."""

from __future__ import annotations

from pathlib import Path

from safeedit.export.verification import Findings, check_export
from safeedit.report import render_evidence


def check(export: Path) -> Findings:
    """What is wrong with an export, and what another version of safeedit would have to check."""
    return check_export(export, render_evidence)


def verify(export: Path) -> list[str]:
    """What in an export is not as its evidence says, a line each; empty if all of it is.

    It can't tell who wrote the evidence: see :mod:`safeedit.export.verification`.
    """
    found = check(export)
    return [*found.problems, *found.unsure]
