"""``safeedit verify``: an export against its evidence, renderings included."""

from __future__ import annotations

from pathlib import Path

from safeedit.export.signing.checking import check_signature
from safeedit.export.signing.keys import VerifyingKey
from safeedit.export.verification import Findings, check_export
from safeedit.report import render_evidence


def check(export: Path, key: VerifyingKey | None = None) -> Findings:
    """What is wrong with an export, and what could not be checked.

    Args:
        export: The folder.
        key: Of whoever is trusted to sign; None leaves signature and claims unchecked. What the
            signature tells comes first.
    """
    signed = Findings() if key is None else check_signature(export, key)
    found = check_export(export, render_evidence)
    return Findings(
        tuple(dict.fromkeys((*signed.problems, *found.problems))), (*signed.unsure, *found.unsure)
    )


def verify(export: Path) -> list[str]:
    """What in an export is not as its evidence says, a line each; empty if all of it is.

    It can't tell who wrote the evidence: :func:`check` can, given a key.
    """
    found = check(export)
    return [*found.problems, *found.unsure]
