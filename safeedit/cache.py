"""The user's cache folder, its entries, digests of files, and the one atomic write.

An entry of the cache is a folder that lands under a temporary name and is renamed into place
when whole, and one process at a time works on it; a single file is written by
:func:`write_atomically`. So nothing that a killed process left is ever taken for finished.

Fails with :class:`~safeedit.errors.ModelError` where the cache can't be written, and with
``OSError`` where a file elsewhere can't.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safeedit.errors import ModelError
from safeedit.private import private_folder

PRIVATE = 0o600
"""Permission bits of a file that only its owner may read and write."""

_ORDINARY = 0o666
"""What the umask is taken from."""

_PROBE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a leftover is opened: never through a link, never waiting for a pipe's other end."""

PARTIAL = ".safeedit-"
"""How the name of an unfinished file begins; what follows is drawn at random, so that no name of
a target becomes too long, or is told, by it."""

_SETTLED_NS = 2_000_000_000
"""Age in nanoseconds from which a file's time of change tells every later change from it; file
systems count in up to two seconds."""


def cache_dir() -> Path:
    """The folder of everything kept between runs: ``$SAFEEDIT_CACHE`` or the user's cache.

    Raises:
        ModelError: It can't be made.
    """
    from platformdirs import user_cache_dir

    chosen = os.environ.get("SAFEEDIT_CACHE")
    folder = Path(chosen).expanduser() if chosen else Path(user_cache_dir("safeedit"))
    try:
        private_folder(folder)
    except OSError as error:
        raise ModelError(
            f"the cache folder can't be made: {error.strerror}",
            file=folder,
            remedy="set SAFEEDIT_CACHE to a folder that can be written",
        ) from error
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered for its path, size and time of change."""
    # Brings pydantic, which --help can do without.
    from safeedit.policy.files import open_regular, read_regular

    path = path.resolve()
    stat = path.stat()
    key = hashlib.sha256(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    known = cache_dir() / "digests" / key
    with contextlib.suppress(OSError):
        if len(found := read_regular(known, limit=64).decode("ascii", "replace")) == 64:
            return found
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file written a moment ago may be written again within one tick of the file system's
    # clock, which its time of change would not show.
    if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
        with contextlib.suppress(OSError):  # a cache that can't be written costs time, nothing else
            private_folder(known.parent)
            write_atomically(known, digest.encode(), PRIVATE)
    return digest


def entry_folder(name: str) -> Path:
    """Where an entry of the cache is once it is finished; it only ever appears whole."""
    return cache_dir() / "models" / name


@contextlib.contextmanager
def entry(name: str) -> Iterator[tuple[Path, Path | None]]:
    """An entry of the cache: its folder, and scratch space where it is still to be made.

    Whoever gets scratch space leaves the finished folder in ``scratch / "whole"``.
    """
    from filelock import FileLock

    folder = entry_folder(name)
    models = folder.parent
    if folder.is_dir():
        yield folder, None
        return
    try:
        private_folder(models)  # planted models tell what was planted
        with FileLock(models / f"{name}.lock"):
            if folder.is_dir():  # another process made it meanwhile
                yield folder, None
                return
            # What a killed process left; no one else can be at work under this lock.
            for stale in models.glob(f".{name}.*"):
                shutil.rmtree(stale, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=models))
            try:
                yield folder, scratch
                (scratch / "whole").replace(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"the model cache can't be written: {error.strerror or error}",
            file=models,
            remedy="make room there, or set SAFEEDIT_CACHE to another folder",
        ) from error


def write_atomically(
    path: Path, data: bytes, mode: int | None = None, *, overwrite: bool = True
) -> None:
    """Write a file that is there whole or, whatever happens meanwhile, as it was before.

    The bytes are on the disk before the file has its name. Unfinished files that dead processes
    left in the folder are removed on the way.

    Args:
        path: The file; its folder must exist.
        data: All of its content.
        mode: Its permission bits, whatever the umask (:data:`PRIVATE`, say); None: those that
            the umask gives to a new file.
        overwrite: Replace a file of that name; otherwise it stays as it is.

    Raises:
        FileExistsError: There is one, and ``overwrite`` is False.
        OSError: It can't be written.
    """
    _clear_partials(path.parent)
    partial, descriptor = _new_partial(path.parent, _ORDINARY if mode is None else mode)
    try:
        with os.fdopen(descriptor, "wb") as file:  # holds the lock until the file has its name
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            _give_name(partial, path, overwrite)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _give_name(partial: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        partial.replace(path)
        return
    try:
        os.link(partial, path)  # unlike a rename it never replaces
    except FileExistsError:
        raise
    except OSError:  # no links on this file system
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        partial.replace(path)


def _new_partial(folder: Path, mode: int) -> tuple[Path, int]:
    """An empty file under a temporary name, and a descriptor that holds its lock."""
    while True:
        partial = folder / f"{PARTIAL}{secrets.token_hex(8)}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return partial, descriptor
        os.close(descriptor)  # taken for a dead process's before it was locked


def _clear_partials(folder: Path) -> None:
    """Remove what dead processes left; the living hold the locks of theirs."""
    for left in folder.glob(f"{PARTIAL}*.partial"):
        try:
            descriptor = os.open(left, _PROBE)
        except OSError:
            continue  # finished meanwhile, or another user's
        if _lock(descriptor):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file until its descriptor is closed or its process dies; whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another holds it, or there are no locks here
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
