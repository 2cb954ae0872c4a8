"""Before-audits kept between runs: authenticated, private, and measured anew where in doubt.

An entry is a folder of two files, the audit's record and the tensors it leaves as reference,
under the digest of everything that made it. What an entry says decides gates, so it is believed
only with a seal made by the key of the digests (``SAFEEDIT_DIGEST_KEY``, or ``digest.key`` in the
cache) over both files and the entry's own name: neither a changed figure nor an entry of another
audit under this name passes.
"""

from __future__ import annotations

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

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from safeedit.contracts import RunContext
from safeedit.export.disk import read_plain
from safeedit.private import private_folder
from safeedit.records import AuditRecord, Metric

RECORD, REFERENCE = "record.json", "reference.safetensors"


@dataclass(frozen=True)
class Audited:
    """What one audit found on one split: its record and the reference it leaves behind."""

    record: AuditRecord
    reference: dict[str, torch.Tensor]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Full name -> metric."""
        return {metric.name: metric for metric in self.record.metrics}


@dataclass(frozen=True)
class Store:
    """The before-audits in the cache of a run."""

    folder: Path
    secret: bytes = field(repr=False)
    warn: Callable[[str], None]

    @classmethod
    def of(cls, ctx: RunContext) -> Store:
        """That of a run's cache; what dead runs left half-written there is removed."""
        store = cls(ctx.cache / "audits", ctx.secret, ctx.warn)
        store._sweep()
        return store

    def read(self, key: str, audit_id: str) -> Audited | None:
        """The entry of this key; None where there is none, or, said loudly, where it is not as
        it was written."""
        folder = self.folder / key
        if not os.path.lexists(folder):
            return None
        try:
            entry = json.loads(read_plain(folder / RECORD))
            reference = read_plain(folder / REFERENCE, limit=None)
            text = json.dumps(entry["record"], sort_keys=True)
            if not hmac.compare_digest(self._seal(key, text, reference), str(entry["seal"])):
                raise ValueError("the seal is not that of this key, record and reference")
            record = AuditRecord.model_validate(entry["record"])
            return Audited(record.model_copy(update={"cached": True}), load(reference))
        except (
            *(OSError, ValueError, KeyError, TypeError, RecursionError),
            *(ValidationError, SafetensorError),
        ):
            self.warn(
                f"audit {audit_id}: what the cache holds of the model before the edits is damaged, "
                "was changed or was kept under another digest key; it is measured anew"
            )
            return None

    def write(self, key: str, found: Audited) -> None:
        """Keep a before-audit; that it can't be kept is no reason to stop."""
        folder = self.folder / key
        temporary = self.folder / f".{key}.{secrets.token_hex(4)}"
        reference = save({name: tensor.contiguous() for name, tensor in found.reference.items()})
        record = found.record.model_dump(mode="json")
        seal = self._seal(key, json.dumps(record, sort_keys=True), reference)
        lock = None
        try:
            private_folder(self.folder)
            private_folder(temporary)
            lock = _lock(temporary)
            _write(temporary / REFERENCE, reference)
            _write(temporary / RECORD, json.dumps({"seal": seal, "record": record}).encode())
            if os.path.lexists(folder):  # it was just found wanting, or another run was first
                folder.rename(self.folder / f".{key}.{secrets.token_hex(4)}")
            temporary.rename(folder)
        except OSError as error:
            self.warn(f"audit {found.record.id} was not kept for later runs: {error.strerror}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            self._sweep()

    def _seal(self, key: str, record: str, reference: bytes) -> str:
        parts = (b"safeedit audit", key.encode(), record.encode(), reference)
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
