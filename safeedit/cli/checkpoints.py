"""``safeedit diff``, ``verify`` and ``revert``: checkpoints and their evidence."""

from __future__ import annotations

from pathlib import Path

import click

from safeedit.cli.options import json_option
from safeedit.cli.terminal import put, put_json, tell


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
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
def verify(export: Path) -> int:
    """Check an exported checkpoint against its evidence, and the evidence against itself.

    Exit codes: 0 all matches, 1 something does not, 4 only what another version of safeedit
    concluded or drew could not be drawn again.
    """
    from safeedit.workflows.verification import check

    found = check(export)
    for line in (*found.problems, *found.unsure):
        put(line)
    if found.problems:
        tell("does not match its evidence")
        return 1
    if found.unsure:
        tell("made by another version of safeedit: not all could be checked")
        return 4
    tell("matches its evidence")
    return 0


@click.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
def revert(export: Path, out: Path) -> None:
    """Write the checkpoint that EXPORT was made from to OUT, bit for bit."""
    from safeedit.export.reversion import revert as undo

    undo(export, out)
    tell(f"{out}: the original weights, digest verified")
