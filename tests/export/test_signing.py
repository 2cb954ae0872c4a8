"""Who made an export: whatever is changed in a signed one, ``verify --key`` says so, and names it.

The export is made once, by a real run; each test changes a copy.
"""

from __future__ import annotations

import base64
import json
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import verifying
from safetensors.torch import load_file, save_file
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from safeedit.errors import UsageError
from safeedit.export.manifest import (
    BOM,
    CLAIMS,
    MANIFEST,
    MAY_BE_WITHHELD,
    RECORD,
    SIGNATURE,
    UNDO,
    write_manifest,
)
from safeedit.export.reversion import revert
from safeedit.export.signing.checking import check_signature
from safeedit.export.signing.envelopes import bundle_line
from safeedit.export.signing.keys import (
    SigningKey,
    VerifyingKey,
    make_keys,
    read_signing_key,
    read_verifying_key,
)
from safeedit.export.signing.statements import statements
from safeedit.model.digest import digest_of
from safeedit.model.headers import read_headers
from safeedit.model.stored import stored_digests
from safeedit.records import RunRecord, Verdict
from safeedit.report import bom, render_evidence
from safeedit.workflows.verification import check
from tests.report import schemas
from tests.report.records import run_record
from tests.road import Workplace, make_workplace, register


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = make_workplace(tmp_path_factory.mktemp("made"))
    assert place.run("keygen", place.folder / "key").exit_code == 0
    assert place.run("keygen", place.folder / "other").exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        result = place.run("apply", place.policy(), "--sign", place.folder / "key")
    assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def export(made: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.target, tmp_path / "copy"))


@pytest.fixture
def key(made: Workplace) -> VerifyingKey:
    return read_verifying_key(made.folder / "key.pub")


def verified(place: Workplace, export: Path, key: str = "key.pub") -> Result:
    return place.run("verify", export, "--key", place.folder / key)


# As made --------------------------------------------------------------------------------


