"""The last steps of a run that passed: evidence, what is kept elsewhere, signature, name.

In this order, so that what is signed is what is promoted, and the originals are in place before the
export that they belong to. Fails with :class:`~safeedit.errors.ExportError`; nothing is left then.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from safeedit.delta import WeightDelta
from safeedit.export.disk import writing
from safeedit.export.evidence import claimed, write_evidence
from safeedit.export.manifest import hash_files
from safeedit.export.signing.parties import Signer
from safeedit.export.signing.writing import sign_export
from safeedit.export.staging import Staging
from safeedit.export.weights import Written
from safeedit.export.withheld import set_aside
from safeedit.planning.plan import Plan
from safeedit.records import ExportRecord, RunRecord
from safeedit.report import render_evidence


def staged_export(folder: Path, target: Path, written: Written) -> ExportRecord:
    """What is known of an export from its staged checkpoint alone.

    Args:
        folder: Where it is staged.
        target: Where it goes.
        written: What lies in its weights files.
    """
    with writing(folder):
        files = hash_files(folder)
    return ExportRecord(
        directory=str(target),
        weights_digest=written.digest,
        untouched=len(written.digests) - len(written.changed),
        files=files,
    )


def with_export(
    plan: Plan, record: RunRecord, export: ExportRecord, originals: Mapping[str, Tensor]
) -> tuple[RunRecord, str | None]:
    """The record of a run that passed, with all that its export is going to hold, and the text of
    the ledger where one is kept.

    Args:
        plan: The run's.
        record: As judged.
        export: From :func:`staged_export`.
        originals: As for :func:`promote`.
    """
    ledger = plan.ledger.text(record) if plan.ledger is not None else None
    spec = plan.loaded.policy.export
    found = claimed(export, originals, ledger)
    if spec is not None and spec.private is not None:
        where = "encrypted" if spec.recipient is not None else "private"
        found = found.model_copy(update={"withheld": where})
    return record.model_copy(update={"export": found}), ledger


def promote(
    plan: Plan,
    staging: Staging,
    record: RunRecord,
    *,
    deltas: Mapping[str, WeightDelta],
    originals: Mapping[str, Tensor],
    ledger: str | None,
    sign: Signer | None,
) -> None:
    """Complete a staged checkpoint and give it its name.

    Args:
        plan: The run's.
        staging: Holds the checkpoint.
        record: From :func:`with_export`.
        deltas: Edit id -> what it changed.
        originals: Tensor name -> the original, as stored, of every tensor changed.
        ledger: Text of the ledger of erasure requests, where one is kept.
        sign: What to sign it with; None leaves it unsigned.

    Raises:
        ExportError: A disk is full or can't be written, or the name was taken meanwhile.
    """
    spec, private = plan.loaded.policy.export, plan.private_dir
    write_evidence(
        staging.path,
        record,
        deltas=deltas,
        undo_tensors=originals,
        reports=render_evidence(record),
        ledger=ledger,
    )
    with ExitStack() as stack:
        kept = None
        if private is not None and spec is not None:
            kept = stack.enter_context(
                set_aside(staging.path, private, record.run_id, spec.recipient)
            )
        if sign is not None:
            sign_export(staging.path, record, sign, staging.target.name)
        if kept is not None:
            kept.promote()
        try:
            staging.promote()
        except BaseException:
            if kept is not None:
                shutil.rmtree(kept.target, ignore_errors=True)
            raise
