"""The key of the digests that stand for data in records, delta files, plans and the cache.

``SAFEEDIT_DIGEST_KEY``, or a file ``digest.key`` in the cache folder, made at first use. Whoever
has it can try texts until one fits a digest; so a weak key is refused, and one that others can
read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from safeedit.cache import PRIVATE, write_atomically
from safeedit.errors import SafeeditError, UsageError
from safeedit.private import checked_key, private_folder, read_key_file

VARIABLE = "SAFEEDIT_DIGEST_KEY"
_WHAT = "the key of the digests"


def digest_key(cache: Path) -> bytes:
    """The key, from the environment or from the cache folder.

    Raises:
        UsageError: The variable holds a weak key.
        SafeeditError: The file is weak, open to others, or can't be made or read.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        remedy = "set it to the output of 'openssl rand -hex 32', or unset it: one is made then"
        return checked_key(given.encode(), f"{_WHAT} in the variable {VARIABLE}", remedy=remedy)
    path = cache / "digest.key"
    try:
        if not path.exists():
            _make(path)
        if path.is_dir():
            raise IsADirectoryError(21, os.strerror(21))
        key, _ = read_key_file(path, _WHAT, remedy="remove the file: another is made then")
    except UsageError as error:  # not how safeedit was called, but what lies in its cache
        raise SafeeditError(error.message, file=error.file, remedy=error.remedy) from error
    except OSError as error:
        raise SafeeditError(
            f"{_WHAT} can't be kept here: {error.strerror}",
            file=path,
            remedy=f"set SAFEEDIT_CACHE to a folder you may write to, or {VARIABLE} to a "
            "secret of your own",
        ) from error
    return key


def _make(path: Path) -> None:
    private_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was first
        write_atomically(path, secrets.token_hex(32).encode(), PRIVATE, overwrite=False)
