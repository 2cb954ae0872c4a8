"""Files that a user names, read without being led astray: regular ones only, and to a limit.

A pipe or a terminal blocks for ever, ``/dev/zero`` never ends, and what lies under ``/proc``
and ``/sys`` is the system talking rather than a file. Everything the package opens because a
policy, a command line or a folder says so goes through here.

What goes wrong is an :class:`OSError` whose ``strerror`` completes the sentence "the file
can't be read: ..."; callers put it into an error of their own that has the place.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20
"""Of a JSON file that is read whole; a tokenizer of 256,000 tokens takes 33 MB."""

_SYSTEM = ("/proc", "/sys")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegularError(OSError):
    """There is something under the name, and it is no regular file."""


class TooLargeError(OSError):
    """The file is larger than what is read of its kind."""


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading, without ever waiting for one that is not.

    Links are followed: it is what they lead to that counts.

    Raises:
        NotRegularError: It is a folder, pipe, device or socket, or a file of the system.
        OSError: It is not there or can't be read.
    """
    _refuse_system(path)
    try:
        # A pipe without a writer would otherwise hold the call up before it could be looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        raise FileNotFoundError(errno.ENOENT, "there is no file of that name", path) from error
    except OSError:
        check_regular(path)  # a socket can't be opened at all: say so instead
        raise
    try:
        _refuse_other_kinds(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_regular(path: Path | str) -> None:
    """Make sure of a file that a library is going to open by its name.

    Raises:
        NotRegularError: As :func:`open_regular`.
        OSError: It is not there.
    """
    _refuse_system(path)
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, "there is no file of that name", path) from error
    _refuse_other_kinds(path, mode)


def read_regular(path: Path | str, *, limit: int | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: The file; links are followed.
        limit: Most bytes it may have; None where its kind has no limit.

    Raises:
        NotRegularError: As :func:`open_regular`.
        TooLargeError: It is larger than ``limit``.
        OSError: It is not there or can't be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            reason = f"it is larger than {_megabytes(limit)}"
            raise TooLargeError(errno.EFBIG, reason, os.fspath(path))
        # What it had when it was opened: a file that somebody goes on writing has no end.
        return file.read(size)


def read_json(path: Path | str, *, limit: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        NotRegularError: As :func:`open_regular`.
        TooLargeError: It is larger than ``limit``.
        OSError: It is not there or can't be read.
        ValueError: It is not JSON in UTF-8, or nested deeper than can be read.
    """
    return parse_json(read_regular(path, limit=limit).decode("utf-8-sig"))


def parse_json(text: str) -> Any:
    """The value of a JSON text, however it was made.

    Raises:
        ValueError: It is not JSON, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_system(path: Path | str) -> None:
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):  # what is wrong with it shows when it is opened
        return
    for root in _SYSTEM:
        if real == root or real.startswith(root + os.sep):
            reason = "it belongs to the running system and is no file"
            raise NotRegularError(errno.EINVAL, reason, os.fspath(path))


def _refuse_other_kinds(path: Path | str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise NotRegularError(number, f"it is {kind} rather than a file", os.fspath(path))


def _megabytes(n_bytes: int) -> str:
    mebibytes = n_bytes / (1 << 20)
    return f"{mebibytes:.0f} MiB" if mebibytes >= 1 else f"{n_bytes} bytes"
