"""Reports on disk: each file is whole or as it was before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safeedit.cache import write_atomically
from safeedit.errors import ExportError


def write_files(texts: Mapping[str, str], folder: Path, option: str = "--report") -> None:
    """Write ``name -> text`` into a folder, made if need be.

    Raises:
        ExportError: The disk is full, or the folder not ours to write to; the remedy names the
            ``option`` that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
    except OSError as error:
        raise ExportError(
            f"the report could not be written: {error.strerror}",
            file=folder,
            remedy=f"free some space or choose another folder with {option}",
        ) from error
