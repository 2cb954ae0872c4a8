"""Taking an edit back: the checkpoint an export was made from, the same weights bit for bit.

What they were is the run record's word (the base's digest, the tensors the edits changed), never
that of the file that brings the originals. No model is opened: the files are the export's own, and
in them the originals, under the names and in the dtypes that they had on disk. Fails with
:class:`~safeedit.errors.ExportError`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safeedit.errors import ExportError
from safeedit.export.disk import read_plain, writing
from safeedit.export.manifest import RECORD, RENDERED, not_plain
from safeedit.export.staging import Staging
from safeedit.export.verification import check_export, read_originals
from safeedit.export.weights import by_file, replace_tensors
from safeedit.export.withheld import originals_of
from safeedit.model.digest import digest_of
from safeedit.model.headers import read_headers
from safeedit.model.stored import stored_digests
from safeedit.records import RunRecord


def revert(
    export: Path, out: Path, *, private: Path | None = None, identity: Path | None = None
) -> None:
    """Write the checkpoint an export was made from: the same weights, bit for bit.

    Args:
        export: A folder that :func:`~safeedit.export.evidence.write_evidence` completed.
        out: The folder to write; it must not exist.
        private: Where the originals lie, if elsewhere: the policy's ``export.private``.
        identity: File of the private key of age, if they are encrypted.

    Raises:
        ExportError: The export is not what its evidence says, lacks the originals, or
            ``out`` can't be written.
        ModelError: The export's weights can't be read.
        UsageError: ``out`` lies in the export or another checkpoint, or the key opens nothing.
    """
    with Staging(out) as staging:
        # A card may well have been edited since; of the rest, all must be what was exported.
        strange = not_plain(export)
        if problems := strange or check_export(export).without(*RENDERED).problems:
            raise ExportError(
                f"the export does not match its evidence, so it can't be reverted: {problems[0]}"
                + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
                file=export,
                remedy="take an undamaged copy of the export",
            )
        record = RunRecord.model_validate_json(read_plain(export / RECORD))
        found = originals_of(export, private, record.run_id, identity, staging.path)
        with found as originals, writing(staging.path):
            _put_back(export, originals, record, staging.path)
        _require_base(staging.path, record.model.digest, export)
        staging.promote()


def _put_back(export: Path, undo: Path, record: RunRecord, folder: Path) -> None:
    """Write the export's checkpoint into ``folder``, the originals in their places."""
    originals = read_originals(undo)
    headers = read_headers(export)
    if strange := sorted(originals.keys() - headers.keys()):
        raise ExportError(f"the export holds no '{strange[0]}'", file=undo)
    weights = by_file(headers)
    for name in record.export.files if record.export is not None else ():
        file, target = export / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        inside = weights.get(file)
        if inside is None:
            shutil.copyfile(file, target)
        else:
            own = {tensor: originals[tensor] for tensor in inside if tensor in originals}
            replace_tensors(file, inside, own, target)


def _require_base(folder: Path, base: str, export: Path) -> None:
    digest = digest_of(stored_digests(read_headers(folder)))
    if digest != base:
        raise ExportError(
            f"the reverted weights (digest {digest[:12]}) are not those the edit started from "
            f"({base[:12]}); nothing was written",
            file=export,
            remedy="use the original model, named in evidence/report.json",
        )
