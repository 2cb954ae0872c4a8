"""``safeedit verify``: an export against its evidence, renderings included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safeedit.export.disk import read_plain
from safeedit.export.manifest import BOM, RECORD
from safeedit.export.signing.checking import check_signature
from safeedit.export.signing.parties import Verifier
from safeedit.export.verification import Findings, check_export
from safeedit.records import RunRecord
from safeedit.report import render_evidence
from safeedit.report.bom import weights_named


def check(export: Path, trusted: Verifier | None = None) -> Findings:
    """What is wrong with an export, and what could not be checked.

    Args:
        export: The folder.
        trusted: Whoever is trusted to sign; None leaves signature and claims unchecked. What the
            signature tells comes first.
    """
    signed = Findings() if trusted is None else check_signature(export, trusted)
    found = check_export(export, render_evidence)
    problems = (*signed.problems, *_bill(export), *found.problems)
    return Findings(tuple(dict.fromkeys(problems)), (*signed.unsure, *found.unsure))


def _bill(export: Path) -> Iterator[str]:
    """Whether the bill of materials is that of these weights, as far as both can be read."""
    try:
        named = weights_named(read_plain(export / BOM).decode())
        record = RunRecord.model_validate_json(read_plain(export / RECORD))
    except (OSError, ValueError, RecursionError):
        return  # said elsewhere
    own = record.export.weights_digest if record.export is not None else named
    if named != own:
        told = f"of other weights, {named[:16]}" if named else "of no weights"
        yield f"{BOM}: the bill {told}; those of this export are {own[:16]}"


def verify(export: Path) -> list[str]:
    """What in an export is not as its evidence says, a line each; empty if all of it is.

    It can't tell who wrote the evidence: :func:`check` can, told whom to trust.
    """
    found = check(export)
    return [*found.problems, *found.unsure]
