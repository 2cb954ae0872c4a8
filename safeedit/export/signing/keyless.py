"""Signing without a key: Sigstore vouches for an identity that a pipeline's platform has confirmed.

The platform (GitHub, GitLab, Google, Buildkite, CircleCI) gives the running job an identity token;
Sigstore's Fulcio gives a certificate of a few minutes for it, and its public log Rekor keeps the
certificate and the digests of what was signed, for ever and for everybody. Whoever verifies names
the identity and who confirmed it. ``model.sig`` is made by the Sigstore support of
``model-signing``, ``claims.jsonl`` by ``sigstore`` itself.

No browser is opened: a run takes longer than anybody waits before one. The token is asked for when
the run starts, so that a machine without one is refused before it works, and again when there is
something to sign, since tokens last minutes. No message holds a token.

Never run against the public service by us, whose machines have no network: tests stand in for it at
the calls of both libraries.

Fails with :class:`~safeedit.errors.UsageError` where no identity is to be had, and with
:class:`~safeedit.errors.ExportError` where Sigstore can't be reached or refuses.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeedit.errors import ExportError, UsageError
from safeedit.export.signing.envelopes import PAYLOAD_TYPE, payload_of, statement_bytes
from safeedit.export.signing.keys import require_libraries

SIGSTORE = "sigstore"
"""What ``--sign`` is given instead of a file; a file of this name is ``./sigstore``."""
_NO_TOKEN = (
    "run it in a job that its platform gives an identity token (GitHub: 'permissions: id-token: "
    "write'; GitLab: 'id_tokens' with SIGSTORE_ID_TOKEN), or sign with a key: 'safeedit keygen'"
)
_AGAIN = "nothing was exported; run it again, and what was measured is not measured again"
_MEANS = frozenset({"NetworkError", "TUFError", "RootError", "MetadataError", "ConnectionError"})
"""Errors of the libraries that are about the way to Sigstore and not about a signature."""
_OF_NETWORK = (ConnectionError, TimeoutError)


@dataclass(frozen=True)
class SigstoreSigner:
    """Signs as the identity that the machine has a token of."""

    identity: str
    """As the token names it: an address, or a workflow."""
    issuer: str
    """Who confirmed it."""

    def configure(self, config: Any) -> None:
        token = self._token()
        with _reaching("signed", _AGAIN):
            config.use_sigstore_signer(identity_token=str(token))

    def sign(self, config: Any, folder: Path, signature: Path) -> None:
        with _reaching("signed", _AGAIN):
            config.sign(folder, signature)

    def lines(self, statements: Sequence[dict[str, Any]]) -> list[str]:
        from sigstore import dsse, models, sign

        token = self._token()
        with _reaching("signed", _AGAIN):
            trust = models.ClientTrustConfig.production()
            context = sign.SigningContext.from_trust_config(trust)
            with context.signer(token) as signer:
                return [
                    signer.sign_dsse(dsse.Statement(statement_bytes(each))).to_json()
                    for each in statements
                ]

    def _token(self) -> Any:
        """A fresh token of the same identity.

        Raises:
            ExportError: There is none any more.
        """
        try:
            token = _identity_token()
        except UsageError as error:
            raise ExportError(
                f"the export could not be signed: {error.message}", remedy=_AGAIN
            ) from None
        if (str(token.identity), str(token.federated_issuer)) != (self.identity, self.issuer):
            raise ExportError(
                "the export could not be signed: this machine has another identity than when the "
                "run started",
                remedy=_AGAIN,
            )
        return token


@dataclass(frozen=True)
class SigstoreIdentity:
    """Somebody who is trusted to sign through Sigstore."""

    identity: str
    """Exactly as the certificate names it."""
    issuer: str
    """Address of who confirmed it."""

    @property
    def told(self) -> str:
        return f"signed by {self.identity}, whom {self.issuer} confirmed to Sigstore"

    @property
    def unlike(self) -> str:
        return f"nothing shows that {self.identity} signed what it says ({self.issuer})"

    def configure(self, config: Any) -> None:
        with _reaching("verified", "verify where Sigstore can be reached"):
            config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)

    def stranger(self, bundle: Any) -> str:
        try:
            material = bundle["verificationMaterial"]
            if "publicKey" in material:
                return "signed with a key and not through Sigstore: check it with --key"
            if "certificate" in material or "x509CertificateChain" in material:
                return ""
        except (KeyError, TypeError):
            pass
        return "it does not say who signed it"

    def refusal(self, error: Exception) -> str:
        if type(error).__name__ in _MEANS:
            raise _unreached("verified", error, "verify where Sigstore can be reached") from None
        return self.unlike if _is_verification_error(error) else ""

    def holds(self, line: str) -> bool:
        from sigstore import models
        from sigstore.verify import Verifier, policy

        with _reaching("verified", "verify where Sigstore can be reached"):
            verifier = Verifier.production()
        trusted = policy.Identity(identity=self.identity, issuer=self.issuer)
        try:
            bundle = models.Bundle.from_json(line)
            kind, payload = verifier.verify_dsse(bundle, trusted)
            return (
                kind == PAYLOAD_TYPE
                and json.loads(payload) == payload_of(json.loads(line))
                and json.loads(bundle.to_json()) == json.loads(line)
            )
        except Exception as error:
            if type(error).__name__ in _MEANS:
                raise _unreached(
                    "verified", error, "verify where Sigstore can be reached"
                ) from None
            return False


def open_sigstore() -> SigstoreSigner:
    """See that this machine can sign through Sigstore: before a run, which would be lost otherwise.

    Raises:
        UsageError: The libraries are missing; the machine has no identity token, or one that has
            expired.
        ExportError: Sigstore can't be reached.
    """
    require_libraries()
    token = _identity_token()
    from sigstore import models

    with _reaching("signed", "run it where Sigstore can be reached, or sign with a key"):
        models.ClientTrustConfig.production()
    return SigstoreSigner(str(token.identity), str(token.federated_issuer))


def _identity_token() -> Any:
    """The token that the platform gives this job.

    Raises:
        UsageError: It gives none, or one that does not hold now.
    """
    from sigstore import oidc

    try:
        raw = oidc.detect_credential()
        token = None if raw is None else oidc.IdentityToken(raw)
        held = token is not None and token.in_validity_period()
    except Exception as error:  # of the platform's detectors, which may quote what they were given
        raise UsageError(
            f"the platform's identity token can't be had ({type(error).__name__})",
            field="--sign",
            remedy=_NO_TOKEN,
        ) from None
    if token is None:
        raise UsageError(
            "Sigstore signs for an identity, and this machine has no identity token",
            field="--sign",
            remedy=_NO_TOKEN,
        )
    if not held:
        raise UsageError(
            "this machine's identity token has expired", field="--sign", remedy=_NO_TOKEN
        )
    return token


@contextlib.contextmanager
def _reaching(done: str, remedy: str) -> Iterator[None]:
    """Around calls that ask Sigstore: quiet, and with our own error where it does not answer."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        # Errors of the network are of this kind too; those of the disk are told elsewhere.
        if type(error).__module__ == "builtins" and not isinstance(error, _OF_NETWORK):
            raise
        raise _unreached(done, error, remedy) from None
    except Exception as error:
        raise _unreached(done, error, remedy) from None


def _unreached(done: str, error: Exception, remedy: str) -> ExportError:
    return ExportError(
        f"the export could not be {done}: Sigstore can't be reached, or refuses "
        f"({type(error).__name__})",
        remedy=remedy,
    )


def _is_verification_error(error: Exception) -> bool:
    from sigstore.errors import VerificationError

    return isinstance(error, VerificationError)
