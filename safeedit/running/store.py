"""What runs have found, kept for later ones: authenticated, private, and made anew where in doubt.

An entry is a folder of two files, JSON and tensors, under its kind and the digest of everything
that made it: a finished audit of some weights, a finished edit, one strength of it, one strength of
an attack. So a run that was stopped at any point repeats nothing that it had finished, and another
policy that measures the same takes the same figures.

What an entry says decides gates, so it is believed only with a seal made by the key of the digests
(``SAFEEDIT_DIGEST_KEY``, or ``digest.key`` in the cache) over both files and the entry's own name:
neither a changed figure nor an entry of something else under this name passes. No entry holds an
erased text or a token of one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from safeedit.contracts import RunContext
from safeedit.export.disk import read_plain
from safeedit.private import private_folder
from safeedit.running.clock import Effort

Kind = Literal["audit", "edit", "dose", "layers", "attack"]

FOLDER = "store"
SAID, TENSORS = "said.json", "tensors.safetensors"


@dataclass(frozen=True)
class Finding:
    """What was found: JSON values, and tensors by name."""

    said: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    """What it took to make."""
    again: bool = False
    """Whether the run that reads it has made or read it before."""


@dataclass(frozen=True)
class Store:
    """The entries in the cache of a run.

    Args:
        folder: Where they are.
        secret: Key of their seals.
        warn: Where an entry that can't be believed, or kept, is told of.
        fresh: Read none that earlier runs have left; what is found is kept nevertheless.
        effort: Is told what an entry of an earlier run had taken to make.
    """

    folder: Path
    secret: bytes = field(repr=False)
    warn: Callable[[str], None]
    fresh: bool = False
    effort: Effort = field(default_factory=Effort)
    _seen: set[str] = field(default_factory=set)
    """Names of entries that this run has made or read."""

    @classmethod
    def of(cls, ctx: RunContext) -> Store:
        """That of a run's cache; what dead runs left half-written there is removed."""
        store = cls(ctx.cache / FOLDER, ctx.secret, ctx.warn, ctx.fresh)
        store._sweep()
        return store

    def read(self, kind: Kind, key: str, what: str) -> Finding | None:
        """The entry of this key.

        Args:
            kind: What it is of.
            key: Digest of everything that made it.
            what: What it is of, in words of the run, for a warning.

        Returns:
            None where there is none, or, said loudly, where it is not as it was written.
        """
        folder = self.folder / _name(kind, key)
        again = folder.name in self._seen
        if (self.fresh and not again) or not os.path.lexists(folder):
            return None
        try:
            entry = json.loads(read_plain(folder / SAID))
            tensors = read_plain(folder / TENSORS, limit=None)
            text = json.dumps(entry["said"], sort_keys=True)
            if not hmac.compare_digest(self._seal(folder.name, text, tensors), str(entry["seal"])):
                raise ValueError("the seal is not that of this name, text and tensors")
            said = entry["said"]
            found = Finding(dict(said["what"]), load(tensors), float(said["seconds"]), again)
        except (
            *(OSError, ValueError, KeyError, TypeError, RecursionError),
            SafetensorError,
        ):
            self.warn(
                f"{what}: what the cache holds of it is damaged, was changed or was kept under "
                "another digest key; it is made anew"
            )
            return None
        self._seen.add(folder.name)
        self.effort.spared += 0.0 if again else found.seconds
        with suppress(OSError):
            os.utime(folder)  # the time of last use, by which old entries are told
        return found

    def holds(self, kind: Kind, key: str) -> bool:
        """Whether there is an entry of this key that :meth:`read` would look at."""
        folder = self.folder / _name(kind, key)
        return (not self.fresh or folder.name in self._seen) and os.path.lexists(folder)

    def write(self, kind: Kind, key: str, found: Finding, what: str) -> None:
        """Keep an entry; that it can't be kept is no reason to stop.

        Args:
            kind: What it is of.
            key: Digest of everything that made it.
            found: What to keep; never an erased text, nor a token of one.
            what: What it is of, in words of the run, for a warning.
        """
        name = _name(kind, key)
        temporary = self._temporary(name)
        # A clone where tensors share storage: safetensors refuses to store aliases.
        tensors = save({each: tensor.clone() for each, tensor in found.tensors.items()})
        said = {"what": found.said, "seconds": found.seconds}
        seal = self._seal(name, json.dumps(said, sort_keys=True), tensors)
        lock = None
        try:
            private_folder(self.folder)
            free = shutil.disk_usage(self.folder).free
            if len(tensors) > free / 4:
                told = f"it takes {len(tensors) >> 20} of the {free >> 20} MiB that are free"
                raise OSError(errno.ENOSPC, told)
            private_folder(temporary)
            lock = _lock(temporary)
            _write(temporary / TENSORS, tensors)
            _write(temporary / SAID, json.dumps({"seal": seal, "said": said}).encode())
            if os.path.lexists(self.folder / name):  # found wanting, or another run was first
                (self.folder / name).rename(self._temporary(name))
            temporary.rename(self.folder / name)
            self._seen.add(name)
        except OSError as error:
            self.warn(f"{what} was not kept for later runs: {error.strerror}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            self._sweep()

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.{secrets.token_hex(4)}"

    def _seal(self, name: str, said: str, tensors: bytes) -> str:
        parts = (b"safeedit store", name.encode(), said.encode(), tensors)
        digests = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hmac.new(self.secret, digests, hashlib.sha256).hexdigest()

    def _sweep(self) -> None:
        """Remove what runs that are no more have left, and entries that were replaced."""
        with suppress(OSError):
            for left in sorted(self.folder.glob(".*.*")):
                lock = _lock(left)
                if lock is not None:  # else its maker lives
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(lock)


class MemoryStore(Store):
    """Entries of one process, gone with it: what workers know."""

    def __init__(self) -> None:
        super().__init__(Path(), b"", lambda message: None)
        self._entries: dict[str, Finding]
        object.__setattr__(self, "_entries", {})

    def keep(self, kind: Kind, key: str, found: Finding) -> None:
        """Keep an entry."""
        self._entries[_name(kind, key)] = found

    def read(self, kind: Kind, key: str, what: str) -> Finding | None:
        return self._entries.get(_name(kind, key))

    def holds(self, kind: Kind, key: str) -> bool:
        return _name(kind, key) in self._entries

    def write(self, kind: Kind, key: str, found: Finding, what: str) -> None:
        self.keep(kind, key, found)


def _name(kind: Kind, key: str) -> str:
    return f"{kind}-{key}"


def _write(path: Path, content: bytes) -> None:
    """A file for its owner alone, whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds a folder until closed; None where another holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None
