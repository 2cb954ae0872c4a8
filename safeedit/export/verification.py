"""Is an export what its evidence says? Computed again, as far as it can be.

- every file against the manifest, plain files only, and the manifest against the full list of
  what an export holds: the record's checkpoint files, record, renderings, deltas, originals and,
  where the policy keeps one, the ledger
- the weights' digest from the tensors; the base's digest from the tensors with the originals put
  back; originals, deltas and ledger from the digests in the record
- what follows within the record (:mod:`~safeedit.export.claims`), and the renderings from it

What is left to trust is the record: who changes it and everything that follows from it is found
out by the signature alone (:mod:`safeedit.export.signing`). Nothing is believed on its word before
it is parsed, and no link or pipe is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safeedit import __version__
from safeedit.delta import WeightDelta
from safeedit.errors import DataError, ExportError, ModelError, SafeeditError, UsageError
from safeedit.export.claims import changed_tensors, contradictions
from safeedit.export.disk import EVIDENCE, read_plain
from safeedit.export.evidence import FORMAT
from safeedit.export.ledger.file import read_ledger
from safeedit.export.manifest import (
    CARD,
    DELTA,
    LEDGER,
    MANIFEST,
    RECORD,
    RENDERED,
    UNDO,
    not_plain,
    read_manifest,
    verify_manifest,
)
from safeedit.model.digest import digest_of, tensor_digest
from safeedit.model.headers import read_headers
from safeedit.model.stored import stored_digests
from safeedit.records import ExportRecord, RunRecord

Renderings = Callable[[RunRecord], Mapping[str, str]]
"""Record -> file name -> text, for every name in ``RENDERED`` (without its folder)."""


@dataclass(frozen=True)
class Findings:
    """What is wrong with an export, a line each; each begins with the file it is about."""

    problems: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    """What another version of safeedit concluded or drew, and this one would not."""

    def without(self, *files: str) -> Findings:
        """The same but for what is wrong with these files."""
        starts = tuple(f"{name}:" for name in files)
        return Findings(
            *(
                tuple(line for line in lines if not line.startswith(starts))
                for lines in (self.problems, self.unsure)
            )
        )


def check_export(export: Path, renderings: Renderings | None = None) -> Findings:
    """Check an export against its evidence, and its evidence against itself.

    Args:
        export: The folder.
        renderings: Draws what an export's record is drawn as; None leaves that unchecked.
    """
    if strange := not_plain(export):
        return Findings(tuple(strange))
    problems = verify_manifest(export)
    try:
        text = read_plain(export / RECORD).decode()
        record = RunRecord.model_validate_json(text)
    except (OSError, ValueError, ValidationError, RecursionError):
        return Findings((*problems, f"{RECORD}: not a run record of this version"))
    if record.model_dump_json(indent=2) + "\n" != text:
        problems.append(f"{RECORD}: not written as safeedit writes a record")
    if record.export is None or record.command != "apply":
        return Findings((*problems, f"{RECORD}: of a run that exported nothing"))
    listed, _ = read_manifest(export)
    problems += _list(record, record.export, listed)
    problems += _ledger(export, record, record.export, listed)
    problems += _deltas(export, record)
    problems += _originals(export, record, record.export)
    problems += _weights(export, record, record.export)
    by_code = [*_conclusions(export, record)]
    if renderings is not None:
        said = {line.partition(":")[0] for line in problems}
        by_code += _renderings(export, record, renderings, said)
    if record.environment.safeedit == __version__:
        return Findings((*problems, *by_code))
    told = f"; but the export is by safeedit {record.environment.safeedit}, this is {__version__}"
    return Findings(tuple(problems), tuple(line + told for line in by_code))


def read_originals(path: Path) -> dict[str, Tensor]:
    """Tensor name -> the original, from ``undo.safetensors``.

    Raises:
        ExportError: It is absent, or no such file.
    """
    if not path.exists():
        raise ExportError(
            "this copy of the export came without the original tensors",
            file=path,
            remedy="name the private folder where the policy kept them (--private), use the full "
            "export, or the original model, named in evidence/report.json",
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["safeedit"])
            if header["format"] != FORMAT:
                raise ValueError(f"its format is not '{FORMAT}'")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ExportError(f"cannot read the original tensors: {error}", file=path) from error


def _list(record: RunRecord, export: ExportRecord, listed: Mapping[str, str]) -> Iterator[str]:
    """The manifest's names against all that an export of this record holds."""
    checkpoint = export.files
    evidence = {RECORD, UNDO, *RENDERED, *(DELTA.format(id=edit.id) for edit in record.edits)}
    for name in sorted(evidence - listed.keys()):
        yield f"{name}: not in the manifest, though every export has it"
    if record.policy.get("ledger") is not None:
        evidence.add(LEDGER)
        if LEDGER not in listed:
            yield f"{LEDGER}: not in the manifest, though the policy keeps a ledger"
    for name in sorted(listed.keys() - evidence - checkpoint.keys() - {MANIFEST}):
        yield f"{name}: in the manifest, but no part of the export by its run record"
    for name, digest in sorted(checkpoint.items()):
        if listed.get(name) != digest:
            yield f"{name}: the manifest and the run record disagree"
        if name.startswith(f"{EVIDENCE}/") or name == CARD:
            yield f"{name}: listed as part of the checkpoint, which it is not"


