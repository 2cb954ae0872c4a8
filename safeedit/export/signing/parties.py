"""Who signs, and who is trusted to have signed: a key, or an identity that Sigstore vouches for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Signer(Protocol):
    """Signs an export and what it claims (:mod:`~safeedit.export.signing.writing`)."""

    def configure(self, config: Any) -> None:
        """Tell a ``model_signing.signing.Config`` what to sign with.

        Raises:
            ExportError: It can't be had now.
        """
        ...

    def sign(self, config: Any, folder: Path, signature: Path) -> None:
        """Have the library sign a folder, with the config that :meth:`configure` was given.

        Raises:
            ExportError: It can't be signed now.
            OSError: The disk is full or can't be written.
        """
        ...

    def lines(self, statements: Sequence[dict[str, Any]]) -> list[str]:
        """In-toto Statements, each signed, as Sigstore bundles of one line.

        Raises:
            ExportError: They can't be signed now.
        """
        ...


class Verifier(Protocol):
    """Knows what it trusts (:mod:`~safeedit.export.signing.checking`)."""

    @property
    def told(self) -> str:
        """What a signature that holds is, in words: ``signed with the key 0123...``."""
        ...

    @property
    def unlike(self) -> str:
        """What one that does not hold is: ``what it says is not what was signed with this key``."""
        ...

    def configure(self, config: Any) -> None:
        """Tell a ``model_signing.verifying.Config`` what to verify with.

        Raises:
            ExportError: It can't be had now.
        """
        ...

    def stranger(self, bundle: Any) -> str:
        """In words, where a bundle says itself that it is signed by somebody else; or nothing."""
        ...

    def refusal(self, error: Exception) -> str:
        """In words, where the library's error says that the signature does not hold; nothing where
        it says something else, and the file is none of the standard's.

        Raises:
            ExportError: The error is about the means to verify, and says nothing of the signature.
        """
        ...

    def holds(self, line: str) -> bool:
        """Whether a bundle is signed by who is trusted, and its line holds nothing that is not.

        Raises:
            ExportError: Nobody can tell, for want of the means to verify.
        """
        ...
