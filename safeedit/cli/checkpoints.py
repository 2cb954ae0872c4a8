"""``safeedit diff``, ``verify`` and ``revert``: checkpoints and their evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeedit.cli.options import json_option
from safeedit.cli.terminal import put, put_json, tell
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from safeedit.export.signing.parties import Verifier


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True))
@click.argument("after", type=click.Path(path_type=Path, exists=True))
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Compare two checkpoints tensor by tensor, streamed from disk."""
    from safeedit.export.compare import diff_checkpoints

    rows = diff_checkpoints(before, after)
    if as_json:
        put_json([row.model_dump() for row in rows])
        return
    for row in rows:
        put(
            f"{row.name}  {row.status}  changed {row.share_changed:.2%}"
            f"  relative norm {row.relative_norm:.3g}"
        )
    tell(f"{len(rows)} tensors differ")


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def keygen(path: Path) -> None:
    """Make a pair of signing keys (EC P-256): FILE, which signs, and FILE.pub, which verifies."""
    from safeedit.export.signing.keys import make_keys

    made = make_keys(path)
    tell(f"{path}: the private key, for its owner alone; 'safeedit apply POLICY --sign {path}'")
    tell(f"{made.path}: the public key, to give away; 'safeedit verify EXPORT --key {made.path}'")
    put(made.identity)


@click.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="PUB",
    help="Public key of whoever is trusted to sign: check signature and claims too.",
)
@click.option(
    "--sigstore-identity",
    "identity",
    metavar="WHO",
    help="Check instead that it was signed through Sigstore by WHO (an address, a workflow).",
)
@click.option(
    "--sigstore-issuer",
    "issuer",
    metavar="URL",
    help="Who confirmed that identity, e.g. https://token.actions.githubusercontent.com.",
)
def verify(export: Path, key: Path | None, identity: str | None, issuer: str | None) -> int:
    """Check an exported checkpoint against its evidence, and the evidence against itself.

    With --key also that it is signed with that key, with --sigstore-identity that it is signed by
    that identity. Exit codes: 0 all matches, 1 something does not, 4 not all could be checked:
    another version of safeedit drew it, or a clock is wrong.
    """
    from safeedit.export.signing.checking import is_signed
    from safeedit.workflows.verification import check

    trusted = _trusted(key, identity, issuer)
    found = check(export, trusted)
    for line in (*found.problems, *found.unsure):
        put(line)
    if found.problems:
        tell("does not match its evidence")
        return 1
    if found.unsure:
        tell("not all could be checked: see the lines above")
        return 4
    if trusted is not None:
        tell(f"matches its evidence, and is {trusted.told}")
    elif is_signed(export):
        tell(
            "consistent with its evidence; signature not checked (--key PUB, or "
            "--sigstore-identity, checks it)"
        )
    else:
        tell("consistent with its evidence; not signed, so it does not show who made it")
    return 0


def _trusted(key: Path | None, identity: str | None, issuer: str | None) -> Verifier | None:
    """Whoever is trusted to have signed; None where the signature is not to be checked."""
    from safeedit.export.signing.keyless import SigstoreIdentity
    from safeedit.export.signing.keys import read_verifying_key, require_libraries

    if (identity is None) != (issuer is None):
        raise UsageError(
            "an identity says nothing without who confirmed it, nor the other way round",
            field="--sigstore-issuer" if issuer is None else "--sigstore-identity",
            remedy="give both --sigstore-identity and --sigstore-issuer",
        )
    if identity is None or issuer is None:
        return None if key is None else read_verifying_key(key)
    if key is not None:
        raise UsageError(
            "an export is signed with a key or through Sigstore, not both",
            field="--key",
            remedy="give --key, or --sigstore-identity and --sigstore-issuer",
        )
    require_libraries()
    return SigstoreIdentity(identity, issuer)


@click.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--private",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Where the original tensors lie, if the policy kept them elsewhere (export.private).",
)
@click.option(
    "--identity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Private key of age, if they are encrypted (export.recipient).",
)
def revert(export: Path, out: Path, private: Path | None, identity: Path | None) -> None:
    """Write the checkpoint that EXPORT was made from to OUT, bit for bit."""
    from safeedit.export.reversion import revert as undo

    undo(export, out, private=private, identity=identity)
    tell(f"{out}: the original weights, digest verified")
