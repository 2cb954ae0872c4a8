"""``safeedit ledger show | check | key``: who asked for what, and is it covered?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeedit.cli.terminal import put, put_json, tell
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from safeedit.export.ledger.file import Entry, Ledger

EXIT_UNCOVERED = 1
EXIT_MISSING = 4

_export = click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
_json = click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")


@click.group()
def ledger() -> None:
    """Which erasure requests an export covers; items appear as keyed digests."""


@ledger.command()
@_export
@_json
def show(export: Path, as_json: bool) -> None:
    """List tickets, dates, policies and numbers of items. Needs no key."""
    groups = _groups(_of(export).rows)
    if as_json:
        put_json(groups)
        return
    for group in groups:
        put(
            f"{_plain(group['date'])}  {_plain(group['ticket'])}  {_plain(group['policy'])}"
            f"  {_count(group['items'], 'item')}"
        )
    tell(_count(sum(group["items"] for group in groups), "row"))


@ledger.command()
@_export
@click.option("--requests", type=click.Path(path_type=Path), required=True, help="Everything asked")
@click.option("--key-file", type=click.Path(path_type=Path), help="File holding the key.")
@click.option("--key-env", help="Environment variable holding the key.")
@click.option("--format", "format_", default="auto", show_default=True, help="As in a policy.")
@_json
def check(
    export: Path,
    requests: Path,
    key_file: Path | None,
    key_env: str | None,
    format_: str,
    as_json: bool,
) -> int:
    """Match the requester's file to the ledger of EXPORT.

    Exit codes: 0 every request is covered and every row has a request; 1 a request is not
    covered; 4 all are covered, but a row has no request and can't be audited again.
    """
    from safeedit.export.ledger.keys import read_key
    from safeedit.export.ledger.requests import coverage, read_requests
    from safeedit.policy import DataSpec, KeySpec

    if (key_file is None) == (key_env is None):
        raise UsageError("give exactly one of --key-file and --key-env")
    ledger_file = _of(export)
    # An absolute path: a policy's would start at its own folder.
    file = str(key_file.absolute()) if key_file is not None else None
    key, warnings = read_key(KeySpec(file=file, env=key_env))
    for warning in warnings:
        tell(f"warning: {warning}")
    ledger_file.require(key)
    source = DataSpec(file=str(requests), format=format_)
    found = coverage(read_requests(source, Path(), key), ledger_file.rows)
    rows = [
        {
            "place": request.place,
            "ticket": request.ticket,
            "digest": request.digest,
            "covered_by": _groups(entries),
        }
        for request, entries in [*found.covered, *((request, ()) for request in found.uncovered)]
    ]
    missing = [
        {"ticket": row.ticket, "digest": row.digest, "date": row.date, "policy": row.policy}
        for row in found.missing
    ]
    if as_json:
        put_json({"requests": rows, "without_request": missing})
    else:
        _show_check(rows, missing)
    tell(
        f"{len(found.covered)} of {_count(len(rows), 'request')} covered; "
        f"{_count(len(missing), 'row')} of the ledger without a request"
    )
    if found.uncovered:
        return EXIT_UNCOVERED
    return EXIT_MISSING if found.missing else 0


@ledger.command(name="key")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
def key_(out: Path) -> None:
    """Make a key: 32 random bytes in hex, readable by its owner only; never overwrites."""
    from safeedit.export.ledger.keys import make_key
    from safeedit.export.places import check_output

    check_output(out, "--out", "the key")
    make_key(out)
    tell(f"{out}: keep it safe; without it no ledger made with it can be checked")


def _of(export: Path) -> Ledger:
    from safeedit.export.ledger.file import LEDGER, find_ledger

    ledger_file = find_ledger(export)
    if ledger_file is None:
        raise UsageError(
            "this export has no ledger",
            file=export / LEDGER,
            remedy="a policy with 'ledger: {key: ...}' keeps one",
        )
    return ledger_file


def _groups(rows: Sequence[Entry]) -> list[dict[str, Any]]:
    """Rows of one ticket and run as one, with their number, in order."""
    groups: dict[tuple[str | None, str], dict[str, Any]] = {}
    for row in rows:
        fresh = {**row.model_dump(mode="json", exclude={"digest", "edits"}), "items": 0}
        groups.setdefault((row.ticket, row.run_id), fresh)["items"] += 1
    return list(groups.values())


def _show_check(rows: Sequence[dict[str, Any]], missing: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        by = ", ".join(f"{_plain(g['policy'])} on {_plain(g['date'])}" for g in row["covered_by"])
        said = f"covered by {by}" if by else "NOT covered"
        put(f"{row['place']}  {_plain(row['ticket'])}  {row['digest'][:16]}  {said}")
    for row in missing:
        put(
            f"no request  {_plain(row['ticket'])}  {row['digest'][:16]}  "
            f"erased by {_plain(row['policy'])} on {_plain(row['date'])}"
        )


def _plain(text: str | None) -> str:
    return text or "(no ticket)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
