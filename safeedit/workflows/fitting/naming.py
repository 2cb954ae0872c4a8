"""Columns that a file calls by other common names than ours.

Only names of this list are ever taken, and only where the file has no column of ours: what a column
means is the user's to say, and the policy that is written says what was taken for what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from safeedit.data.columns import format_hint
from safeedit.data.formats import evident_format
from safeedit.data.reading import RawRow, read_file
from safeedit.errors import DataError
from safeedit.policy import DataSpec

COMMON: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "instruction"),
    "answer": ("target", "response", "completion"),
    "subject": ("entity", "name"),
}
"""Our column -> what others call it."""
_LOOKED_AT = 1000
"""Rows whose columns are looked at."""


def mapped(path: Path) -> dict[str, str]:
    """Our columns that a file has under one of these names -> that name, as the file spells it.

    Nothing is mapped in rows of a published format, which say themselves what they are.

    Args:
        path: Any kind of file that policies may name.

    Raises:
        DataError: It can't be read, or has two columns for one of ours.
    """
    spec = DataSpec(file=str(path.absolute()))
    rows = list(islice(read_file(path.absolute(), spec), _LOOKED_AT))
    if any(_shows_its_format(row) for row in rows[:1]):
        return {}
    names = _by_spelling(rows)
    if format_hint(names.values()):
        return {}
    found = {}
    for ours, theirs in COMMON.items():
        there = [names[name] for name in theirs if name in names]
        if ours in names or not there:
            continue
        if len(there) > 1:
            raise DataError(
                f"any of the columns {' and '.join(map(repr, there))} could be the {ours}",
                file=path,
                field="--data",
                remedy=f"call the right one {ours!r} in the file, and run this command again",
            )
        found[ours] = there[0]
    return found


def _by_spelling(rows: Iterable[RawRow]) -> dict[str, str]:
    """Name of a column in lower case -> as the file has it; filled ones."""
    return {
        name.strip().casefold(): name
        for row in rows
        for name, value in row.columns.items()
        if value is not None
    }


def _shows_its_format(row: RawRow) -> bool:
    columns: Mapping[str, object] = {
        name.strip().casefold(): value for name, value in row.columns.items() if value is not None
    }
    return evident_format(columns) is not None
