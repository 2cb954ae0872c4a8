"""DSSE envelopes in Sigstore bundles, as JSON: what they hold, and how one is written in a line."""

from __future__ import annotations

import base64
import json
from typing import Any

PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def statement_bytes(statement: dict[str, Any]) -> bytes:
    """A statement as it is signed: equal statements give equal bytes."""
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


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
