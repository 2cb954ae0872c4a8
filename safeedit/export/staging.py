"""A folder under construction beside its target, renamed into place only when whole.

::

    with Staging(target) as staging:
        write_checkpoint(model, staging.path)
        ...
        staging.promote()      # without it, nothing is left

Whatever happens in between (an exception, Ctrl-C, a full disk, ``kill -9``), the target is
either absent, or what it was before, or complete. The folder is hidden and lies on the
target's own file system, so that the rename is atomic; it is locked by its maker, so that
the next run can tell what a dead process left behind and clear it away.

Fails with :class:`~safeedit.errors.ExportError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from safeedit.errors import ExportError, SafeeditError

EVIDENCE = "evidence"
"""The folder of an export that says what was measured; by it an export is recognised."""

_REMEDIES = {
    errno.ENOSPC: "free some space on that disk, or export to another one",
    errno.EDQUOT: "your quota on that disk is used up: free some space, or export elsewhere",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "that file system is read-only: export to another one",
    errno.ENOTDIR: "a part of that path is a file: choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def check_target(target: Path, *, overwrite: bool = False) -> None:
    """Make sure that a checkpoint could be exported to ``target``; creates nothing.

    Called before any work is done, and again when the work is written.

    Args:
        target: The export's folder.
        overwrite: Allow it to exist, provided it is empty or itself an export of safeedit:
            a mistyped path must not cost somebody a folder.

    Raises:
        ExportError: It exists, is not ours to replace, or could not be written.
    """
    target = _absolute(target)
    if os.path.lexists(target):
        if not overwrite:
            raise _exists(target)
        _check_replaceable(target)
    parent = next(folder for folder in target.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise ExportError(
            "the export can't be made here: a part of its path is a file",
            file=parent,
            remedy=_REMEDIES[errno.ENOTDIR],
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(
            "the export can't be made here: the folder is not writable",
            file=parent,
            remedy=_REMEDIES[errno.EACCES],
        )


class Staging:
    """A locked, hidden folder beside ``target``; a context manager.

    Args:
        target: Where the folder goes by :meth:`promote`.
        overwrite: As in :func:`check_target`. What is replaced stays in place until the new
            folder is whole.
    """

    def __init__(self, target: Path | str, *, overwrite: bool = False) -> None:
        self.target = _absolute(Path(target))
        self.overwrite = overwrite
        self._path: Path | None = None
        self._lock: int | None = None

    @property
    def path(self) -> Path:
        """The folder under construction."""
        assert self._path is not None, "Staging is a context manager: enter it first"
        return self._path

    def __enter__(self) -> Staging:
        """Clear away what dead runs left and make the folder.

        Raises:
            ExportError: As :func:`check_target`.
        """
        with writing(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._recover()
            check_target(self.target, overwrite=self.overwrite)
            self._path, self._lock = self._make()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder unless it was promoted."""
        shutil.rmtree(self.path, ignore_errors=True)  # absent once promoted
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def promote(self) -> None:
        """Give the folder its name: everything is on the disk before, and the name after.

        Raises:
            ExportError: The target has come into being meanwhile, or the disk failed.
        """
        with writing(self.target):
            _settle(self.path)
            if os.path.lexists(self.target):
                if not self.overwrite:
                    raise _exists(self.target)
                self._swap()
            else:
                self.path.rename(self.target)
                _sync(self.target.parent)

    def _swap(self) -> None:
        """Put the folder in the place of another. Dying between the renames leaves the old
        one under a hidden name, from which the next run takes it back."""
        _check_replaceable(self.target)
        aside = self._beside("replaced")
        lock = _lock(self.target)
        try:
            self.target.rename(aside)
            try:
                self.path.rename(self.target)
            except BaseException:
                if not os.path.lexists(self.target):
                    aside.rename(self.target)
                raise
            _sync(self.target.parent)
            # First a name from which nobody takes it back: its removal may be cut short.
            aside = aside.rename(self._beside("staging"))
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            if lock is not None:
                os.close(lock)

    def _make(self) -> tuple[Path, int | None]:
        for _ in range(3):
            path = self._beside("staging")
            path.mkdir()
            lock = _lock(path)
            if lock is not None:
                return path, lock
            # Another run took it for a dead one's before it was locked; or there are no locks.
            shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path, None

    def _beside(self, purpose: str) -> Path:
        name = f".{self.target.name}.{purpose}-{secrets.token_hex(4)}"
        return self.target.with_name(name)

    def _recover(self) -> None:
        """Undo what dead runs left: take back a folder moved aside, remove unfinished ones."""
        for purpose in ("replaced", "staging"):
            prefix = f".{self.target.name}.{purpose}-"
            for left in sorted(self.target.parent.iterdir()):
                if not left.name.startswith(prefix):
                    continue
                lock = _lock(left)
                if lock is None:
                    continue  # its maker lives
                if purpose == "replaced" and not os.path.lexists(self.target):
                    left.rename(self.target)
                else:
                    shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Within it, whatever goes wrong with a disk becomes an :class:`ExportError`.

    Args:
        place: What is being written, for the message.
    """
    try:
        yield
    except SafeeditError:
        raise
    except Exception as error:
        # safetensors and tokenizers report the system's errors as words of their own.
        number = error.errno if isinstance(error, OSError) else _errno_in(str(error))
        if number is None:
            raise
        raise ExportError(
            f"the export could not be written: {os.strerror(number)}",
            file=place,
            remedy=_REMEDIES.get(number, "nothing was exported; mend the cause and run again"),
        ) from error


def _errno_in(message: str) -> int | None:
    """The number in the ``(os error 28)`` that ends a message of Rust's."""
    _, found, rest = message.rpartition("(os error ")
    digits = rest.partition(")")[0]
    return int(digits) if found and digits.isdigit() else None


def _exists(target: Path) -> ExportError:
    return ExportError(
        "the export's folder exists",
        file=target,
        remedy="choose another folder, remove it, or allow it to be replaced: in a policy "
        "export.overwrite: true, in canary plant --overwrite",
    )


def _check_replaceable(target: Path) -> None:
    ours = target.is_dir() and not target.is_symlink()
    if not ours or not ((target / EVIDENCE).is_dir() or not any(target.iterdir())):
        raise ExportError(
            "there is something here that safeedit did not export, so it is not overwritten",
            file=target,
            remedy="choose another folder, or move away what is there",
        )


def _absolute(path: Path) -> Path:
    """Without following a link in the last part, which is what will be renamed."""
    return Path(os.path.normpath(Path.cwd() / path.expanduser()))


def _lock(folder: Path) -> int | None:
    """A descriptor holding the folder's lock until closed or its process dies, however it
    dies; None if another holds it, the folder is gone, or there are no locks here."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.is_dir():
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _settle(folder: Path) -> None:
    """Bring every file and folder to the disk, readable by whom the umask allows.

    (safetensors makes files that only their owner may read.)
    """
    for place, _, files in os.walk(folder, topdown=False):
        mode = Path(place).stat().st_mode & 0o666
        for name in files:
            path = Path(place, name)
            path.chmod(mode)
            _sync(path)
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
