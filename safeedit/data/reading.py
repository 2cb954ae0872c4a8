"""Files of rows: JSON (lines, array, objects), CSV, Parquet, text; packed or not.

Every reader yields :class:`RawRow`: plain columns and the place they come from. A fault is a
DataError with file and line; content is never quoted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeedit.data.tables import csv_rows
from safeedit.data.unpacking import MAX_BYTES, unpacked
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.policy.encoding import EncodingError, decode
from safeedit.policy.files import NotRegularError, TooLargeError, read_regular

_JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson", ".jsonlines"})
_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
_KNOWN_SUFFIXES = _JSON_SUFFIXES | _TEXT_SUFFIXES | {".csv", ".tsv"}
SUFFIXES = ".jsonl .json .csv .tsv .parquet .txt, or one of these packed as .gz or .zst"


@dataclass(frozen=True)
class RawRow:
    """One record and where it stands."""

    number: int
    """1-based position among the rows."""
    line: int | None
    """1-based line in the file, where that says more than ``number``."""
    columns: Mapping[str, Any]
    file: Path | None = None

    @property
    def place(self) -> str:
        """The row in words, for messages."""
        return f"line {self.line}" if self.line is not None else f"row {self.number}"


class UnreadableRow(Exception):  # noqa: N818 (becomes a DataError that says where)
    """What a format raises at a row it can't read.

    Args:
        message: What is wrong, continuing "line 7 ..."; never content.
        remedy: What to do about it.
        field: The column that is at fault, where it is one.
    """

    def __init__(self, message: str, remedy: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field


def read_lines(path: Path, spec: DataSpec) -> Iterator[RawRow]:
    """The lines of a text file that are not blank, as rows with a ``text``; any suffix.

    Raises:
        DataError: It is missing or no text.
    """
    lines = _decoded(path, _content(path, spec.sha256)[0]).splitlines()
    filled = ((line, text) for line, text in enumerate(lines, start=1) if text.strip())
    for number, (line, text) in enumerate(filled, start=1):
        yield RawRow(number, line, {"text": text}, path)


def read_json(path: Path, spec: DataSpec) -> Any:
    """The one JSON value that a file holds.

    Raises:
        DataError: It is missing or not JSON.
    """
    text = _decoded(path, _content(path, spec.sha256)[0]).strip()
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, getattr(error, "lineno", 1), error) from None


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return decode(raw)
    except EncodingError as error:
        raise DataError(
            error.message, file=path, line=error.line, remedy="save the file as UTF-8"
        ) from error


def read_file(path: Path, spec: DataSpec) -> Iterator[RawRow]:
    """The rows of a local file or saved folder.

    Raises:
        DataError: It is missing, is of an unknown kind, or is malformed.
    """
    if path.is_dir():
        if spec.sha256 is not None:
            raise DataError("is a folder; sha256 is for single files", file=path, field="sha256")
        from safeedit.data.hub import read_saved

        yield from read_saved(path, spec.hub_split)
        return
    raw, suffix = _content(path, spec.sha256)
    if suffix == ".parquet" or raw[:4] == b"PAR1":
        yield from _parquet(path, raw)
        return
    try:
        text = _decoded(path, raw)
    except DataError as error:
        if suffix not in _KNOWN_SUFFIXES:
            raise _unknown_kind(path, suffix) from error
        raise
    if suffix in (".csv", ".tsv"):
        for line, number, columns in csv_rows(path, text, "\t" if suffix == ".tsv" else ","):
            yield RawRow(number, line, columns, path)
    elif suffix in _TEXT_SUFFIXES:
        yield from _paragraphs(path, text)
    elif suffix in _JSON_SUFFIXES or text.lstrip()[:1] in ("{", "["):
        yield from _json(path, text)
    else:
        raise _unknown_kind(path, suffix)


def _unknown_kind(path: Path, suffix: str) -> DataError:
    return DataError(
        f"can't tell what kind of file this is ({suffix or 'no suffix'})",
        file=path,
        remedy=f"use one of {SUFFIXES}",
    )


def _content(path: Path, sha256: str | None) -> tuple[bytes, str]:
    """What a file holds, unpacked, and the suffix of that."""
    try:
        raw = read_regular(path, limit=MAX_BYTES)
    except (NotRegularError, TooLargeError) as error:
        raise DataError(
            f"can't be read: {error.strerror}",
            file=path,
            remedy="name a plain file"
            if isinstance(error, NotRegularError)
            else "give the rows that are needed, or several files with 'additional_sources'",
        ) from None
    except FileNotFoundError:
        near = _nearest_file(path)
        raise DataError(
            "there is no such file",
            file=path,
            remedy=near or "check the path; relative paths start at the policy's folder",
        ) from None
    except OSError as error:
        raise DataError(
            f"can't be read: {(error.strerror or 'unknown reason').lower()}", file=path
        ) from error
    if sha256 is not None and (found := hashlib.sha256(raw).hexdigest()) != sha256.lower():
        raise DataError(
            "the file is not the one the policy names: its sha256 differs",
            file=path,
            field="sha256",
            remedy=f"review the change; this file's is {found}",
        )
    return unpacked(raw, path)


def _nearest_file(path: Path) -> str:
    from safeedit.policy.suggest import did_you_mean

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return ""
    remedy = did_you_mean(path.name, names)
    return remedy if remedy.startswith("did") else ""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)


def _not_json(path: Path, line: int, error: Exception) -> DataError:
    reason = "is nested too deeply" if isinstance(error, RecursionError) else "is not JSON"
    if isinstance(error, json.JSONDecodeError):
        # The decoder's words, like those of the hooks above, never show the content.
        reason += f" ({error.msg.lower()})"
    elif isinstance(error, ValueError):
        reason += f" ({error})"
    return DataError(reason, file=path, line=line, remedy="write one JSON object per line")


def _object(path: Path, line: int, number: int, value: Any, *, lines: bool) -> RawRow:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
        what = "" if lines else f"row {number} "
        raise DataError(
            f"{what}should be a JSON object, not {kind}", file=path, line=line,
            remedy='rows look like {"prompt": "...", "answer": "..."}',
        )  # fmt: skip
    return RawRow(number, line if lines else None, value, path)


def _json(path: Path, text: str) -> Iterator[RawRow]:
    """An array, objects one a line, objects over several lines, or one that wraps the rows."""
    if text.lstrip()[:1] == "[":
        # Published files are sometimes one array under the name .jsonl.
        yield from _json_array(path, text)
        return
    rows = _json_objects(path, text) if _spans_lines(text) else _json_lines(path, text)
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    inner = _wrapped(first.columns) if second is None else None
    if inner is None:
        yield first
    else:
        for number, value in enumerate(inner, start=1):
            yield _object(path, first.line or 1, number, value, lines=False)
    if second is not None:
        yield second
        yield from rows


_BREAK = re.compile(r"\r\n|\n|\r")
"""Not str.splitlines: it also breaks at U+2028 and others, which JSON texts may hold."""


def _spans_lines(text: str) -> bool:
    """Whether the first object is written over several lines, as pretty-printers do."""
    first = _BREAK.split(text.lstrip(), maxsplit=1)[0].rstrip()
    return first == "{" or (first.startswith("{") and first[-1] in "{[,:" and not _decodes(first))


def _decodes(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


_WRAPPERS = ("data", "rows", "items", "examples", "records", "instances", "entries")
"""Keys under which files of one object keep their rows."""


def _wrapped(columns: Mapping[str, Any]) -> list[Any] | None:
    """The rows inside a file's only object; None where it is a row itself.

    Beside them there may be what tells of the file (a version, a name), nothing with parts.
    """
    found = [name for name in columns if name.casefold() in _WRAPPERS]
    if len(found) != 1:
        return None
    inner = columns[found[0]]
    plain = all(
        value is None or isinstance(value, str | int | float)
        for name, value in columns.items()
        if name != found[0]
    )
    told = {"prompt", "question", "text", "answer"} & columns.keys()
    rows = isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner)
    return inner if rows and plain and not told else None


def _json_objects(path: Path, text: str) -> Iterator[RawRow]:
    """Objects one after another, each over as many lines as it likes."""
    index, number, line, counted = 0, 0, 1, 0
    while (index := _skip(text, index)) < len(text):
        number += 1
        line += text.count("\n", counted, index)
        counted = index
        try:
            value, index = _DECODER.raw_decode(text, index)
        except (ValueError, RecursionError) as error:
            place = text.count("\n", 0, getattr(error, "pos", index)) + 1
            raise _not_json(path, place, error) from None
        yield _object(path, line, number, value, lines=True)


def _json_lines(path: Path, text: str) -> Iterator[RawRow]:
    number = 0
    for line, content in enumerate(_BREAK.split(text), start=1):
        if not content.strip():
            continue
        number += 1
        try:
            value = _DECODER.decode(content)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, line, error) from None
        yield _object(path, line, number, value, lines=True)


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    assert match is not None
    return match.end()


def _json_array(path: Path, text: str) -> Iterator[RawRow]:
    def fault(index: int, error: Exception) -> DataError:
        return _not_json(path, text.count("\n", 0, index) + 1, error)

    index, number, line, counted = _skip(text, text.index("[") + 1), 0, 1, 0
    if text[index : index + 1] == "]":
        index += 1
    else:
        while True:
            number += 1
            try:
                value, end = _DECODER.raw_decode(text, index)
            except (ValueError, RecursionError) as error:
                raise fault(getattr(error, "pos", index), error) from None
            line += text.count("\n", counted, index)
            counted = index
            yield _object(path, line, number, value, lines=False)
            index = _skip(text, end)
            mark = text[index : index + 1]
            if mark == "]":
                index += 1
                break
            if mark != ",":
                raise fault(index, json.JSONDecodeError("Expecting ',' or ']'", "", 0))
            index = _skip(text, index + 1)
    if (index := _skip(text, index)) != len(text):
        raise fault(index, json.JSONDecodeError("Extra data after the array", "", 0))


def _paragraphs(path: Path, text: str) -> Iterator[RawRow]:
    """Passages parted by blank lines."""
    number, start, lines = 0, 0, list[str]()
    for line, content in enumerate([*text.splitlines(), ""], start=1):
        if content.strip():
            if not lines:
                start = line
            lines.append(content.strip())
        elif lines:
            number += 1
            yield RawRow(number, start, {"text": "\n".join(lines)}, path)
            lines = []


def _parquet(path: Path, raw: bytes) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw))
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for columns in batch.to_pylist():
                number += 1
                yield RawRow(number, None, without_nulls(columns), path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError("is not a readable Parquet file", file=path) from error


def without_nulls(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}


def rest(columns: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The columns of a row that were not used, as they are."""
    return {name: value for name, value in columns.items() if name not in used}
