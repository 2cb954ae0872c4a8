"""What an export says about itself, and how to check it and take it back.

``evidence/`` holds the run record and its renderings, the deltas, the tensors as they were
before (for a revert bit for bit: subtracting a delta in bf16 is not one), the ledger of erasure
requests where one is kept, and the manifest.
The model card lies on top as ``README.md``. With the originals or the deltas anybody can
undo the edit: leave them out of a copy that is passed on.

Fails with :class:`~safeedit.errors.ExportError` where something can't be written, or an
export doesn't hold what its evidence says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safeedit.delta import WeightDelta
from safeedit.errors import ExportError, ModelError, UsageError
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.manifest import (
    DELTA,
    LEDGER,
    UNDO,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from safeedit.export.staging import EVIDENCE, Staging, writing
from safeedit.model.sources import open_model
from safeedit.private import keep_private, write_private
from safeedit.records import RunRecord

RECORD = "report.json"
CARD = "README.md"
FORMAT = "safeedit undo 1"


def write_evidence(
    folder: Path,
    record: RunRecord,
    *,
    deltas: Mapping[str, WeightDelta],
    undo_tensors: Mapping[str, Tensor],
    base_digest: str,
    reports: Mapping[str, str],
    ledger: str | None = None,
) -> dict[str, str]:
    """Write the evidence into a staged checkpoint; the manifest last, over everything.

    Args:
        folder: Holds the checkpoint already.
        record: The run that made it.
        deltas: Edit id -> what it changed.
        undo_tensors: Tensor name -> the original, as stored, of every tensor changed.
        base_digest: ``ModelHandle.digest()`` of the weights before the first edit.
        reports: File name -> text; ``README.md``, the model card, goes to the top.
        ledger: Text of the ledger of erasure requests, where one is kept.

    Returns:
        Relative path -> sha256 of every file but the manifest.

    Raises:
        ExportError: The disk is full or can't be written.
    """
    evidence = folder / EVIDENCE
    with writing(evidence):
        evidence.mkdir(exist_ok=True)
        (evidence / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for name, text in reports.items():
            if name != RECORD:
                place = folder if name == CARD else evidence
                (place / name).write_text(text, encoding="utf-8")
        if ledger is not None:
            (folder / LEDGER).write_text(ledger, encoding="utf-8", newline="\n")
        for edit_id, delta in deltas.items():
            delta.save(folder / DELTA.format(id=edit_id))
        header = json.dumps({"format": FORMAT, "base": base_digest})
        originals = {name: t.detach().cpu().contiguous() for name, t in undo_tensors.items()}
        # The originals of what was erased, and the changes that erased it, are for their owner.
        write_private(folder / UNDO, b"")
        save_file(originals, folder / UNDO, metadata={"safeedit": header})
        keep_private(folder / UNDO)
        return write_manifest(folder)


def verify(export: Path) -> list[str]:
    """What in an export is not as its evidence says, a line each; empty if all of it is.

    Checks every file against the manifest, and the manifest and the deltas against the run
    record. It can't tell who wrote the evidence.
    """
    problems = verify_manifest(export)
    path = export / EVIDENCE / RECORD
    try:
        record = RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError):
        return [*problems, f"{EVIDENCE}/{RECORD}: not a run record of this version"]
    if record.export is None or record.status != "pass":
        problems.append(f"{EVIDENCE}/{RECORD}: of a run that exported nothing")
    else:
        digests, _ = read_manifest(export)
        problems += [
            f"{name}: the manifest and the run record disagree"
            for name, digest in sorted(record.export.files.items())
            if digests.get(name) != digest
        ]
    if record.policy.get("ledger") is not None and LEDGER not in read_manifest(export)[0]:
        problems.append(f"{LEDGER}: not in the manifest, though the policy keeps a ledger")
    for edit in record.edits:
        name = DELTA.format(id=edit.id)
        if (export / name).exists() and _delta_digest(export / name) != edit.delta_digest:
            problems.append(f"{name}: not the delta of the run record")
    return problems


def revert(export: Path, out: Path) -> None:
    """Write the checkpoint an export was made from: the same weights, bit for bit.

    Args:
        export: A folder that :func:`write_evidence` completed.
        out: The folder to write; it must not exist.

    Raises:
        ExportError: The export is not what its evidence says, lacks the originals, or
            ``out`` can't be written.
    """
    with Staging(out) as staging:
        # A card may well have been edited since; of the rest, all must be what was exported.
        if problems := [text for text in verify(export) if not text.startswith(f"{CARD}:")]:
            raise ExportError(
                f"the export does not match its evidence, so it can't be reverted: {problems[0]}"
                + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
                file=export,
                remedy="take an undamaged copy of the export",
            )
        originals, base = _read_undo(export / UNDO)
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


def _read_undo(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.exists():
        raise ExportError(
            "this copy of the export came without the original tensors",
            file=path,
            remedy="use the full export, or the original model, named in evidence/report.json",
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["safeedit"])
            if header["format"] != FORMAT:
                raise ValueError(f"its format is not '{FORMAT}'")
            return {name: file.get_tensor(name) for name in file.keys()}, str(header["base"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"cannot read the original tensors: {error}", file=path) from error


def _delta_digest(path: Path) -> str:
    try:
        return WeightDelta.load(path).digest()
    except (ModelError, UsageError):
        return "unreadable"
