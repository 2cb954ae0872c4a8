"""``safeedit doctor``: what this machine has, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from safeedit.cli.digest_key import digest_key
from safeedit.cli.options import json_option
from safeedit.cli.policies import plan_of
from safeedit.cli.terminal import put, put_json

_MARKS = {"ok": "ok      ", "optional": "optional", "warning": "warning ", "missing": "MISSING "}
EXIT_MISSING = 3


@click.command()
@click.argument("policy", type=click.Path(path_type=Path), required=False)
@json_option
def doctor(policy: Path | None, as_json: bool) -> int:
    """Say what this machine has and what is missing, for POLICY too if one is given.

    Fetches nothing and loads no weights. Exit codes: 0 nothing is missing, 3 something is.
    """
    from safeedit.cache import cache_dir
    from safeedit.workflows.diagnosis import examine, examine_policy

    found = examine(cache_dir, digest_key)
    if policy is not None:
        found += examine_policy(lambda: plan_of(policy, exporting=False, keyed=False))
    missing = any(each.state == "missing" for each in found)
    if as_json:
        put_json({"ok": not missing, "found": list(map(asdict, found))})
    else:
        for each in found:
            put(f"{_MARKS[each.state]}  {each.what}: {each.said}")
            if each.remedy:
                put(f"{' ' * 10}{each.remedy}")
    return EXIT_MISSING if missing else 0
