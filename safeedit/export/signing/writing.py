"""Signing a staged export: ``model.sig`` and ``claims.jsonl``, written last.

Fails with :class:`~safeedit.errors.ExportError` where the disk does.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from safeedit.export.disk import writing
from safeedit.export.manifest import CLAIMS, DELTA, SIGNATURE, UNDO
from safeedit.export.signing.keys import SigningKey
from safeedit.export.signing.statements import statements
from safeedit.records import RunRecord

PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def sign_export(folder: Path, record: RunRecord, key: SigningKey, name: str) -> None:
    """Sign an export as it lies there, and what it claims.

    Args:
        folder: The export, complete but for the two files.
        record: Its run.
        key: What to sign with.
        name: How the signature calls the export; its folder's name, as a rule.

    Raises:
        ExportError: The disk is full or can't be written.
    """
    from model_signing import signing

    left_out = [SIGNATURE, CLAIMS, UNDO, *(DELTA.format(id=edit.id) for edit in record.edits)]
    config = signing.Config().set_hashing_config(_hashing(name, left_out))
    config.use_elliptic_key_signer(private_key=key.path)
    with writing(folder):
        config.sign(folder, folder / SIGNATURE)
        root = signed_root(json.loads((folder / SIGNATURE).read_bytes()))
        lines = [_bundle(statement, key) for statement in statements(record, root)]
        (folder / CLAIMS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def payload_of(bundle: Any) -> dict[str, Any]:
    """What the envelope of a bundle holds, as JSON; nothing is verified.

    Raises:
        ValueError: There is no such thing in it.
    """
    try:
        found = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("no envelope with a payload") from error
    if not isinstance(found, dict):
        raise ValueError("the payload is no JSON object")
    return found


def signed_root(signature: Any) -> str:
    """The digest over all files that a ``model.sig`` signs; nothing is verified.

    Raises:
        ValueError: There is none in it.
    """
    try:
        (subject,) = payload_of(signature)["subject"]
        return str(subject["digest"]["sha256"])
    except (KeyError, TypeError) as error:
        raise ValueError("no subject with a digest") from error


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


def _bundle(statement: dict[str, Any], key: SigningKey) -> str:
    """A statement, signed, as a Sigstore bundle in one line."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, SSlibKey

    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    envelope = Envelope(text.encode(), PAYLOAD_TYPE, {})
    identity = key.public.identity
    public = SSlibKey.from_crypto(key.private.public_key(), keyid=identity)
    envelope.sign(CryptoSigner(key.private, public))
    return bundle_line(envelope, identity)


def bundle_line(envelope: Any, identity: str) -> str:
    """A signed envelope as a Sigstore bundle in one line.

    Args:
        envelope: A ``securesystemslib.dsse.Envelope``.
        identity: Of the key it is signed with.
    """
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": identity}, "tlogEntries": []},
        "dsseEnvelope": envelope.to_dict(),
    }
    return json.dumps(bundle, separators=(",", ":"))
