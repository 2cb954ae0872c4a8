"""Rows with tickets: what a requester asked to be erased, matched to a ledger by digest.

The requester's file holds everything ever requested: prompt, answer and, optionally,
``ticket``. One ticket may name many items and one item may stand under several tickets; the
same item twice under the same ticket is a mistake and refused with its lines.

Fails with :class:`~safeedit.errors.DataError`, at a line, never quoting a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safeedit.contracts import DataRole
from safeedit.data import CheckedRow, Dataset, build_dataset, read_records
from safeedit.errors import DataError
from safeedit.export.ledger.file import Entry
from safeedit.export.ledger.keys import LedgerKey
from safeedit.policy import DataSpec
from safeedit.text.quoting import Quotes

TICKET = "ticket"
"""The column that names the request."""


@dataclass(frozen=True)
class Request:
    """One row: an item, under one ticket."""

    record: CheckedRow = field(repr=False)
    ticket: str | None
    digests: tuple[str, ...]
    """Of the item, then of its other spellings of the answer."""

    @property
    def digest(self) -> str:
        return self.digests[0]

    @property
    def place(self) -> str:
        """Where the row stands, in words."""
        return self.record.row.place


@dataclass(frozen=True)
class Coverage:
    """What a ledger says of requests, and they of it."""

    covered: tuple[tuple[Request, tuple[Entry, ...]], ...]
    """Requests with the ledger's rows of the same item."""
    uncovered: tuple[Request, ...]
    missing: tuple[Entry, ...]
    """Rows of the ledger that no request matches: they can't be audited again."""


def read_requests(spec: DataSpec, base: Path, key: LedgerKey) -> tuple[Request, ...]:
    """The rows of a source with their tickets and digests; equal ones once.

    Raises:
        DataError: The source is missing or malformed, a row has no answer or an odd ticket,
            or an item is twice under one ticket.
    """
    found: dict[tuple[str | None, str], Request] = {}
    for record in read_records(spec, base):
        if not record.item.aliases:
            raise _at(record, "has no answer, so its erasure could not be audited", "answer")
        request = Request(record, _ticket(record), key.digests(record.item))
        twin = found.setdefault((request.ticket, request.digest), request)
        if twin is not request and request.ticket is not None:
            raise _at(
                record,
                f"{twin.place} and {request.place} are the same item under the same ticket",
                TICKET,
                "remove one of the two, or give it the ticket it belongs to",
            )
    return tuple(found.values())


def coverage(requests: Sequence[Request], rows: Sequence[Entry]) -> Coverage:
    """Match requests and a ledger's rows."""
    of: dict[str, list[Entry]] = {}
    for row in rows:
        of.setdefault(row.digest, []).append(row)
    pairs = [
        (request, tuple(row for digest in request.digests for row in of.get(digest, ())))
        for request in requests
    ]
    asked = {digest for request in requests for digest in request.digests}
    return Coverage(
        covered=tuple((request, entries) for request, entries in pairs if entries),
        uncovered=tuple(request for request, entries in pairs if not entries),
        missing=tuple(row for row in rows if row.digest not in asked),
    )


def dataset_of(
    requests: Iterable[Request],
    spec: DataSpec,
    role: DataRole,
    *,
    seed: int,
    notes: Iterable[str],
    key: bytes | None = None,
) -> Dataset:
    """The requested items as data for an audit; rows of one prompt are one item.

    Two people of one name may have asked in different months: the prompt is put once, and
    either answer counts. A row's split plays no part: every item is audited. ``key`` is that of
    the data set's digest.

    Raises:
        DataError: Items share a paraphrase between splits.
    """
    merged: dict[str, CheckedRow] = {}
    for request in requests:
        record, item = request.record, request.record.item
        first = merged.get(" ".join(item.prompt.casefold().split()))
        if first is not None:
            aliases = tuple(dict.fromkeys((*first.item.aliases, *item.aliases)))
            item = replace(first.item, aliases=aliases)
        merged[" ".join(item.prompt.casefold().split())] = replace(
            first or record, item=replace(item, split=None)
        )
    return build_dataset(list(merged.values()), spec, role, seed=seed, notes=notes, key=key)


def _ticket(record: CheckedRow) -> str | None:
    value: Any = record.item.extra.get(TICKET)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # digits in JSON; text in CSV
    if value is None:
        return None
    if isinstance(value, str) and value.strip() and value.isprintable():
        item = record.item
        if Quotes([*item.aliases, *item.names, item.prompt])(value):
            raise _at(
                record,
                "has a ticket that quotes its own question, answer or subject, and the ledger and "
                "reports would repeat it",
                TICKET,
                "name the request by a number",
            )
        return value.strip()
    remedy = "give it the request's number or name, or leave it out"
    raise _at(record, "has a ticket that is blank or no plain text", TICKET, remedy)


def _at(record: CheckedRow, message: str, field_: str, remedy: str = "fill it in") -> DataError:
    row = record.row
    text = message if row.line is not None else f"row {row.number}: {message}"
    return DataError(text, file=row.file, line=row.line, field=field_, remedy=remedy)
