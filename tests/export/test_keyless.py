"""Signing through Sigstore, with the public service replaced at the calls of its library.

Nothing here asks a network. The stand-ins keep what the library promises: a token is of an identity
and expires, a signer signs statements into bundles with a certificate, a verifier checks a bundle's
signature and then asks the real policy of ``sigstore`` about the certificate.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import requests
from click.testing import Result
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from sigstore import dsse, models, oidc, sign
from sigstore.errors import NetworkError, TUFError, VerificationError
from sigstore.verify import policy

from safeedit.errors import ExportError, UsageError
from safeedit.export.manifest import CLAIMS, SIGNATURE
from safeedit.export.signing.envelopes import BUNDLE_TYPE, PAYLOAD_TYPE
from safeedit.export.signing.keyless import SigstoreIdentity, open_sigstore
from tests.road import Workplace, make_workplace, register

WHO = "https://example.org/team/models/.github/workflows/release.yml@refs/heads/main"
ISSUER = "https://token.example.org"
SECRET = "eyJ-a-token-that-nobody-may-see"
_CA = ec.generate_private_key(ec.SECP256R1())


def _pae(kind: str, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _certificate(identity: str, key: ec.EllipticCurvePublicKey) -> str:
    """A certificate of ten minutes, with the extension that names who confirmed the identity."""
    now = datetime.now(UTC)
    name = x509.Name([])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(minutes=10))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True
        )
        .add_extension(
            x509.UnrecognizedExtension(
                x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), ISSUER.encode()
            ),
            critical=False,
        )
        .sign(_CA, SHA256())
    )
    return base64.b64encode(built.public_bytes(Encoding.DER)).decode()


class Bundle:
    """Of ``sigstore.models``: JSON in one line."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    def from_json(cls, text: str) -> Bundle:
        return cls(json.loads(text))

    def to_json(self) -> str:
        return json.dumps(self.content)


class Token:
    """Of ``sigstore.oidc``."""

    def __init__(self, raw: str, client_id: str = "sigstore") -> None:
        assert raw == SECRET
        self.identity, self.federated_issuer = Service.identity, ISSUER

    def in_validity_period(self) -> bool:
        return Service.valid

    def __str__(self) -> str:
        return SECRET


