"""Reports on disk: each file is whole or as it was before."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safeedit.errors import ExportError

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files that are being written."""


def write_files(texts: Mapping[str, str], folder: Path, option: str = "--report") -> None:
    """Write ``name -> text`` into a folder, made if need be.

    Raises:
        ExportError: The disk is full, or the folder not ours to write to; the remedy names the
            ``option`` that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        raise ExportError(
            f"the report could not be written: {error.strerror}",
            file=folder,
            remedy=f"free some space or choose another folder with {option}",
        ) from error


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            with suppress(OSError):  # no locks here: then nobody takes it for a dead run's either
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(text)
            file.flush()
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed have left half-written."""
    for left in folder.iterdir():
        if not _UNFINISHED.fullmatch(left.name):
            continue
        with suppress(OSError):  # locked: its writer lives
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(descriptor)