def test_a_signed_export_is_verified_by_us_and_by_the_library_of_the_standard(
    made: Workplace, export: Path, tmp_path: Path
) -> None:
    result = verified(made, export)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "is signed with the key" in result.stderr
    config = verifying.Config().use_elliptic_key_verifier(public_key=made.folder / "key.pub")
    config.verify(export, export / SIGNATURE)
    (export / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        config.verify(export, export / SIGNATURE)
    revert(made.target, tmp_path / "back")
    back = digest_of(stored_digests(read_headers(tmp_path / "back")))
    assert back == digest_of(stored_digests(read_headers(made.folder / "model")))
    assert not (tmp_path / "back" / SIGNATURE).exists()


def test_a_copy_without_originals_and_deltas_is_signed_as_well(
    made: Workplace, export: Path
) -> None:
    for path in [export / UNDO, *export.glob("evidence/delta-*")]:
        path.unlink()
    assert verified(made, export).exit_code == 0
    config = verifying.Config().use_elliptic_key_verifier(public_key=made.folder / "key.pub")
    config.verify(export, export / SIGNATURE)


def test_a_signed_export_is_one_that_the_next_run_may_replace(
    made: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    spec = {"dir": "out/again", "overwrite": True}
    for _ in range(2):
        result = made.run("apply", made.policy(export=spec), "--sign", made.folder / "key")
        assert result.exit_code == 0, result.stderr
        assert verified(made, made.folder / "out" / "again").exit_code == 0


def test_without_a_key_verify_says_what_it_did_not_check(made: Workplace, export: Path) -> None:
    assert "signature not checked" in made.run("verify", export).stderr
    (export / SIGNATURE).unlink()
    (export / CLAIMS).unlink()
    result = made.run("verify", export)
    assert result.exit_code == 0
    assert "not signed" in result.stderr
    unsigned = verified(made, export)
    assert unsigned.exit_code == 1
    assert unsigned.stdout.startswith(f"{SIGNATURE}: missing: this export is not signed")


def test_claims_are_about_what_the_signature_signs_and_say_what_the_gates_said(
    export: Path, key: VerifyingKey
) -> None:
    signed = payload(json.loads((export / SIGNATURE).read_text()))
    claims = [payload(json.loads(line)) for line in (export / CLAIMS).read_text().splitlines()]
    assert [claim["predicateType"] for claim in claims] == [
        "https://in-toto.io/attestation/test-result/v0.1",
        "https://in-toto.io/attestation/svr/v0.2",
    ]
    for claim in claims:
        schemas.claim(claim)
        assert claim["_type"] == "https://in-toto.io/Statement/v1"
        assert claim["subject"][0]["digest"] == signed["subject"][0]["digest"]
    tested = claims[0]["predicate"]
    assert tested["result"] == "PASSED"
    assert tested["passedTests"] == ["drift.distance max 1e+09"]
    assert {part["name"] for part in tested["configuration"]} >= {"policy", "base model"}
    assert "SAFEEDIT_ALL_GATES_PASSED" in claims[1]["predicate"]["properties"]


def payload(bundle: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return found


def test_gates_that_failed_or_told_nothing_are_failed_and_warned_tests() -> None:
    record = run_record()
    (first, *_) = record.verdicts
    verdicts: list[Verdict] = [
        first.model_copy(update={"status": status, "metric": f"a.{status}"})
        for status in ("pass", "fail", "inconclusive")
    ]
    for status, result in (("fail", "FAILED"), ("inconclusive", "WARNED"), ("pass", "PASSED")):
        found = record.model_copy(update={"verdicts": tuple(verdicts), "status": status})
        tested = statements(found, "0" * 64)[0]["predicate"]
        assert tested["result"] == result
        for name, listed in (
            ("pass", "passedTests"),
            ("fail", "failedTests"),
            ("inconclusive", "warnedTests"),
        ):
            assert tested[listed] == [f"a.{name} {first.condition}"]


# The tamper table -----------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n{}")


def swap(path: Path) -> None:
    other = next(each for each in sorted(path.parent.iterdir()) if each.is_file() and each != path)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [flip, truncate, append, swap, remove])
def test_every_file_that_is_changed_is_found_with_the_key_and_named(
    made: Workplace, key: VerifyingKey, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    names = [
        path.relative_to(made.target).as_posix()
        for path in sorted(made.target.rglob("*"))
        if path.is_file()
    ]
    assert {SIGNATURE, CLAIMS, MANIFEST, RECORD, UNDO, "model.safetensors"} < set(names)
    for name in names:
        withheld = any(Path(name).match(pattern) for pattern in MAY_BE_WITHHELD)
        copy = Path(shutil.copytree(made.target, tmp_path / "copy"))
        change(copy / name)
        problems = check(copy, key).problems
        if change is remove and withheld:
            assert problems == ()  # a copy that is passed on comes without it
        elif change is swap:
            assert problems, name
        else:
            assert problems[0].startswith(name), (name, problems)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    "name",
    [
        *("added.txt", "evidence/added.json", ".gitattributes", ".git/config"),
        *("evidence/delta-more.safetensors", "model.sig.bak"),
    ],
)
def test_a_file_that_was_added_is_found_with_the_key(
    export: Path, key: VerifyingKey, name: str
) -> None:
    (export / name).parent.mkdir(exist_ok=True)
    (export / name).write_text("more")
    assert check(export, key).problems[0].startswith(name)
    write_manifest(export)
    assert check(export, key).problems


def test_other_weights_under_a_manifest_and_record_that_agree_are_found_with_the_key_alone(
    export: Path, key: VerifyingKey
) -> None:
    """What no manifest can show: a forger who writes all of the evidence again."""
    record = json.loads((export / RECORD).read_text())
    record["owner"] = record["policy"]["owner"] = None
    weights = load_file(export / "model.safetensors")
    name = next(iter(sorted(set(weights) - set(record["export"]["originals"]))))
    weights[name] = weights[name] + 1
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    digests = stored_digests(read_headers(export))
    write_manifest(export)
    lines = (export / MANIFEST).read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    record["export"]["files"]["model.safetensors"] = listed["model.safetensors"]
    record["export"]["weights_digest"] = digest_of(digests)
    record["model"]["digest"] = digest_of({**digests, **record["export"]["originals"]})
    forged = RunRecord.model_validate_json(json.dumps(record))
    (export / RECORD).write_text(forged.model_dump_json(indent=2) + "\n")
    for drawn, text in render_evidence(forged).items():
        if drawn != "report.json":
            (export / ("" if drawn == "README.md" else "evidence") / drawn).write_text(text)
    write_manifest(export)
    assert check(export).problems == ()  # without a key nobody can tell
    problems = check(export, key).problems
    assert f"{RECORD}: changed after the export was signed" in problems
    assert "model.safetensors: changed after the export was signed" in problems


def test_a_bill_of_other_weights_is_named_with_both_digests_though_the_manifest_agrees(
    export: Path,
) -> None:
    record = RunRecord.model_validate_json((export / RECORD).read_text())
    assert record.export is not None
    other = record.export.model_copy(update={"weights_digest": "0" * 64})
    (export / BOM).write_text(bom.render(record.model_copy(update={"export": other})))
    write_manifest(export)
    assert check(export).problems[0] == (
        f"{BOM}: the bill of other weights, {'0' * 16}; those of this export are "
        f"{record.export.weights_digest[:16]}"
    )
    (export / BOM).write_text("{}")
    write_manifest(export)
    assert check(export).problems[0].startswith(f"{BOM}: the bill of no weights; those of")


# Signatures and claims of others --------------------------------------------------------


def test_a_signature_by_another_key_is_named_as_that(made: Workplace, export: Path) -> None:
    result = verified(made, export, "other.pub")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{SIGNATURE}: signed with another key than other.pub")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "null", "[" * 100_000, '{"dsseEnvelope": {"payload": "e30="}}', "\xff"],
)
def test_what_is_no_signature_is_said_to_be_none(
    export: Path, key: VerifyingKey, content: str
) -> None:
    (export / SIGNATURE).write_text(content, encoding="latin-1")
    assert check_signature(export, key).problems == (
        f"{SIGNATURE}: not a signature of OpenSSF Model Signing v1.0",
    )


def test_a_signature_that_names_our_key_and_was_made_with_another_is_refused(
    export: Path, key: VerifyingKey
) -> None:
    bundle = json.loads((export / SIGNATURE).read_text())
    sealed = ec.generate_private_key(ec.SECP256R1())
    envelope = Envelope.from_dict(json.loads(json.dumps(bundle["dsseEnvelope"])))
    envelope.sign(CryptoSigner(sealed))
    bundle["dsseEnvelope"] = {
        **envelope.to_dict(),
        "signatures": envelope.to_dict()["signatures"][-1:],
    }
    (export / SIGNATURE).write_text(json.dumps(bundle))
    assert check_signature(export, key).problems == (
        f"{SIGNATURE}: what it says is not what was signed with this key",
    )


def claim(
    statement: dict[str, Any], key: SigningKey, kind: str = "application/vnd.in-toto+json"
) -> str:
    """A line of claims as a stranger would write it."""
    envelope = Envelope(json.dumps(statement).encode(), kind, {})
    public = SSlibKey.from_crypto(key.private.public_key(), keyid=key.public.identity)
    envelope.sign(CryptoSigner(key.private, public))
    return bundle_line(envelope, key.public.identity)


def test_claims_of_another_export_or_from_elsewhere_are_located(
    made: Workplace, export: Path, key: VerifyingKey
) -> None:
    ours = read_signing_key(made.folder / "key")
    theirs = read_signing_key(made.folder / "other")
    first, second = (export / CLAIMS).read_text().splitlines()
    statement = payload(json.loads(second))
    elsewhere = {**statement, "subject": [{"name": "other", "digest": {"sha256": "0" * 64}}]}
    false = json.loads(json.dumps(statement))
    false["predicate"]["properties"].append("SAFEEDIT_SURVIVES_EVERYTHING")
    moved = json.loads(first)
    moved["dsseEnvelope"]["payload"] = json.loads(second)["dsseEnvelope"]["payload"]
    for line, told in (
        (claim(elsewhere, ours), ":2: about another export: its subject is 0000"),
        (claim(statement, theirs), ":2: signed with another key than key.pub"),
        (claim(statement, ours, "text/plain"), ":2: its envelope holds no in-toto Statement"),
        (second[:-1] + ',"more":1}', ":2: what it says is not what was signed with this key"),
        (json.dumps(moved), ":2: what it says is not what was signed with this key"),
        (claim(false, ours), ":2: not what the run record says"),
        ('{"payload": "e30="}', ":2: not a DSSE envelope in a Sigstore bundle"),
        ("hello", ":2: not a DSSE envelope in a Sigstore bundle"),
        (f"{second}\n{second}", ": 3 claims, where the export makes 2"),
    ):
        (export / CLAIMS).write_text(f"{first}\n{line}\n")
        (problem,) = check_signature(export, key).problems
        assert problem.startswith(CLAIMS + told), problem
    (export / CLAIMS).write_text(f"{first}\n")
    assert check_signature(export, key).problems == (
        f"{CLAIMS}: 1 claims, where the export makes 2",
    )


def test_a_claim_from_the_future_is_a_matter_of_clocks(
    made: Workplace, export: Path, key: VerifyingKey
) -> None:
    then = datetime.now(UTC) - timedelta(days=2)
    found = check_signature(export, key, then)
    assert found.problems == ()
    (told,) = found.unsure
    assert told.startswith(f"{CLAIMS}:2: dated ")
    assert "ahead of this machine's clock" in told
    assert check_signature(export, key, datetime.now(UTC) - timedelta(minutes=2)).unsure == ()


# Keys -----------------------------------------------------------------------------------


def test_keys_are_made_for_their_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "new" / "key")
    private = tmp_path / "new" / "key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert read_signing_key(private).public.identity == made.identity
    assert read_verifying_key(tmp_path / "new" / "key.pub").identity == made.identity
    before = private.read_bytes()
    for _ in range(2):
        with pytest.raises(UsageError, match="never overwritten"):
            make_keys(private)
        (tmp_path / "new" / "key.pub").unlink(missing_ok=True)
    assert private.read_bytes() == before


def pem(private: Any, password: bytes = b"") -> bytes:
    seal = BestAvailableEncryption(password) if password else NoEncryption()
    content: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, seal)
    return content


