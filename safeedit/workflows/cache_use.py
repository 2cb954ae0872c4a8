"""What lies in the user's cache, and how to make room there.

What runs have found (audits, edits, attacks) and what can be computed again is removed by age and
size; keys, models, and what somebody measured on purpose (scorers' cards) are not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from safeedit.errors import ModelError
from safeedit.running.store import FOLDER, Kind

ENTRIES = get_args(Kind)
"""Kinds of the store's entries."""

KINDS: dict[str, tuple[str, bool]] = {
    "audit": ("audits of models, finished", True),
    "edit": ("edits, fitted", True),
    "dose": ("edits, at one strength", True),
    "layers": ("layers chosen for an edit", True),
    "attack": ("attacks, at one strength", True),
    "moments": ("second moments of activations", True),
    "remedi": ("maps learnt by REMEDI", True),
    "audits": ("audits kept by an earlier version, of no use now", True),
    "models": ("models fetched, converted or planted", False),
    "wheels": ("packages that hold models", False),
    "scorers": ("scorers' cards and scores", False),
    "digests": ("digests of files", False),
}
"""Kind -> what it is, and whether a run makes it again by itself."""


@dataclass(frozen=True)
class Kept:
    """One entry of the cache."""

    kind: str
    path: Path
    size: int
    """Bytes."""
    used: float
    """When it was last taken or made, in seconds since the epoch."""


@dataclass(frozen=True)
class Usage:
    """All entries of one kind."""

    kind: str
    entries: int
    size: int
    """Bytes."""
    oldest: float | None
    """When the one used longest ago was used, in seconds since the epoch."""


def entries(cache: Path) -> list[Kept]:
    """All entries that a run makes again by itself, that used longest ago first."""
    found = [kept for kind, (_, again) in KINDS.items() if again for kept in _entries(cache, kind)]
    return sorted(found, key=lambda kept: (kept.used, kept.path.name))


def usage(cache: Path) -> list[Usage]:
    """What the cache holds, by kind; kinds of which there is nothing are left out."""
    found = []
    for kind in KINDS:
        own = list(_entries(cache, kind))
        if own:
            size = sum(kept.size for kept in own)
            found.append(Usage(kind, len(own), size, min(kept.used for kept in own)))
    return found


def prunable(
    cache: Path, *, older_than: float | None = None, larger_than: int | None = None
) -> list[Kept]:
    """What would have to go.

    Args:
        cache: The folder.
        older_than: Seconds: what has not been used for longer.
        larger_than: Bytes: what was used longest ago, until the rest takes no more than that.

    Returns:
        Entries that a run makes again by itself, that used longest ago first.
    """
    found = entries(cache)
    now, total = time.time(), sum(kept.size for kept in found)
    gone = []
    for kept in found:
        old = older_than is not None and now - kept.used > older_than
        if old or (larger_than is not None and total > larger_than):
            gone.append(kept)
            total -= kept.size
    return gone


def prune(gone: list[Kept]) -> None:
    """Remove entries; a run that is reading one makes it anew.

    Raises:
        ModelError: One can't be removed; those before it are gone.
    """
    for kept in gone:
        try:
            if kept.path.is_dir() and not kept.path.is_symlink():
                shutil.rmtree(kept.path)
            else:
                kept.path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process was first
            continue
        except OSError as error:
            raise ModelError(
                f"this entry of the cache can't be removed: {error.strerror}",
                file=kept.path,
                remedy="see whose it is; what stands before it in the list is gone",
            ) from error


def _entries(cache: Path, kind: str) -> Iterator[Kept]:
    here = cache / FOLDER
    pattern = f"{kind}-*"
    if kind not in ENTRIES:
        here, pattern = cache / kind, "*"
    for path in here.glob(pattern) if here.is_dir() else ():
        if path.name.startswith("."):
            continue  # unfinished: its maker's, or swept by the next run
        with suppress(OSError):  # gone meanwhile
            status = path.lstat()
            yield Kept(kind, path, _size(path), status.st_mtime)


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(each.lstat().st_size for each in path.rglob("*") if each.is_file())