def _ledger(
    export: Path, record: RunRecord, said: ExportRecord, listed: Mapping[str, str]
) -> Iterator[str]:
    if LEDGER not in listed or not (export / LEDGER).exists():
        return  # said already, where there should be one
    if said.ledger != listed[LEDGER]:
        yield f"{LEDGER}: not the ledger of the run record"
    try:
        rows = read_ledger(export / LEDGER).rows
    except DataError as error:
        yield f"{LEDGER}: {error.message}"
        return
    for row in rows:
        if row.run_id == record.run_id and (row.policy, row.policy_digest, row.date) != (
            record.policy_name,
            record.policy_digest,
            record.started,
        ):
            yield f"{LEDGER}: its rows of this run are not of the run record"
            return


def _deltas(export: Path, record: RunRecord) -> Iterator[str]:
    for edit in record.edits:
        name = DELTA.format(id=edit.id)
        if not (export / name).exists():
            continue  # withheld
        try:
            delta = WeightDelta.load(export / name)
        except (ModelError, UsageError) as error:
            yield f"{name}: {error.message}"
            continue
        if delta.digest() != edit.delta_digest:
            yield f"{name}: not the delta of the run record"
        elif set(delta.updates) != {change.name for change in edit.changes}:
            yield f"{name}: it changes other tensors than the run record says"


def _originals(export: Path, record: RunRecord, said: ExportRecord) -> Iterator[str]:
    """The saved originals, tensor by tensor."""
    names = record.model.names
    if changed_tensors(record) != {names.get(name, name) for name in said.originals}:
        yield f"{RECORD}: its originals are not those of the tensors that its edits changed"
    if not (export / UNDO).exists():
        return  # withheld
    try:
        found = {name: tensor_digest(t) for name, t in read_originals(export / UNDO).items()}
    except ExportError as error:
        yield f"{UNDO}: {error.message}"
        return
    for name in sorted(found.keys() | said.originals.keys()):
        if name not in found:
            yield f"{UNDO}: the original of '{name}' is missing"
        elif name not in said.originals:
            yield f"{UNDO}: holds '{name}', which the edits did not change"
        elif found[name] != said.originals[name]:
            yield f"{UNDO}: '{name}' is not the original of the run record"


def _weights(export: Path, record: RunRecord, said: ExportRecord) -> Iterator[str]:
    """The tensors' digest, and with the originals put back the base's."""
    try:
        digests = stored_digests(read_headers(export))
    except SafeeditError as error:
        yield f"the weights can't be read: {error.message}"
        return
    if digest_of(digests) != said.weights_digest:
        yield f"{RECORD}: its weights_digest is not that of the tensors in the export"
    elif digest_of({**digests, **said.originals}) != record.model.digest:
        yield (
            f"{RECORD}: the tensors with the originals put back are not the model that the run "
            "started from"
        )


def _conclusions(export: Path, record: RunRecord) -> Iterator[str]:
    try:
        rows = read_ledger(export / LEDGER).rows if (export / LEDGER).exists() else ()
        earlier = any(row.run_id != record.run_id for row in rows)
        found = contradictions(record, earlier_erasures=earlier)
    except Exception:
        # What is called the policy in it is none, or a figure is one that nothing measures.
        found = ["its conclusions can't be drawn again from what it holds"]
    yield from (f"{RECORD}: {line}" for line in found)


def _renderings(
    export: Path, record: RunRecord, renderings: Renderings, said: Container[str]
) -> Iterator[str]:
    """What is drawn from the record, but for the files of which something is said already."""
    try:
        texts: Mapping[str, Any] = renderings(record)
    except Exception:
        # Whatever a forged record makes of code that draws honest ones: it was not drawn by it.
        yield f"{RECORD}: can't be drawn as a report"
        return
    for name in RENDERED:
        if name in said or not (export / name).exists():
            continue
        if read_plain(export / name) != texts[Path(name).name].encode():
            yield f"{name}: not what the run record is drawn as"