def public_pem(private: Any) -> bytes:
    content: bytes = private.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return content


P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (pem(RSA), 0o600, "this is a key of the kind RSA, and exports are signed with EC P-256"),
        (pem(ED), 0o600, "this is a key of the kind Ed25519"),
        (pem(P384), 0o600, "this is an elliptic curve key of secp384r1"),
        (public_pem(P256), 0o600, "this is a public key, which can't sign"),
        (pem(P256, b"secret"), 0o600, "protected by a password"),
        (b"x1y2z3a4b5c6d7e8f9g0" * 4, 0o600, "this is no private key in PEM"),
        (b"", 0o600, "the signing key is empty"),
        (pem(P256), 0o640, "others of its group can read or change the signing key"),
        (pem(P256), 0o644, "everybody on this machine can read or change the signing key"),
    ],
)
def test_a_key_that_can_not_sign_is_refused_before_the_run(
    made: Workplace, tmp_path: Path, content: bytes, mode: int, told: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    result = made.run("apply", made.policy(export={"dir": "out/next"}), "--sign", path)
    assert result.exit_code == 2
    assert told in result.stderr
    assert str(path) in result.stderr
    assert "stage 1" not in result.stderr
    assert not (made.folder / "out" / "next").exists()


def test_a_key_is_a_file_and_there_is_something_to_sign(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    key = made.folder / "key"
    gone = made.run("apply", made.policy(export={"dir": "out/n"}), "--sign", tmp_path / "gone")
    assert (gone.exit_code, "there is no such key" in gone.stderr) == (2, True)
    folder = made.run("apply", made.policy(export={"dir": "out/n"}), "--sign", tmp_path)
    assert (folder.exit_code, "something else than a file" in folder.stderr) == (2, True)
    nothing = made.run("apply", made.policy(export=None), "--sign", key)
    assert nothing.exit_code == 2
    assert "exports nothing, so there is nothing to sign" in nothing.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pem(P256), "this is a private key, which nobody needs to verify"),
        (public_pem(RSA), "this is a key of the kind RSA"),
        (public_pem(P384), "this is an elliptic curve key of secp384r1"),
        (b"hello", "this is no public key in PEM"),
        (b"", "this is no public key in PEM"),
    ],
)
def test_a_key_that_can_not_verify_is_refused(
    made: Workplace, export: Path, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "key.pub").write_bytes(content)
    result = made.run("verify", export, "--key", tmp_path / "key.pub")
    assert result.exit_code == 2
    assert told in result.stderr
    assert made.run("verify", export, "--key", tmp_path / "gone").exit_code == 2