class Signer:
    """Of ``sigstore.sign``: a key of its own and a certificate for it."""

    def __init__(self, token: Token) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _certificate(token.identity, self.key.public_key())

    def sign_dsse(self, statement: dsse.Statement) -> Bundle:
        Service.signed += 1
        payload = bytes(statement._contents)
        signature = self.key.sign(_pae(PAYLOAD_TYPE, payload), ec.ECDSA(SHA256()))
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        }
        material = {"certificate": {"rawBytes": self.certificate}, "tlogEntries": []}
        return Bundle(
            {"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
        )


class Context:
    """Of ``sigstore.sign``."""

    @classmethod
    def from_trust_config(cls, trust: Any) -> Context:
        return cls()

    @contextlib.contextmanager
    def signer(self, token: Token) -> Iterator[Signer]:
        yield Signer(token)


class Verifier:
    """Of ``sigstore.verify``."""

    def __init__(self, *, trusted_root: Any = None) -> None:
        pass

    @classmethod
    def production(cls) -> Verifier:
        Service.reach()
        return cls()

    def verify_dsse(self, bundle: Bundle, policy: policy.Identity) -> tuple[str, bytes]:
        material, envelope = (
            bundle.content["verificationMaterial"],
            bundle.content["dsseEnvelope"],
        )
        certificate = x509.load_der_x509_certificate(
            base64.b64decode(material["certificate"]["rawBytes"])
        )
        policy.verify(certificate)
        key, payload = certificate.public_key(), base64.b64decode(envelope["payload"])
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            _CA.public_key().verify(
                certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA256())
            )
            signature = base64.b64decode(envelope["signatures"][0]["sig"])
            key.verify(signature, _pae(envelope["payloadType"], payload), ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise VerificationError("the signature does not hold") from None
        return envelope["payloadType"], payload


class Service:
    """What the stand-ins do: each test sets it."""

    identity = WHO
    valid = True
    signed = 0
    tokens: ClassVar[list[str]] = [SECRET]
    """Given out one after the other; the last one again and again; empty: there is none."""
    down: Exception | None = None

    @classmethod
    def reach(cls) -> None:
        if cls.down is not None:
            raise cls.down

    @classmethod
    def production(cls, offline: bool = False) -> Any:
        cls.reach()

        signing = SimpleNamespace(get_oidc_url=lambda: ISSUER)
        return SimpleNamespace(trusted_root=None, signing_config=signing)

    @classmethod
    def detect(cls, client_id: str = "sigstore") -> str | None:
        if len(cls.tokens) > 1:
            return cls.tokens.pop(0)
        return cls.tokens[0] if cls.tokens else None


def stand_in(patch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "identity": WHO, "valid": True, "signed": 0, "tokens": [SECRET], "down": None,
    }.items():  # fmt: skip
        patch.setattr(Service, name, value)
    patch.setattr(oidc, "detect_credential", Service.detect)
    patch.setattr(oidc, "IdentityToken", Token)
    patch.setattr(oidc, "Issuer", lambda address: None)
    patch.setattr(models, "Bundle", Bundle)
    patch.setattr(models.ClientTrustConfig, "production", Service.production)
    patch.setattr(sign, "SigningContext", Context)
    patch.setattr("sigstore.verify.Verifier", Verifier)


@pytest.fixture(autouse=True)
def sigstore(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = make_workplace(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        stand_in(patch)
        result = place.run("apply", place.policy(), "--sign", "sigstore")
        assert Service.signed == 3
    assert result.exit_code == 0, result.stderr
    assert SECRET not in result.output
    return place


@pytest.fixture
def export(made: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.target, tmp_path / "copy"))


def verified(place: Workplace, export: Path, who: str = WHO, issuer: str = ISSUER) -> Result:
    return place.run("verify", export, "--sigstore-identity", who, "--sigstore-issuer", issuer)


def test_an_export_is_signed_and_verified_by_identity(made: Workplace, export: Path) -> None:
    result = verified(made, export)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"is signed by {WHO}, whom {ISSUER} confirmed" in result.stderr
    assert len((export / CLAIMS).read_text().splitlines()) == 2
    everything = [path.read_bytes() for path in export.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in everything)


def test_another_identity_or_issuer_did_not_sign_it(made: Workplace, export: Path) -> None:
    for who, issuer in ((f"{WHO}/fork", ISSUER), (WHO, "https://other.example.org")):
        result = verified(made, export, who, issuer)
        assert result.exit_code == 1
        assert result.stdout.splitlines()[0] == (
            f"{SIGNATURE}: nothing shows that {who} signed what it says ({issuer})"
        )


def test_whatever_is_changed_is_found_and_named(made: Workplace, export: Path) -> None:
    (export / "config.json").write_text("{}")
    (export / "more.txt").write_text("more")
    first = verified(made, export)
    assert first.exit_code == 1
    assert first.stdout.splitlines()[:2] == [
        "config.json: changed after the export was signed",
        "more.txt: added after the export was signed",
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_a_claim_that_is_changed_or_holds_more_is_located(
    number: int, made: Workplace, export: Path
) -> None:
    lines = (export / CLAIMS).read_text().splitlines()
    bundle = json.loads(lines[number - 1])
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["predicate"]["more"] = 1
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    lines[number - 1] = json.dumps(bundle)
    (export / CLAIMS).write_text("".join(f"{line}\n" for line in lines))
    result = verified(made, export)
    assert result.exit_code == 1
    assert f"{CLAIMS}:{number}: nothing shows that {WHO} signed what it says" in result.stdout


def test_a_key_and_an_identity_are_not_taken_for_each_other(
    made: Workplace, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("keygen", tmp_path / "key")
    result = made.run("verify", export, "--key", tmp_path / "key.pub")
    assert result.exit_code == 1
    assert "signed through Sigstore and with no key" in result.stdout
    register(monkeypatch)
    keyed = made.policy(export={"dir": "out/keyed"})
    assert made.run("apply", keyed, "--sign", tmp_path / "key").exit_code == 0
    other = verified(made, made.folder / "out" / "keyed")
    assert other.exit_code == 1
    assert "signed with a key and not through Sigstore" in other.stdout
    (export / SIGNATURE).write_text('{"verificationMaterial": {}}')
    assert "not a signature of OpenSSF" in verified(made, export).stdout


@pytest.mark.parametrize(
    "down",
    [NetworkError(), TUFError("no root"), requests.ConnectionError("no route"), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_nothing_is_verified_and_that_is_no_verdict(
    down: Exception, made: Workplace, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "down", down)
    result = verified(made, export)
    assert result.exit_code == 3
    assert "could not be verified: Sigstore can't be reached, or refuses" in result.stderr
    assert "verify where Sigstore can be reached" in result.stderr


def test_options_that_say_nothing_alone_are_refused(made: Workplace, export: Path) -> None:
    for given, named in (
        (("--sigstore-identity", WHO), "--sigstore-issuer"),
        (("--sigstore-issuer", ISSUER), "--sigstore-identity"),
        (("--sigstore-identity", WHO, "--sigstore-issuer", ISSUER, "--key", "x"), "--key"),
    ):
        result = made.run("verify", export, *given)
        assert result.exit_code == 2
        assert named in result.stderr
        assert "remedy" in result.stderr


# Refused before the run ----------------------------------------------------------------


def _refused(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Result:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the run has started")

    register(monkeypatch)
    monkeypatch.setattr("safeedit.running.run.execute", never)
    return place.run("apply", place.policy(export={"dir": "out/new"}), "--sign", "sigstore")


def test_without_a_token_the_run_does_not_start(
    made: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "tokens", [])
    result = _refused(made, monkeypatch)
    assert result.exit_code == 2
    assert "this machine has no identity token" in result.stderr
    assert "id-token: write" in " ".join(result.stderr.split())
    assert not (made.folder / "out" / "new").exists()


def test_with_a_token_that_has_expired_the_run_does_not_start(
    made: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "valid", False)
    result = _refused(made, monkeypatch)
    assert result.exit_code == 2
    assert "identity token has expired" in result.stderr


def test_without_a_network_the_run_does_not_start(
    made: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "down", NetworkError())
    result = _refused(made, monkeypatch)
    assert result.exit_code == 3
    assert "Sigstore can't be reached" in result.stderr
    assert SECRET not in result.output


def test_an_error_of_a_detector_is_told_without_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(client_id: str = "sigstore") -> str:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(oidc, "detect_credential", broken)
    with pytest.raises(UsageError, match="can't be had") as caught:
        open_sigstore()
    assert SECRET not in str(caught.value)
    assert caught.value.field == "--sign"


def test_this_machine_as_it_is_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own detectors, without stand-ins: no variable of a platform is set."""
    monkeypatch.undo()
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI", "SIGSTORE_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("id._internal.oidc.ambient.detect_gcp", lambda audience: None)
    with pytest.raises(UsageError, match="no identity token"):
        open_sigstore()


# Lost at the end -----------------------------------------------------------------------


def _ends(place: Workplace, monkeypatch: pytest.MonkeyPatch, name: str) -> Result:
    register(monkeypatch)
    return place.run("apply", place.policy(export={"dir": f"out/{name}"}), "--sign", "sigstore")


@pytest.mark.parametrize("how", ["gone", "other", "down"])
def test_what_fails_at_the_end_exports_nothing_and_keeps_what_was_measured(
    how: str, made: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeedit.export.signing.keyless import SigstoreSigner

    configure = SigstoreSigner.configure

    def late(signer: SigstoreSigner, config: Any) -> None:
        """After the run, when there is something to sign."""
        if how == "gone":
            monkeypatch.setattr(Service, "tokens", [])
        elif how == "other":
            monkeypatch.setattr(Service, "identity", "https://example.org/somebody")
        else:
            monkeypatch.setattr(Service, "down", NetworkError())
        configure(signer, config)

    monkeypatch.setattr(SigstoreSigner, "configure", late)
    result = _ends(made, monkeypatch, how)
    assert result.exit_code == 3, result.output
    said = {"gone": "no identity token", "other": "another identity", "down": "can't be reached"}
    assert said[how] in " ".join(result.stderr.split())
    assert "not measured again" in " ".join(result.stderr.split())
    assert SECRET not in result.output
    out = made.folder / "out"
    assert not (out / how).exists()
    assert not [path for path in out.glob(".*") if how in path.name]
    assert (out / f"{how}.report" / "report.html").exists()


def test_a_library_that_can_not_be_reached_while_signing_claims_is_an_error_of_ours() -> None:
    signer = open_sigstore()
    Service.down = NetworkError()
    with pytest.raises(ExportError, match="could not be signed"):
        signer.lines([{"_type": "https://in-toto.io/Statement/v1"}])


def test_words_about_an_identity_name_it_and_who_confirmed_it() -> None:
    trusted = SigstoreIdentity(WHO, ISSUER)
    assert WHO in trusted.told
    assert ISSUER in trusted.told
    assert trusted.stranger({}) == "it does not say who signed it"
    assert trusted.refusal(RuntimeError("something else")) == ""
