"""Taking an edit back: the checkpoint an export was made from, the same weights bit for bit.

What they were is the run record's word (the base's digest, the tensors the edits changed), never
that of the file that brings the originals. Fails with :class:`~safeedit.errors.ExportError`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from safeedit.errors import ExportError
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.disk import read_plain
from safeedit.export.manifest import RECORD, RENDERED, UNDO, not_plain
from safeedit.export.staging import Staging
from safeedit.export.verification import check_export, read_originals
from safeedit.model.sources import open_model
from safeedit.records import RunRecord


def revert(export: Path, out: Path) -> None:
    """Write the checkpoint an export was made from: the same weights, bit for bit.

    Args:
        export: A folder that :func:`~safeedit.export.evidence.write_evidence` completed.
        out: The folder to write; it must not exist.

    Raises:
        ExportError: The export is not what its evidence says, lacks the originals, or
            ``out`` can't be written.
        UsageError: ``out`` lies in the export or another checkpoint.
    """
    with Staging(out) as staging:
        # A card may well have been edited since; of the rest, all must be what was exported.
        strange = tuple(not_plain(export))  # stops all other checks: nothing of it is forgiven
        if problems := strange or check_export(export).without(*RENDERED).problems:
            raise ExportError(
                f"the export does not match its evidence, so it can't be reverted: {problems[0]}"
                + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
                file=export,
                remedy="take an undamaged copy of the export",
            )
        base = RunRecord.model_validate_json(read_plain(export / RECORD)).model.digest
        originals = read_originals(export / UNDO)
        handle = open_model(str(export), device="cpu")
        with torch.no_grad():
            for name, original in originals.items():
                _put_back(handle.stored(name), original, name)
        _require_base(handle.digest(fresh=True), base, export)
        write_checkpoint(handle, staging.path)
        del handle
        _require_base(open_model(str(staging.path), device="cpu").digest(), base, export)
        staging.promote()


def _put_back(stored: Tensor, original: Tensor, name: str) -> None:
    if stored.shape != original.shape or stored.dtype != original.dtype:
        raise ExportError(f"the original of '{name}' does not fit the export", file=UNDO)
    stored.copy_(original)


def _require_base(digest: str, base: str, export: Path) -> None:
    if digest != base:
        raise ExportError(
            f"the reverted weights (digest {digest[:12]}) are not those the edit started from "
            f"({base[:12]}); nothing was written",
            file=export,
            remedy="use the original model, named in evidence/report.json",
        )
