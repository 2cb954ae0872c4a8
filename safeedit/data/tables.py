"""Tables as text: CSV and TSV as spreadsheets of any country write them.

The delimiter is the one that an Excel ``sep=`` line names, else the one under which the header
reads as columns that are known here, else the usual one of the suffix.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeedit.errors import DataError

LIST_COLUMNS = (
    "aliases", "paraphrases", "subject_aliases", "descriptions", "reverse_questions",
)  # fmt: skip
MAP_COLUMNS = ("translations",)
KNOWN = frozenset(
    {"id", "prompt", "answer", "subject", "split", "text", "question", "instruction", "input",
     "output", "role", *LIST_COLUMNS, *MAP_COLUMNS}
)  # fmt: skip
"""Headings by which the delimiter is known."""
_DELIMITERS = (",", ";", "\t", "|")
_SEP = re.compile(r'"?sep=(.)"?', re.IGNORECASE)


def csv_rows(path: Path, text: str, usual: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The rows of a table.

    Args:
        path: The file, for messages.
        text: Its content.
        usual: The delimiter that its suffix stands for.

    Yields:
        Line where the row begins, number of the row, its filled columns.

    Raises:
        DataError: It is no table: unequal rows, a heading twice, quotes left open.
    """
    delimiter, skipped = _delimiter(text, usual)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number, before = 0, 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells) or line == skipped:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) != len(header):
                    raise DataError(
                        "two columns have the same name", file=path, line=line,
                        remedy="give each column its own name in the first line",
                    )  # fmt: skip
                continue
            number += 1
            if len(cells) != len(header):
                raise _unequal(path, line, len(cells), len(header), delimiter)
            columns = {
                name: _cell(name, cell, path, line)
                for name, cell in zip(header, cells, strict=True)
                if cell != "" and name
            }
            yield line, number, columns
    except csv.Error as error:
        raise DataError(
            f"is not valid CSV ({error})", file=path, line=reader.line_num,
            remedy="quote texts that hold the delimiter, quotes or a line break",
        ) from error  # fmt: skip


def _unequal(path: Path, line: int, cells: int, header: int, delimiter: str) -> DataError:
    remedy = "quote texts that hold the delimiter or a line break"
    if delimiter != ",":
        named = {"\t": "tab", ";": "semicolon", "|": "vertical bar"}.get(delimiter, delimiter)
        remedy += f" (the delimiter was taken to be the {named})"
    return DataError(
        f"has {cells} cells where the header has {header}", file=path, line=line, remedy=remedy
    )


def _delimiter(text: str, usual: str) -> tuple[str, int]:
    """The delimiter, and the number of the line that names it (0: none does)."""
    lines = io.StringIO(text)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        said = _SEP.fullmatch(line.strip("\r\n"))
        if said is not None:
            return said[1], number
        return _likeliest(line.strip("\r\n"), usual), 0
    return usual, 0


def _likeliest(header: str, usual: str) -> str:
    def known(delimiter: str) -> int:
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0
        return len(KNOWN & {cell.strip().casefold() for cell in cells})

    # The usual one first: it wins where another is as good.
    candidates = [usual, *(mark for mark in _DELIMITERS if mark != usual)]
    return max(candidates, key=known)


def _cell(name: str, cell: str, path: Path, line: int) -> Any:
    """A cell's value: text, but lists (JSON, or parted by ``|``) for our list columns, and JSON
    for our columns of maps."""
    if name.casefold() in MAP_COLUMNS:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise DataError(
                f"{name} is no JSON object", file=path, line=line, field=name,
                remedy='write {"de": "..."}',
            ) from None  # fmt: skip
    if name.casefold() not in LIST_COLUMNS:
        return cell
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise DataError(
                f"{name} begins like a JSON list but is none", file=path, line=line,
                remedy='write ["one", "two"] or one|two',
            ) from None  # fmt: skip
    return [part.strip() for part in cell.split("|") if part.strip()]
