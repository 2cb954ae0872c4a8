"""Compressed data files: gzip and Zstandard, unpacked in memory and to a limit.

A small file may unpack to more than any memory holds. What is unpacked is bounded by the size of
the file that was given and absolutely; beyond either the file is refused.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Protocol

from safeedit.errors import DataError

SUFFIXES = {".gz": "gzip", ".zst": "Zstandard", ".zstd": "Zstandard"}
_MARKS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard"}
_OTHERS = {
    ".zip": "a zip archive", ".7z": "a 7z archive", ".tar": "a tar archive", ".tgz": "an archive",
    ".bz2": "packed with bzip2", ".xz": "packed with xz", ".xlsx": "an Excel workbook",
    ".xls": "an Excel workbook", ".ods": "a spreadsheet", ".rar": "a rar archive",
}  # fmt: skip
MAX_BYTES = 4 << 30
"""Of a data file, packed or not: all of it is held in memory."""
ALWAYS = 64 << 20
"""So much may be unpacked whatever the packed size."""
MAX_RATIO = 100
"""Text packs to a tenth or a twentieth; beyond this a file was made to fill memory."""
_STEP = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def unpacked(raw: bytes, path: Path) -> tuple[bytes, str]:
    """A file's content, and the suffix it has once unpacked (lower case, with its dot).

    Args:
        raw: The file as it lies on disk.
        path: Its name; what the bytes say counts more.

    Raises:
        DataError: It can't be unpacked, unpacks to too much, or is an archive.
    """
    suffix = path.suffix.lower()
    kind = next((kind for mark, kind in _MARKS.items() if raw.startswith(mark)), None)
    if suffix in SUFFIXES and kind is None:
        raise DataError(
            f"is called {suffix} and is no {SUFFIXES[suffix]} file", file=path,
            remedy="pack it again, or give it the name of what it is",
        )  # fmt: skip
    if kind is None:
        if suffix in _OTHERS:
            remedy = "unpack it, and name the file of rows"
            if "archive" not in _OTHERS[suffix] and "packed" not in _OTHERS[suffix]:
                remedy = "save the sheet as CSV (UTF-8)"
            raise DataError(f"is {_OTHERS[suffix]}, not a data file", file=path, remedy=remedy)
        return raw, suffix
    inner = Path(path.stem).suffix.lower() if suffix in SUFFIXES else suffix
    return _read(_stream(raw, kind), path, kind, max(ALWAYS, MAX_RATIO * len(raw))), inner


def _stream(raw: bytes, kind: str) -> _Readable:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=io.BytesIO(raw))
    import pyarrow

    stream: _Readable = pyarrow.CompressedInputStream(pyarrow.BufferReader(raw), "zstd")
    return stream


def _read(stream: _Readable, path: Path, kind: str, limit: int) -> bytes:
    limit = min(limit, MAX_BYTES)
    whole = bytearray()
    try:
        while step := stream.read(_STEP):
            whole += step
            if len(whole) > limit:
                raise DataError(
                    f"unpacks to more than {limit >> 20} MiB, far more than its size lets expect",
                    file=path,
                    remedy="unpack it yourself and look at it before using it",
                )
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"can't be unpacked as {kind}: it is damaged or cut short", file=path,
            remedy="fetch or pack it again",
        ) from error  # fmt: skip
    return bytes(whole)
