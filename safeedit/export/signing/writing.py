"""Signing a staged export: ``model.sig`` and ``claims.jsonl``, written last.

Fails with :class:`~safeedit.errors.ExportError` where the disk does, or the means to sign are gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safeedit.export.disk import writing
from safeedit.export.manifest import CLAIMS, DELTA, SIGNATURE, UNDO
from safeedit.export.signing.envelopes import signed_root
from safeedit.export.signing.parties import Signer
from safeedit.export.signing.statements import statements
from safeedit.records import RunRecord


def sign_export(folder: Path, record: RunRecord, signer: Signer, name: str) -> None:
    """Sign an export as it lies there, and what it claims.

    Args:
        folder: The export, complete but for the two files.
        record: Its run.
        signer: What to sign with.
        name: How the signature calls the export; its folder's name, as a rule.

    Raises:
        ExportError: The disk is full or can't be written, or the signer can't sign any more.
    """
    from model_signing import signing

    left_out = [SIGNATURE, CLAIMS, UNDO, *(DELTA.format(id=edit.id) for edit in record.edits)]
    config = signing.Config().set_hashing_config(_hashing(name, left_out))
    signer.configure(config)
    with writing(folder):
        signer.sign(config, folder, folder / SIGNATURE)
        root = signed_root(json.loads((folder / SIGNATURE).read_bytes()))
        lines = signer.lines(statements(record, root))
        (folder / CLAIMS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _hashing(name: str, left_out: list[str]) -> Any:
    """The library's way to list the files of a folder, under a name that is not the folder's: the
    staged one has another until it is promoted."""
    from model_signing import hashing, manifest

    class Named(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            found = super().hash(model_path, files_to_hash=files_to_hash)
            kind = manifest.SerializationType.from_args(found.serialization_type)
            files = found.resource_descriptors()
            return manifest.Manifest(
                name, [kind.new_item(file.identifier, file.digest) for file in files], kind
            )

    return Named().set_ignored_paths(paths=left_out, ignore_git_paths=False)
