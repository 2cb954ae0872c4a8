"""What only its owner may read: keys, and folders of what was measured of erased data.

A key that can be guessed, or that others can read, protects nothing: every digest made with it can
be undone by trying all likely texts. So weak keys are refused (:func:`checked_key`,
:func:`read_key_file`), for the digests in records and for the ledger alike. Folders are made so
that the umask plays no part (:func:`private_folder`); files are :mod:`safeedit.cache`'s.

Fails with :class:`~safeedit.errors.UsageError`; no message holds a key.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from safeedit.errors import UsageError

SHORTEST_KEY = 32
"""Characters: a shorter key could be guessed, and with it every item."""
LONGEST_KEY = 1 << 16
"""Bytes of a key's file that are read."""
FEWEST_SIGNS = 8
"""Different characters: thirty-two times the same one is no longer than one."""
FOLDER_MODE = 0o700


def checked_key(secret: bytes, what: str, *, remedy: str, path: Path | None = None) -> bytes:
    """A key, white space at its ends dropped, if nobody can guess it.

    Args:
        secret: The key as it was given.
        what: What it is, for messages, e.g. ``the key of the ledger``.
        remedy: How to get a better one.
        path: Its file, where it has one.

    Raises:
        UsageError: It is empty, short, or a few characters over and over.
    """
    key = secret.strip()
    if not key:
        raise UsageError(f"{what} is empty", file=path, remedy=remedy)
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"{what} has {len(key)} characters, fewer than the {SHORTEST_KEY} that make it safe",
            file=path,
            remedy=remedy,
        )
    if len(set(key)) < FEWEST_SIGNS:
        raise UsageError(
            f"{what} is made of {len(set(key))} different characters, fewer than the "
            f"{FEWEST_SIGNS} of a key that can't be guessed",
            file=path,
            remedy=remedy,
        )
    return key


def read_key_file(path: Path, what: str, *, remedy: str) -> tuple[bytes, tuple[str, ...]]:
    """The key in a file.

    Args:
        path: The file.
        what: What the key is, for messages.
        remedy: How to get a better one.

    Returns:
        The key, and warnings about how it is kept.

    Raises:
        UsageError: The file is no plain file, can't be read, or everybody on this machine can
            read it; or the key is weak.
    """
    # Brings pydantic, which --help can do without.
    from safeedit.policy.files import NotRegularError, open_regular

    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            secret = file.read(LONGEST_KEY + 1)
    except NotRegularError as error:
        raise UsageError(
            f"{what} is kept in something else than a file: {error.strerror}",
            file=path,
            remedy="name a plain file",
        ) from None
    except FileNotFoundError:
        raise UsageError(f"there is no such key: {what}", file=path, remedy=remedy) from None
    except OSError as error:
        raise UsageError(
            f"{what} can't be read: {error.strerror}",
            file=path,
            remedy="give a file that you may read",
        ) from error
    if len(secret) > LONGEST_KEY:
        raise UsageError(
            f"{what} is longer than {LONGEST_KEY} bytes: this is no key",
            file=path,
            remedy=remedy,
        )
    key, mode = checked_key(secret, what, remedy=remedy, path=path), status.st_mode
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(
            f"everybody on this machine can read or change {what}",
            file=path,
            remedy="chmod 600 it if nobody else has seen it; otherwise replace it",
        )
    if mode & (stat.S_IRGRP | stat.S_IWGRP):
        return key, (f"{path}: others of its group can read {what}; chmod 600 helps",)
    return key, ()


def private_folder(path: Path) -> None:
    """Make a folder, and what is missing above it, for its owner alone.

    Folders that exist keep their modes: they may be shared on purpose.

    Raises:
        OSError: It can't be made.
    """
    if path.is_dir():
        return
    if path.parent != path:
        private_folder(path.parent)
    try:
        path.mkdir(mode=FOLDER_MODE)
        path.chmod(FOLDER_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise
