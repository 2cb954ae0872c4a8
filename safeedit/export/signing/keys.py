"""Keys that exports are signed with: EC P-256, in PEM.

A private key that others can read signs for them too, so it is refused; so is every other kind of
key, as OpenSSF Model Signing names this one. Fails with :class:`~safeedit.errors.UsageError`; no
message holds a part of a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeedit.cache import PRIVATE, write_atomically
from safeedit.errors import UsageError
from safeedit.export.signing.envelopes import PAYLOAD_TYPE, bundle_line, statement_bytes
from safeedit.policy.files import read_regular
from safeedit.private import LONGEST_KEY, private_folder, read_key_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

_WHAT = "the signing key"
_REMEDY = "make a pair with 'safeedit keygen FILE': FILE signs, FILE.pub verifies"
_LIBRARIES = (
    *("model_signing.signing", "model_signing.verifying"),
    *("in_toto_attestation.v1.statement", "securesystemslib.signer"),
)
_CURVE = "secp256r1"


@dataclass(frozen=True)
class SigningKey:
    """A private key, and where it lies."""

    path: Path
    private: EllipticCurvePrivateKey = field(repr=False)

    @property
    def public(self) -> VerifyingKey:
        """Its public half."""
        return VerifyingKey(self.path, self.private.public_key())

    def configure(self, config: Any) -> None:
        config.use_elliptic_key_signer(private_key=self.path)

    def sign(self, config: Any, folder: Path, signature: Path) -> None:
        config.sign(folder, signature)

    def lines(self, statements: Sequence[dict[str, Any]]) -> list[str]:
        return [self._line(statement) for statement in statements]

    def _line(self, statement: dict[str, Any]) -> str:
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner, SSlibKey

        envelope = Envelope(statement_bytes(statement), PAYLOAD_TYPE, {})
        identity = self.public.identity
        public = SSlibKey.from_crypto(self.private.public_key(), keyid=identity)
        envelope.sign(CryptoSigner(self.private, public))
        return bundle_line(envelope, identity)


@dataclass(frozen=True)
class VerifyingKey:
    """A public key, and where it lies."""

    path: Path
    public: EllipticCurvePublicKey = field(repr=False)

    @property
    def identity(self) -> str:
        """sha256 of its PEM, in hex: how a signature names the key that it was made with."""
        return hashlib.sha256(_public_pem(self.public)).hexdigest()

    @property
    def told(self) -> str:
        return f"signed with the key {self.identity[:16]}"

    @property
    def unlike(self) -> str:
        return "what it says is not what was signed with this key"

    def configure(self, config: Any) -> None:
        config.use_elliptic_key_verifier(public_key=self.path)

    def stranger(self, bundle: Any) -> str:
        try:
            material = bundle["verificationMaterial"]
            if "certificate" in material:
                return "signed through Sigstore and with no key: check it with --sigstore-identity"
            hint = material["publicKey"]["hint"]
        except (KeyError, TypeError):
            return "it does not say which key it was signed with"
        if hint != self.identity:
            return f"signed with another key than {self.path.name} ({self.identity[:16]})"
        return ""

    def refusal(self, error: Exception) -> str:
        if type(error).__name__ == "InvalidSignature":
            return self.unlike
        return ""

    def holds(self, line: str) -> bool:
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError
        from securesystemslib.signer import SSlibKey

        public = SSlibKey.from_crypto(self.public, keyid=self.identity)
        try:
            found = Envelope.from_dict(json.loads(line)["dsseEnvelope"])
            found.verify([public], 1)
            return line == bundle_line(found, self.identity)
        except (VerificationError, ValueError, KeyError, TypeError, AttributeError):
            return False


def require_libraries() -> None:
    """See that the libraries of the extra ``attest`` are there and can be used.

    Raises:
        UsageError: One is not.
    """
    for name in _LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(
                f"signing, and checking a signature, need the package {error.name or name}, which "
                "is not installed",
                remedy="pip install 'safeedit[attest]'",
            ) from error


def make_keys(path: Path) -> VerifyingKey:
    """Make a pair of keys: ``path`` for its owner alone, and ``path.pub`` beside it.

    Raises:
        UsageError: One of the two files exists, or can't be written.
    """
    require_libraries()
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    made = ec.generate_private_key(ec.SECP256R1())
    secret = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = path.with_name(path.name + ".pub")
    if public.exists():
        raise _exists(public)
    try:
        private_folder(path.parent)
        write_atomically(path, secret, PRIVATE, overwrite=False)
        write_atomically(public, _public_pem(made.public_key()), overwrite=False)
    except FileExistsError as error:
        raise _exists(public if path.exists() and error.filename == str(public) else path) from None
    except OSError as error:
        raise UsageError(
            f"the keys can't be written here: {error.strerror}",
            file=path,
            remedy="name a file in a folder that you may write to",
        ) from error
    return VerifyingKey(public, made.public_key())


def read_signing_key(path: Path) -> SigningKey:
    """The private key in a file.

    Raises:
        UsageError: It can't be read, others than its owner can read it, or it is no private EC
            P-256 key in PEM without a password.
    """
    require_libraries()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, shared = read_key_file(path, _WHAT, remedy=_REMEDY)
    if shared:
        raise UsageError(
            f"others of its group can read or change {_WHAT}",
            file=path,
            remedy="chmod 600 it if nobody else has seen it; otherwise replace it",
        )
    if b"PUBLIC KEY" in content:
        raise _wrong(path, "this is a public key, which can't sign", "give its private half")
    try:
        found: Any = load_pem_private_key(content, None)
    except TypeError:
        raise _wrong(
            path,
            "this private key is protected by a password, which is not asked for",
            "take the password off ('openssl pkcs8 -topk8 -nocrypt'), and keep the file at 600",
        ) from None
    except ValueError:
        raise _wrong(path, "this is no private key in PEM") from None
    except Exception:  # cryptography's own, for algorithms that it does not know
        raise _wrong(path, "this private key is of a kind that can't sign here") from None
    _require_p256(path, found)
    return SigningKey(path, found)


def read_verifying_key(path: Path) -> VerifyingKey:
    """The public key in a file.

    Raises:
        UsageError: It can't be read, or is no public EC P-256 key in PEM.
    """
    require_libraries()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        content = read_regular(path, limit=LONGEST_KEY)
    except OSError as error:
        raise UsageError(
            f"the public key can't be read: {error.strerror}", file=path, remedy=_REMEDY
        ) from None
    if b"PRIVATE KEY" in content:
        raise _wrong(
            path, "this is a private key, which nobody needs to verify", "give its public half"
        )
    try:
        found: Any = load_pem_public_key(content)
    except Exception:  # ValueError, or cryptography's own for algorithms that it does not know
        raise _wrong(path, "this is no public key in PEM") from None
    _require_p256(path, found)
    return VerifyingKey(path, found)


def _require_p256(path: Path, key: Any) -> None:
    curve = getattr(getattr(key, "curve", None), "name", "")
    if curve != _CURVE:
        kind = type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").lstrip("_")
        told = f"an elliptic curve key of {curve}" if curve else f"a key of the kind {kind}"
        raise _wrong(path, f"this is {told}, and exports are signed with EC P-256")


def _public_pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _wrong(path: Path, what: str, remedy: str = _REMEDY) -> UsageError:
    return UsageError(what, file=path, remedy=remedy)


def _exists(path: Path) -> UsageError:
    return UsageError(
        "there is a file here already, and a key is never overwritten",
        file=path,
        remedy="choose another name",
    )
