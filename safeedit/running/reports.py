"""Where a run's report goes: never over that of an export that stands.

The folder beside an export holds the report of what stands there. A run that exported nothing
(a gate failed, another run was first, the disk was full) leaves its report in a folder named by
the run within, where the report of a standing export would otherwise be replaced.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safeedit.export.disk import read_plain
from safeedit.export.manifest import RECORD
from safeedit.records import RunRecord
from safeedit.report import write_all

REPORT = "report.json"


def write_reports(record: RunRecord, folder: Path, target: Path | None = None) -> Path:
    """Write a run's reports.

    Args:
        record: The run.
        folder: Where they go if no standing export's report is in the way.
        target: The export beside which ``folder`` lies; None where it was chosen freely.

    Returns:
        The folder they went to.

    Raises:
        ExportError: They can't be written.
    """
    with _alone(folder):
        place = folder / record.run_id if _taken(record, folder, target) else folder
        write_all(record, place)
    return place


def _taken(record: RunRecord, folder: Path, target: Path | None) -> bool:
    """Whether the report of an export that stands is there, or about to be."""
    if target is None:
        return _stands_for_another(record, folder)
    return _run_of(target) not in (None, record.run_id)


def _stands_for_another(record: RunRecord, folder: Path) -> bool:
    """Whether the report that is there is of another run whose export stands."""
    there = _read(folder / REPORT)
    if there is None or there.export is None or there.run_id == record.run_id:
        return False
    return _run_of(Path(there.export.directory)) == there.run_id


def _run_of(target: Path) -> str | None:
    """The run that made the export at ``target``; None where there is none."""
    found = _read(target / RECORD)
    return found.run_id if found is not None else None


def _read(path: Path) -> RunRecord | None:
    with suppress(OSError, ValueError, ValidationError):
        return RunRecord.model_validate_json(read_plain(path))
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, where there are locks: of two runs that end at once, the second
    sees what the first has written."""
    lock: Any = None
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
