"""A folder under construction beside its target, given its name only when whole.

::

    with Staging(target) as staging:
        write_checkpoint(model, staging.path)
        ...
        staging.promote()      # without it, nothing is left

Whatever happens in between (an exception, Ctrl-C, a full disk, ``kill -9``), the target is
either absent, or what it was before, or complete. The folder is hidden and lies on the
target's own file system, so that the rename is atomic; it is locked by its maker, so that
the next run can tell what a dead process left behind and clear it away. An export that is
replaced changes places with the new one in one step where the system can do that.

Fails with :class:`~safeedit.errors.ExportError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType

from safeedit.cache import PRIVATE
from safeedit.errors import ExportError
from safeedit.export import interrupts
from safeedit.export.disk import EVIDENCE, REMEDIES, exchange, rename_new, writing
from safeedit.export.manifest import MAY_BE_WITHHELD, check_ours
from safeedit.export.places import check_output, usable

__all__ = ["EVIDENCE", "Staging", "check_target", "recover", "writing"]

_REPLACED, _STAGING = "replaced", "staging"
"""Purposes of hidden folders: an old export moved aside, and what is to be removed."""


def check_target(target: Path, *, overwrite: bool = False) -> None:
    """Make sure that a checkpoint could be exported to ``target``; creates nothing.

    Called before any work is done, and again when the work is written.

    Args:
        target: The export's folder.
        overwrite: Allow it to exist, provided it is empty or an export of safeedit and
            nothing else: a mistyped path must not cost somebody a folder.

    Raises:
        ExportError: It exists, is not ours to replace, or could not be written.
        UsageError: The system can't hold its name, or it lies in another checkpoint.
    """
    target = usable(target)
    if os.path.lexists(target):
        _check_no_mount(target)
        if not overwrite:
            raise _exists(target)
        _check_replaceable(target)
    check_output(target.parent, what="the checkpoint")
    parent = next(folder for folder in target.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise ExportError(
            "the export can't be made here: a part of its path is a file",
            file=parent,
            remedy=REMEDIES[errno.ENOTDIR],
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(
            "the export can't be made here: the folder is not writable",
            file=parent,
            remedy=REMEDIES[errno.EACCES],
        )


class Staging:
    """A locked, hidden folder beside ``target``; a context manager.

    Args:
        target: Where the folder goes by :meth:`promote`.
        overwrite: As in :func:`check_target`. What is replaced stays in place until the new
            folder is whole.
    """

    def __init__(self, target: Path | str, *, overwrite: bool = False) -> None:
        self.target = usable(target)
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
        try:
            with writing(self.target):
                self.target.parent.mkdir(parents=True, exist_ok=True)
                recover(self.target)
                check_target(self.target, overwrite=self.overwrite)
                self._make()
        except BaseException:  # Ctrl-C just after the folder was made
            self._clear()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder unless it was promoted."""
        self._clear()

    def _clear(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)  # absent once promoted
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def promote(self) -> None:
        """Give the folder its name: everything is on the disk before, and the name after.

        From just before, interrupts are held, see :mod:`~safeedit.export.interrupts`.

        Raises:
            ExportError: The target has come into being meanwhile, or the disk failed.
        """
        with writing(self.target):
            settle(self.path)
            interrupts.hold()
            if os.path.lexists(self.target):
                if not self.overwrite:
                    raise _exists(self.target)
                self._swap()
            else:
                try:
                    rename_new(self.path, self.target)
                except FileExistsError:
                    raise _exists(self.target) from None
                _sync_name(self.target)

    def _swap(self) -> None:
        """Put the folder in the place of another, in one step or, where the system can't, in
        two: dying between them leaves the old one under a hidden name, from which the next run
        takes it back."""
        _check_no_mount(self.target)
        _check_replaceable(self.target)
        lock = _lock(self.target)
        try:
            if exchange(self.path, self.target):
                _sync_name(self.target)
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                self._swap_in_two()
        finally:
            if lock is not None:
                os.close(lock)

    def _swap_in_two(self) -> None:
        aside = _beside(self.target, _REPLACED)
        self.target.rename(aside)
        try:
            self.path.rename(self.target)
        except BaseException:
            if not os.path.lexists(self.target):
                self._put_back(aside)
            raise
        _sync_name(self.target)
        # First a name from which nobody takes it back: its removal may be cut short.
        aside = aside.rename(_beside(self.target, _STAGING))
        shutil.rmtree(aside, ignore_errors=True)

    def _put_back(self, aside: Path) -> None:
        try:
            aside.rename(self.target)
        except OSError as error:
            raise ExportError(
                "the new export could not be given its name, nor the one that stood here be put "
                f"back: {os.strerror(error.errno or errno.EIO)}; it is whole, under a hidden name",
                file=aside,
                remedy="make room and run again, which takes it back, or rename it to "
                f"{self.target.name}",
            ) from error

    def _make(self) -> None:
        for _ in range(3):
            self._path = path = _beside(self.target, _STAGING)
            path.mkdir()
            self._lock = _lock(path)
            if self._lock is not None:
                return
            # Another run took it for a dead one's before it was locked; or there are no locks.
            shutil.rmtree(path, ignore_errors=True)
        path.mkdir()


