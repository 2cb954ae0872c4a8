"""Reading and writing where an export lies: errors of the system as errors of ours, plain files
only, and the exchange of two folders in one step.

Fails with :class:`~safeedit.errors.ExportError`.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from safeedit.errors import ExportError, SafeeditError
from safeedit.policy.files import MAX_JSON_BYTES

EVIDENCE = "evidence"
"""The folder of an export that says what was measured."""

REMEDIES = {
    errno.ENOSPC: "free some space on that disk, or export to another one",
    errno.EDQUOT: "your quota on that disk is used up: free some space, or export elsewhere",
    errno.EFBIG: "files of this size are not allowed there: export to another disk",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "that file system is read-only: export to another one",
    errno.ENOTDIR: "a part of that path is a file: choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_REMEDY = "nothing was exported; mend the cause and run again"

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
"""Of Linux's ``renameat2``."""
_SWAP, _EXCL = 2, 4
"""Of macOS's ``renamex_np``."""
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system answers that can't do it."""


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
        # safetensors and tokenizers report the system's errors as words of their own, and so
        # do OSErrors that carry a text and no number.
        number = getattr(error, "errno", None) or _errno_in(str(error))
        if number is None and not isinstance(error, OSError):
            raise
        raise as_export_error(place, number) from error


def as_export_error(place: Path, number: int | None) -> ExportError:
    """The error of the system ``number`` (None: unknown), met while writing ``place``."""
    why = os.strerror(number) if number is not None else "the system gave no reason"
    return ExportError(
        f"the export could not be written: {why}",
        file=place,
        remedy=REMEDIES.get(number or 0, _REMEDY),
    )


def _errno_in(message: str) -> int | None:
    """The number in the ``(os error 28)`` that ends a message of Rust's."""
    _, found, rest = message.rpartition("(os error ")
    digits = rest.partition(")")[0]
    return int(digits) if found and digits.isdigit() else None


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file to be read, if it is one: no link is followed and no pipe waited for.

    Raises:
        OSError: It is no plain file (``EINVAL``), absent or not readable.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, *, limit: int | None = MAX_JSON_BYTES) -> bytes:
    """The content of a plain file; as :func:`open_plain`.

    Args:
        path: The file.
        limit: Most bytes it may have; None where its kind has no limit.

    Raises:
        OSError: As :func:`open_plain`, or it is larger (``EFBIG``).
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
        # What it had when it was opened: a file that somebody goes on writing has no end.
        return file.read(size)


def rename_new(source: Path, target: Path) -> None:
    """Rename, unless ``target`` exists.

    Raises:
        FileExistsError: It does.
        OSError: The system refuses.
    """
    done = _call(source, target, _NOREPLACE, _EXCL)
    if not done:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        source.rename(target)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders of one file system change names, in one step.

    Returns:
        False, with nothing done, where system or file system can't.

    Raises:
        OSError: The system refuses for another reason.
    """
    return _call(one, other, _EXCHANGE, _SWAP)


def _call(one: Path, other: Path, on_linux: int, on_mac: int) -> bool:
    rename = renameat2()
    if rename is None:
        return False
    sys.audit("os.rename", os.fspath(one), os.fspath(other), -1, -1)
    if rename(os.fsencode(one), os.fsencode(other), on_linux, on_mac) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number))


@cache
def renameat2() -> Callable[[bytes, bytes, int, int], int] | None:
    """The system's rename with conditions; None where it has none."""
    try:
        library: Any = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            mac = library.renamex_np
            mac.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda one, other, _, flags: int(mac(one, other, flags))
        linux = library.renameat2
    except (OSError, AttributeError):
        return None
    linux.argtypes = (
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint),
    )
    return lambda one, other, flags, _: int(linux(_AT_FDCWD, one, _AT_FDCWD, other, flags))
