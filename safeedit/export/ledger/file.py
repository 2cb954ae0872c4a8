"""The ledger's file: ``evidence/ledger.jsonl`` of an export.

Its first line is a header: format, version, number of rows, a key check (a wrong key is told
apart from missing requests) and a seal over the rows (a row that was changed, added or taken
away is noticed by whoever has the key; the export's manifest shows damage to everybody).
Every other line is an :class:`Entry`. Rows of earlier exports come first, unchanged.

Fails with :class:`~safeedit.errors.DataError`, at file and line.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safeedit.errors import DataError
from safeedit.export.ledger.keys import LedgerKey
from safeedit.export.manifest import LEDGER, read_manifest
from safeedit.policy.files import read_regular

VERSION = 1
MAX_BYTES = 1 << 30
"""Of a ledger that is read: some millions of requests."""
_UNDAMAGED = "take an undamaged copy of the export; 'safeedit verify' shows what is damaged"
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Tuple = Annotated[tuple[str, ...], Field(strict=False)]


class _Line(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class _Header(_Line):
    format: Literal["safeedit-ledger"] = "safeedit-ledger"
    version: int = VERSION
    rows: Annotated[int, Field(ge=0)]
    key_check: _Digest
    seal: _Digest


class Entry(_Line):
    """One erased item, under one ticket."""

    ticket: str | None
    """The request behind it, as the data or the policy names it; never text of the item."""
    digest: _Digest
    """See :meth:`safeedit.export.ledger.keys.LedgerKey.digest`."""
    date: str
    """When the run that erased it began; ISO 8601, UTC."""
    policy: str
    """Name of the policy."""
    policy_digest: str
    """As in the run record."""
    edits: _Tuple
    """Ids of the edits it was named in, in the policy's order."""
    run_id: str
    """As in the run record."""


@dataclass(frozen=True)
class Ledger:
    """A ledger as read."""

    path: Path
    rows: tuple[Entry, ...]
    key_check: str
    seal: str
    body: str
    """The rows as written, which the seal is over."""

    def require(self, key: LedgerKey) -> None:
        """See that the ledger was written with this key, and not changed since.

        Raises:
            DataError: It was written with another key, or its rows are not those sealed.
        """
        if not hmac.compare_digest(key.check, self.key_check):
            raise DataError(
                "no digest matches: the key is not the one this ledger was written with",
                file=self.path,
                remedy="give the key of the policy that made the export",
            )
        if not hmac.compare_digest(key.seal(self.body), self.seal):
            raise DataError(
                "the rows of the ledger are not those it was written with",
                file=self.path,
                remedy=_UNDAMAGED,
            )


def render(rows: Iterable[Entry], key: LedgerKey) -> str:
    """A ledger's text."""
    lines = [row.model_dump_json() + "\n" for row in rows]
    body = "".join(lines)
    header = _Header(rows=len(lines), key_check=key.check, seal=key.seal(body))
    return f"{header.model_dump_json()}\n{body}"


def find_ledger(model: Path) -> Ledger | None:
    """The ledger of the export in a folder; None where it is no export, or has none.

    Raises:
        DataError: As :func:`read_ledger`, or the export's manifest names a ledger that is
            not there.
    """
    path = model / LEDGER
    if not path.is_file():
        if model.is_dir() and LEDGER in read_manifest(model)[0]:
            raise DataError(
                "the manifest of the export names its ledger, but it is gone",
                file=path,
                remedy=_UNDAMAGED,
            )
        return None
    return read_ledger(path)


def read_ledger(path: Path) -> Ledger:
    """Read a ledger's file.

    Raises:
        DataError: It can't be read, is of another version, or a line is malformed.
    """
    try:
        text = read_regular(path, limit=MAX_BYTES).decode()
    except OSError as error:
        raise DataError(f"the ledger can't be read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _malformed(path, line) from None
    first, _, body = text.partition("\n")
    header = _header(path, first)
    rows = []
    for number, row in enumerate(body.split("\n")[:-1], start=2):
        try:
            rows.append(Entry.model_validate_json(row))
        except ValidationError:
            raise _malformed(path, number) from None
    if len(rows) != header.rows or not text.endswith("\n"):
        raise DataError(
            f"the ledger should have {header.rows} rows and has {len(rows)}",
            file=path,
            remedy=_UNDAMAGED,
        )
    return Ledger(path, tuple(rows), header.key_check, header.seal, body)


def _header(path: Path, line: str) -> _Header:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise _malformed(path, 1) from None
    version = found.get("version") if isinstance(found, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise DataError(
            f"a ledger of version {version}; this safeedit reads version {VERSION}",
            file=path,
            line=1,
            remedy="use the safeedit that made the export, or a newer one",
        )
    try:
        return _Header.model_validate(found)
    except ValidationError:
        raise _malformed(path, 1) from None


def _malformed(path: Path, line: int) -> DataError:
    return DataError("not a line of a ledger", file=path, line=line, remedy=_UNDAMAGED)


__all__ = ["LEDGER", "Entry", "Ledger", "find_ledger", "read_ledger", "render"]
