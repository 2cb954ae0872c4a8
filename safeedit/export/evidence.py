"""What an export says about itself.

``evidence/`` holds the run record and its renderings, the deltas, the tensors as they were
before (for a revert bit for bit: subtracting a delta in bf16 is not one), the ledger of erasure
requests where one is kept, and the manifest.
The model card lies on top as ``README.md``. With the originals or the deltas anybody can
undo the edit: leave them out of a copy that is passed on. The record is the root of it all:
everything else can be drawn from it, or has its digest there
(:mod:`~safeedit.export.verification`).

Fails with :class:`~safeedit.errors.ExportError` where something can't be written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from safeedit.cache import PRIVATE
from safeedit.delta import WeightDelta
from safeedit.export.disk import EVIDENCE, writing
from safeedit.export.manifest import CARD, DELTA, LEDGER, RECORD, UNDO, write_manifest
from safeedit.model.digest import tensor_digest
from safeedit.records import ExportRecord, RunRecord

FORMAT = "safeedit undo 1"


def claimed(
    export: ExportRecord, undo_tensors: Mapping[str, Tensor], ledger: str | None
) -> ExportRecord:
    """The export's record with the digests of what its evidence will hold.

    Args:
        export: As far as it is known from the checkpoint alone.
        undo_tensors: As for :func:`write_evidence`.
        ledger: Likewise.
    """
    originals = {name: tensor_digest(tensor) for name, tensor in sorted(undo_tensors.items())}
    sealed = None if ledger is None else hashlib.sha256(ledger.encode()).hexdigest()
    return export.model_copy(update={"originals": originals, "ledger": sealed})


def write_evidence(
    folder: Path,
    record: RunRecord,
    *,
    deltas: Mapping[str, WeightDelta],
    undo_tensors: Mapping[str, Tensor],
    reports: Mapping[str, str],
    ledger: str | None = None,
) -> dict[str, str]:
    """Write the evidence into a staged checkpoint; the manifest last, over everything.

    Args:
        folder: Holds the checkpoint already.
        record: The run that made it; its export as :func:`claimed`.
        deltas: Edit id -> what it changed.
        undo_tensors: Tensor name -> the original, as stored, of every tensor changed.
        reports: File name -> text of all that is drawn from the record; ``README.md``, the
            model card, goes to the top.
        ledger: Text of the ledger of erasure requests, where one is kept.

    Returns:
        Relative path -> sha256 of every file but the manifest.

    Raises:
        ExportError: The disk is full or can't be written.
    """
    evidence = folder / EVIDENCE
    with writing(evidence):
        evidence.mkdir(exist_ok=True)
        (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for name, text in reports.items():
            if name != Path(RECORD).name:
                place = folder if name == CARD else evidence
                (place / name).write_text(text, encoding="utf-8")
        if ledger is not None:
            (folder / LEDGER).write_text(ledger, encoding="utf-8", newline="\n")
        for edit_id, delta in deltas.items():
            delta.save(folder / DELTA.format(id=edit_id))
        header = json.dumps({"format": FORMAT})
        originals = {name: t.detach().cpu().contiguous() for name, t in undo_tensors.items()}
        # The originals of what was erased, and the changes that erased it, are for their owner.
        (folder / UNDO).touch(PRIVATE)
        save_file(originals, folder / UNDO, metadata={"safeedit": header})
        (folder / UNDO).chmod(PRIVATE)
        return write_manifest(folder)
