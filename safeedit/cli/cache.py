"""``safeedit cache``: what is kept between runs, and making room."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from safeedit.cli.options import json_option
from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put, put_json
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from safeedit.workflows.cache_use import Kept

_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_BYTES = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


def _amount(name: str, units: Mapping[str, float], example: str) -> Callable[..., float | None]:
    """A callback that reads a number and its unit."""

    def read(context: click.Context, param: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([A-Za-z]{1,2})", value)
        known = {unit.lower(): factor for unit, factor in units.items()}
        if found is None or found[2].lower() not in known:
            raise click.BadParameter(
                f"{value!r} is no {name}: a number and {', '.join(units)}, e.g. {example}"
            )
        return float(found[1]) * known[found[2].lower()]

    return read


@click.group("cache", invoke_without_command=True)
@json_option
@click.pass_context
def cache_group(context: click.Context, as_json: bool) -> None:
    """What is kept between runs: models, and what runs have found."""
    if context.invoked_subcommand is not None:
        return
    from safeedit.cache import cache_dir
    from safeedit.report.wording import size
    from safeedit.workflows.cache_use import KINDS, usage

    folder = cache_dir()
    found = usage(folder)
    if as_json:
        kinds = {
            each.kind: {"entries": each.entries, "bytes": each.size, "oldest": each.oldest}
            for each in found
        }
        put_json({"folder": str(folder), "kinds": kinds})
        return
    put(f"cache {folder}: {size(sum(each.size for each in found))}")
    for each in found:
        what, again = KINDS[each.kind]
        stays = "" if again else "; stays when pruned"
        put(f"  {_entries(each.entries)}, {size(each.size)}: {what}{stays}")


@cache_group.command()
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_amount("age", _SECONDS, "30d"),
    help="Remove what has not been used for so long: 12h, 30d, 8w.",
)
@click.option(
    "--larger-than",
    metavar="SIZE",
    callback=_amount("size", _BYTES, "5GB"),
    help="Remove what was used longest ago, until the rest takes no more: 500MB, 5GB.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@click.pass_obj
def prune(
    screen: Screen,
    older_than: float | None,
    larger_than: float | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Remove what a run makes again by itself: audits, edits, attacks, activations' moments.

    Keys, models and scorers' cards stay.
    """
    from safeedit.cache import cache_dir
    from safeedit.report.wording import size
    from safeedit.workflows.cache_use import entries, prunable
    from safeedit.workflows.cache_use import prune as remove

    if older_than is None and larger_than is None:
        raise UsageError(
            "nothing says what is to go",
            remedy="give --older-than 30d, --larger-than 5GB, or both; 0h is everything",
        )
    folder = cache_dir()
    most = int(larger_than) if larger_than is not None else None
    gone = prunable(folder, older_than=older_than, larger_than=most)
    if not dry_run:
        remove(gone)
    left = sum(kept.size for kept in entries(folder)) if not dry_run else None
    if as_json:
        told = {"removed": [_told(kept) for kept in gone], "dry_run": dry_run, "bytes_left": left}
        put_json(told)
    verb = "would remove" if dry_run else "removed"
    screen.say(f"{verb} {_entries(len(gone))}, {size(sum(kept.size for kept in gone))}")
    return 0


def _entries(n: int) -> str:
    from safeedit.report.wording import plural

    return plural(n, "entry", "entries")


def _told(kept: Kept) -> dict[str, object]:
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(kept.used))
    return {"kind": kept.kind, "name": kept.path.name, "bytes": kept.size, "last_used": used}
