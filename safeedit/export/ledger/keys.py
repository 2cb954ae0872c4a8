"""The key of a ledger and what is made with it: digests, a key check, a seal.

All three are HMAC-SHA256, 64 hex digits, each under a label of its own. A phone number has
so few possible values that a bare hash of it could be reversed by trying them all; without
the key nobody can try. The key is a text, as :mod:`safeedit.private` demands of keys, from a
file or an environment variable; ``safeedit ledger key`` makes one of 32 random bytes.

Fails with :class:`~safeedit.errors.UsageError`; no message holds a key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from safeedit.cache import PRIVATE, write_atomically
from safeedit.data import Item
from safeedit.errors import UsageError
from safeedit.policy import KeySpec
from safeedit.private import checked_key, read_key_file

_KEY = "the key of the ledger"
_MAKE = "make one with 'safeedit ledger key --out FILE'"


@dataclass(frozen=True)
class LedgerKey:
    """A key that never shows itself."""

    secret: bytes = field(repr=False)

    @property
    def check(self) -> str:
        """Tells this key from others without telling anything about it."""
        return self._code("key check", "")

    def digest(self, item: Item) -> str:
        """The digest of an item's prompt and answer.

        Case, whitespace and the way accents are encoded don't count; aliases, paraphrases
        and ids don't either.
        """
        return self._digest(item.prompt, item.answer or "")

    def digests(self, item: Item) -> tuple[str, ...]:
        """The item's digest, then those of its other spellings of the answer."""
        spellings = [item.answer or "", *item.aliases]
        return tuple(dict.fromkeys(self._digest(item.prompt, text) for text in spellings))

    def seal(self, rows: str) -> str:
        """Shows that rows were written, in this order and number, by somebody with the key."""
        return self._code("seal", rows)

    def _digest(self, prompt: str, answer: str) -> str:
        return self._code("item", json.dumps([_folded(prompt), _folded(answer)]))

    def _code(self, label: str, text: str) -> str:
        message = f"safeedit ledger 1 {label}\0{text}".encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def read_key(spec: KeySpec, base: Path = Path()) -> tuple[LedgerKey, tuple[str, ...]]:
    """The key that a policy or command names.

    Args:
        spec: A file or an environment variable.
        base: The folder that a relative file starts from.

    Returns:
        The key, and warnings about how it is kept.

    Raises:
        UsageError: It is not there, can't be read, is weak, or everybody can read it.
    """
    if spec.env is not None:
        value = os.environ.get(spec.env)
        if value is None:
            raise UsageError(
                f"the key of the ledger is not set: there is no variable {spec.env}",
                field="env",
                remedy=f"set {spec.env} to the key, or name a file",
            )
        what = f"{_KEY} in the variable {spec.env}"
        return LedgerKey(checked_key(value.encode(), what, remedy=_MAKE)), ()
    path = base / Path(spec.file or "").expanduser()
    secret, warnings = read_key_file(path, _KEY, remedy=_MAKE)
    return LedgerKey(secret), warnings


def make_key(path: Path) -> None:
    """Write a new key of 32 random bytes, in hex, that only its owner can read.

    Raises:
        UsageError: The file exists (a key is never overwritten: its ledgers would be lost),
            or can't be written.
    """
    try:
        key = secrets.token_hex(32) + "\n"
        write_atomically(path, key.encode(), PRIVATE, overwrite=False)
    except FileExistsError:
        raise UsageError(
            "the file exists, and a key is never overwritten: its ledgers could not be read again",
            file=path,
            remedy="choose another name",
        ) from None
    except OSError as error:
        raise UsageError(
            f"the key can't be written: {error.strerror}",
            file=path,
            remedy="choose another folder",
        ) from error
