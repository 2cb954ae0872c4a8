"""Is an export signed by whom one trusts, and is what it claims its own?

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
from safeedit.export.signing.envelopes import PAYLOAD_TYPE, payload_of, signed_root
from safeedit.export.signing.parties import Verifier
from safeedit.export.signing.statements import made_at, statements, subject_digest
from safeedit.export.verification import Findings
from safeedit.records import RunRecord

_SKEW = timedelta(minutes=5)
"""By how much two clocks may differ."""
_FOREIGN = f"{SIGNATURE}: not a signature of OpenSSF Model Signing v1.0"
_PREDICATE = "https://model_signing/signature/v1.0"


def is_signed(export: Path) -> bool:
    """Whether an export brings a signature, whatever it is worth."""
    return (export / SIGNATURE).exists()


def check_signature(export: Path, trusted: Verifier, now: datetime | None = None) -> Findings:
    """Check the signature of an export and its claims.

    Args:
        export: The folder.
        trusted: Whoever is trusted to sign.
        now: The time, for what is dated in the future; the clock's unless given.

    Returns:
        What is wrong, the first difference first; unsure is what hangs on clocks or on another
        version of safeedit.
    """
    if strange := not_plain(export):
        return Findings(tuple(strange))
    problems = [*_signature(export, trusted)]
    if problems:
        return Findings(tuple(problems))
    root = signed_root(_json(read_plain(export / SIGNATURE)))
    claims = _Claims(export, trusted, root, now or datetime.now(UTC))
    claims.check()
    return Findings(tuple(claims.problems), tuple(claims.unsure))


def _signature(export: Path, trusted: Verifier) -> Iterator[str]:
    """What is wrong with ``model.sig`` and the files that it signs, a line each."""
    from model_signing import verifying

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
    if told := trusted.stranger(content):
        yield f"{SIGNATURE}: {told}"
        return
    config = verifying.Config()
    trusted.configure(config)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints its warnings
            config.verify(export, export / SIGNATURE)
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
        told = trusted.refusal(error)  # otherwise, what the library makes of a file that is made up
        yield f"{SIGNATURE}: {told}" if told else _FOREIGN


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


class _Claims:
    """The check of ``claims.jsonl``: ``problems`` and ``unsure`` are its findings."""

    def __init__(self, export: Path, trusted: Verifier, root: str, now: datetime) -> None:
        self.export, self.trusted, self.root, self.now = export, trusted, root, now
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
        elif told := self.trusted.stranger(bundle):
            self.problems.append(f"{where}: {told}")
        elif not self.trusted.holds(line):
            self.problems.append(f"{where}: {self.trusted.unlike}")
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


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested without end") from error


def _span(time: timedelta) -> str:
    minutes = round(time.total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