def recover(target: Path) -> None:
    """Undo what dead runs left beside a target: take back an export moved aside, remove what
    was unfinished.

    Raises:
        OSError: The folder around it can't be read or written.
    """
    target = usable(target)
    if not target.parent.is_dir():
        return
    for purpose in (_REPLACED, _STAGING):
        ours = re.compile(re.escape(_prefix(target, purpose)) + "[0-9a-f]{8}")
        for left in sorted(target.parent.iterdir()):
            if not ours.fullmatch(left.name):
                continue
            lock = _lock(left)
            if lock is None:
                continue  # its maker lives
            if purpose == _REPLACED and not os.path.lexists(target):
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def clear_dead(folder: Path) -> None:
    """Remove what dead runs left unfinished in a folder, whatever it was to be called.

    Raises:
        OSError: The folder can't be read or written.
    """
    if not folder.is_dir():
        return
    for left in sorted(folder.iterdir()):
        if re.fullmatch(rf"\..+\.{_STAGING}-[0-9a-f]{{8}}", left.name):
            lock = _lock(left)
            if lock is not None:  # else its maker lives
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def _prefix(target: Path, purpose: str) -> str:
    return f".{target.name}.{purpose}-"


def _beside(target: Path, purpose: str) -> Path:
    return target.with_name(_prefix(target, purpose) + secrets.token_hex(4))


def _exists(target: Path) -> ExportError:
    return ExportError(
        "the export's folder exists",
        file=target,
        remedy="choose another folder, remove it, or allow it to be replaced: in a policy "
        "export.overwrite: true, in canary plant --overwrite",
    )


def _check_replaceable(target: Path) -> None:
    ours = target.is_dir() and not target.is_symlink()
    why = "it is no folder" if not ours else check_ours(target) if any(target.iterdir()) else ""
    if why:
        raise ExportError(
            "there is something here that safeedit did not export, so it is not overwritten: "
            + why,
            file=target,
            remedy="choose another folder, or move away what is there",
        )


def _check_no_mount(target: Path) -> None:
    real = Path(os.path.realpath(target.parent)) / target.name
    if os.path.ismount(target) or str(real) in mounts():
        raise ExportError(
            "the folder is a mount point (of a container's volume, say), which can't be given to "
            "a finished export in one step",
            file=target,
            remedy="name a folder inside it",
        )


def mounts() -> set[str]:
    """Mount points as Linux lists them: binds within one file system show nowhere else."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    escaped = (line.split(" ")[4] for line in lines if line.count(" ") > 4)
    return {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), place) for place in escaped}


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


def settle(folder: Path) -> None:
    """Bring every file and folder to the disk, readable by whom the umask allows.

    (safetensors makes files that only their owner may read.) The originals of what was edited,
    and the changes, stay with their owner under any umask: with them an erasure can be taken back.
    """
    for place, _, files in os.walk(folder, topdown=False):
        mode = Path(place).stat().st_mode & 0o666
        for name in files:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix().removesuffix(".age")
            private = any(fnmatchcase(relative, pattern) for pattern in MAY_BE_WITHHELD)
            path.chmod(PRIVATE if private else mode)
            sync(path)
        sync(Path(place))


def _sync_name(path: Path) -> None:
    # The name has been given: that the disk can't confirm it takes nothing back.
    with suppress(OSError):
        sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
