"""Is an export signed with a key, and is what it claims its own? Offline.

Of ``model.sig`` the library ``model-signing`` says whether it holds; where it does not, the first
difference is named here. Of ``claims.jsonl`` each line must be signed with the key, be about the
digest that ``model.sig`` signs, and follow from the run record.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from safeedit import __version__
from safeedit.errors import ExportError
from safeedit.export.disk import read_plain
from safeedit.export.manifest import CLAIMS, RECORD, SIGNATURE, hash_files, not_plain
from safeedit.export.signing.keys import VerifyingKey
from safeedit.export.signing.statements import made_at, statements, subject_digest
from safeedit.export.signing.writing import (
    PAYLOAD_TYPE,
    bundle_line,
    payload_of,
    signed_root,
)
from safeedit.export.verification import Findings
from safeedit.records import RunRecord

_SKEW = timedelta(minutes=5)
"""By how much two clocks may differ."""
_FOREIGN = f"{SIGNATURE}: not a signature of OpenSSF Model Signing v1.0"
_PREDICATE = "https://model_signing/signature/v1.0"


def is_signed(export: Path) -> bool:
    """Whether an export brings a signature, whatever it is worth."""
    return (export / SIGNATURE).exists()


def check_signature(export: Path, key: VerifyingKey, now: datetime | None = None) -> Findings:
    """Check the signature of an export and its claims.

    Args:
        export: The folder.
        key: Of whoever is trusted to sign.
        now: The time, for what is dated in the future; the clock's unless given.

    Returns:
        What is wrong, the first difference first; unsure is what hangs on clocks or on another
        version of safeedit.
    """
    if strange := not_plain(export):
        return Findings(tuple(strange))
    problems = [*_signature(export, key)]
    if problems:
        return Findings(tuple(problems))
    root = signed_root(_json(read_plain(export / SIGNATURE)))
    claims = _Claims(export, key, root, now or datetime.now(UTC))
    claims.check()
    return Findings(tuple(claims.problems), tuple(claims.unsure))


def _signature(export: Path, key: VerifyingKey) -> Iterator[str]:
    """What is wrong with ``model.sig`` and the files that it signs, a line each."""
    try:
        content = _json(read_plain(export / SIGNATURE))
        payload = payload_of(content)
    except FileNotFoundError:
        yield f"{SIGNATURE}: missing: this export is not signed, so no key can vouch for it"
        return
    except (OSError, ValueError):
        yield _FOREIGN
        return
    if payload.get("predicateType") != _PREDICATE:
        yield _FOREIGN
        return
    if told := _other_key(content, key):
        yield f"{SIGNATURE}: {told}"
        return
    try:
        _verify(export, key)
    except ValueError as error:
        if not str(error).startswith("Signature mismatch"):
            yield _FOREIGN
            return
        # The signature itself was found to hold, so what it lists is the signer's word.
        found = [*_differences(export, payload)]
        yield from found or (f"{SIGNATURE}: the files are not those that it signs",)
    except OSError as error:
        raise ExportError(
            f"the export can't be read: {error.strerror}", file=error.filename or export
        ) from error
    except Exception as error:
        if type(error).__name__ != "InvalidSignature":
            yield _FOREIGN  # what the library makes of a file that is made up
            return
        yield f"{SIGNATURE}: what it says is not what was signed with this key"


def _verify(export: Path, key: VerifyingKey) -> None:
    from model_signing import verifying

    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its warnings
        config = verifying.Config().use_elliptic_key_verifier(public_key=key.path)
        config.verify(export, export / SIGNATURE)


def _differences(export: Path, payload: dict[str, Any]) -> Iterator[str]:
    """Each file that is not as it was signed."""
    signed = {str(one["name"]): str(one["digest"]) for one in payload["predicate"]["resources"]}
    ignored = set(payload["predicate"]["serialization"].get("ignore_paths", ()))
    found = {name: digest for name, digest in _all_files(export).items() if name not in ignored}
    for name in sorted(signed.keys() | found.keys()):
        if name not in found:
            yield f"{name}: missing, though {SIGNATURE} signs it"
        elif name not in signed:
            yield f"{name}: added after the export was signed"
        elif found[name] != signed[name]:
            yield f"{name}: changed after the export was signed"


def _all_files(export: Path) -> dict[str, str]:
    return hash_files(export, leave_out=())


def _other_key(bundle: Any, key: VerifyingKey) -> str:
    """In words, where a bundle says that it was signed with another key."""
    try:
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    except (KeyError, TypeError):
        return "it does not say which key it was signed with"
    if hint != key.identity:
        return f"signed with another key than {key.path.name} ({key.identity[:16]})"
    return ""


class _Claims:
    """The check of ``claims.jsonl``: ``problems`` and ``unsure`` are its findings."""

    def __init__(self, export: Path, key: VerifyingKey, root: str, now: datetime) -> None:
        self.export, self.key, self.root, self.now = export, key, root, now
        self.problems: list[str] = []
        self.unsure: list[str] = []

    def check(self) -> None:
        try:
            text = read_plain(self.export / CLAIMS).decode()
        except FileNotFoundError:
            self.problems.append(f"{CLAIMS}: missing, though the export is signed")
            return
        except (OSError, UnicodeDecodeError):
            self.problems.append(f"{CLAIMS}: not readable")
            return
        if not text.endswith("\n"):
            self.problems.append(f"{CLAIMS}: cut off")
            return
        lines = text.split("\n")[:-1]
        found = [self._statement(number, line) for number, line in enumerate(lines, 1)]
        if not self.problems:
            self._against_record([each for each in found if each is not None])

    def _statement(self, number: int, line: str) -> dict[str, Any] | None:
        """The statement in a line, if it is signed with the key and about this export."""
        where = f"{CLAIMS}:{number}"
        try:
            bundle = _json(line.encode())
            statement = payload_of(bundle)
            kind = bundle["dsseEnvelope"]["payloadType"]
        except (ValueError, KeyError, TypeError):
            self.problems.append(f"{where}: not a DSSE envelope in a Sigstore bundle")
            return None
        if kind != PAYLOAD_TYPE:
            self.problems.append(f"{where}: its envelope holds no in-toto Statement")
        elif told := _other_key(bundle, self.key):
            self.problems.append(f"{where}: {told}")
        elif not _holds(line, bundle["dsseEnvelope"], self.key):
            self.problems.append(f"{where}: what it says is not what was signed with this key")
        elif subject_digest(statement) != self.root:
            self.problems.append(
                f"{where}: about another export: its subject is "
                f"{subject_digest(statement)[:16] or 'not told'}, and {SIGNATURE} signs "
                f"{self.root[:16]}"
            )
        else:
            self._clock(where, statement)
            return statement
        return None

    def _clock(self, where: str, statement: dict[str, Any]) -> None:
        made = made_at(statement)
        if made is not None and made > self.now + _SKEW:
            ahead = made - self.now
            self.unsure.append(
                f"{where}: dated {made:%Y-%m-%d %H:%M} UTC, {_span(ahead)} ahead of this machine's "
                "clock; see which of the two clocks is wrong"
            )

    def _against_record(self, found: Sequence[dict[str, Any]]) -> None:
        """The statements are those that follow from the record."""
        try:
            record = RunRecord.model_validate_json(read_plain(self.export / RECORD))
            expected = statements(record, self.root)
        except (OSError, ValueError, RecursionError):
            self.problems.append(f"{CLAIMS}: can't be held against {RECORD}")
            return
        if len(found) != len(expected):
            self.problems.append(
                f"{CLAIMS}: {len(found)} claims, where the export makes {len(expected)}"
            )
        for number, (theirs, ours) in enumerate(zip(found, expected, strict=False), 1):
            if theirs == ours:
                continue
            told = f"{CLAIMS}:{number}: not what the run record says"
            if record.environment.safeedit == __version__:
                self.problems.append(told)
            else:
                self.unsure.append(f"{told}; but it is by safeedit {record.environment.safeedit}")


def _holds(line: str, envelope: Any, key: VerifyingKey) -> bool:
    """Whether an envelope is signed with the key, and its line holds nothing that is not."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    public = SSlibKey.from_crypto(key.public, keyid=key.identity)
    try:
        found = Envelope.from_dict(json.loads(json.dumps(envelope)))  # which it changes
        found.verify([public], 1)
        return line == bundle_line(found, key.identity)
    except (VerificationError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested without end") from error


def _span(time: timedelta) -> str:
    minutes = round(time.total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
