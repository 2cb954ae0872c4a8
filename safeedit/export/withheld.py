"""What can undo an edit, kept elsewhere than in the export: ``export.private``.

Whoever holds the originals or a delta has the base in their hands, and with base and edited model
can find out what was erased (arXiv 2505.24379). So a policy may name a private folder: the files
then go to ``DIR/RUN-ID/``, under the same paths that they have in an export, and only their sha256
stay in its manifest. With ``export.recipient``, a public key of age (age-encryption.org; X25519 and
ChaCha20-Poly1305, written by ``pyrage``), each is encrypted to the holder of the private key and
bears the suffix ``.age``.

Fails with :class:`~safeedit.errors.ExportError` where a disk does, and with
:class:`~safeedit.errors.UsageError` at a key that is none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safeedit.cache import PRIVATE
from safeedit.errors import ExportError, UsageError
from safeedit.export.disk import read_plain, writing
from safeedit.export.manifest import MAY_BE_WITHHELD, UNDO
from safeedit.export.staging import Staging, clear_dead
from safeedit.private import private_folder, read_key_file

ENCRYPTED = ".age"
_WHAT = "the identity of age"


def check_recipient(recipient: str) -> None:
    """See that a public key of age is one, and that it can be encrypted to.

    Raises:
        UsageError: It is none, or ``pyrage`` is not installed.
    """
    age = _age()
    try:
        age.x25519.Recipient.from_str(recipient)
    except age.RecipientError:
        private = recipient.upper().startswith("AGE-SECRET-KEY-")
        told = "this is a private key of age" if private else "this is no public key of age"
        raise UsageError(
            told,
            remedy="name the recipient by the public key that 'age-keygen' prints: age1...",
        ) from None


@contextmanager
def set_aside(folder: Path, private: Path, run_id: str, recipient: str | None) -> Iterator[Staging]:
    """Take what can undo the edits out of a staged export.

    Within it the files lie in a staged folder of their own, which
    :meth:`~safeedit.export.staging.Staging.promote` gives its name; without that, nothing is left.

    Args:
        folder: The staged export, its manifest written.
        private: Where the run's folder goes.
        run_id: Its name.
        recipient: Public key of age that the files are encrypted to; None leaves them as they are.
    """
    with writing(private):
        private_folder(private)
        clear_dead(private)  # each run has a name of its own, which no later one clears
    with Staging(private / run_id) as staging:
        with writing(staging.path):
            for path in sorted(_can_undo(folder)):
                _move(path, staging.path / path.relative_to(folder), recipient)
        yield staging


@contextmanager
def originals_of(
    export: Path, private: Path | None, run_id: str, identity: Path | None, scratch: Path
) -> Iterator[Path]:
    """The path of an export's original tensors, decrypted where they were encrypted.

    Args:
        export: The export.
        private: The folder that the policy named, or the run's within; None where they lie in the
            export.
        run_id: Of the run that made it.
        identity: File of the private key of age.
        scratch: Folder where they are decrypted to, for the length of the context.

    Raises:
        UsageError: The key is none, others can read it, or it is not the recipient's.
        ExportError: There are no originals there.
    """
    plain = (export if private is None else _folder_of(private, run_id)) / UNDO
    sealed = plain.with_name(plain.name + ENCRYPTED)
    if not sealed.exists():
        yield plain
        return
    if identity is None:
        raise UsageError(
            "the original tensors are encrypted to a key of age",
            file=sealed,
            field="--identity",
            remedy="name the file of the private key: --identity FILE",
        )
    content = _decrypted(sealed, identity)
    opened = scratch / "originals.opened"
    try:
        with writing(opened):
            opened.touch(PRIVATE)
            opened.write_bytes(content)
        yield opened
    finally:
        opened.unlink(missing_ok=True)


def _can_undo(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if any(fnmatchcase(name, pattern) for pattern in MAY_BE_WITHHELD):
            yield path


def _move(path: Path, target: Path, recipient: str | None) -> None:
    private_folder(target.parent)
    if recipient is None:
        target.touch(PRIVATE)
        shutil.copyfile(path, target)  # another disk, most likely
    else:
        age = _age()
        sealed = target.with_name(target.name + ENCRYPTED)
        sealed.touch(PRIVATE)
        key = age.x25519.Recipient.from_str(recipient)
        age.encrypt_file(os.fspath(path), os.fspath(sealed), [key])
    path.unlink()


def _folder_of(private: Path, run_id: str) -> Path:
    inner = private / run_id
    return inner if inner.is_dir() else private


def _decrypted(sealed: Path, identity: Path) -> bytes:
    age = _age()
    content, _ = read_key_file(identity, _WHAT, remedy="give the file that 'age-keygen -o' wrote")
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    try:
        keys = [age.x25519.Identity.from_str(one) for one in lines if one and one[0] != "#"]
    except age.IdentityError:
        raise UsageError(
            "there is no private key of age in this file",
            file=identity,
            remedy="give the file that 'age-keygen -o' wrote: it holds AGE-SECRET-KEY-1...",
        ) from None
    try:
        found: bytes = age.decrypt(read_plain(sealed, limit=None), keys)
    except age.DecryptError:
        raise UsageError(
            "this private key does not open the original tensors: they are encrypted to another, "
            "or damaged",
            file=sealed,
            remedy="give the private key of the policy's export.recipient",
        ) from None
    except OSError as error:
        raise ExportError(
            f"the original tensors can't be read: {error.strerror}", file=sealed
        ) from error
    return found


def _age() -> Any:
    try:
        import pyrage
    except ImportError as error:
        raise UsageError(
            "encrypting with age needs the package pyrage, which is not installed",
            remedy="pip install 'safeedit[age]'",
        ) from error
    return pyrage
