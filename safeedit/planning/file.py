"""Plans as files: written by ``plan -o``, read and checked again by ``apply``.

If policy, data or model has moved in between, the run is refused.

Fails with :class:`~safeedit.errors.UsageError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safeedit.cache import write_atomically
from safeedit.errors import UsageError
from safeedit.export.places import check_output
from safeedit.planning.plan import PLAN_FORMAT, Plan
from safeedit.policy.files import read_json


def write_plan(plan: Plan, path: Path) -> None:
    """Write :meth:`Plan.summary` as JSON for a later ``apply``.

    The policy is named relative to the plan, so that both can move together.

    Raises:
        UsageError: the file can't be written, or lies in a checkpoint.
    """
    check_output(path, "--output", "the plan")
    if path.is_file():
        try:
            read_plan(path)
        except UsageError as error:
            raise UsageError(
                "there is a file here that is no plan, so it is not overwritten",
                file=path,
                remedy="choose another name",
            ) from error
    policy = os.path.relpath(plan.loaded.path, path.parent)
    content = {**plan.summary(), "policy_file": policy}
    try:
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise UsageError(
            f"the plan can't be written: {error.strerror}",
            file=path,
            remedy="choose another folder",
        ) from error


def is_plan(path: Path) -> bool:
    """Whether a file is JSON that :func:`write_plan` made, or looks like it; policies are not."""
    try:
        content = read_json(path)
    except OSError:
        return path.suffix == ".json" and path.is_file()
    except ValueError:
        return path.suffix == ".json"
    return isinstance(content, dict) and content.get("format") == PLAN_FORMAT


def read_plan(path: Path) -> dict[str, Any]:
    """A plan file's content, with ``policy_file`` as seen from the working directory.

    Raises:
        UsageError: the file is not a plan.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError("not a readable plan", file=path, remedy="make it with plan -o") from error
    whole = isinstance(content, dict) and content.get("format") == PLAN_FORMAT
    named = content.get("policy_file") if whole else None
    if not isinstance(named, str) or not named or "\0" in named:
        raise UsageError("this JSON is not a plan", file=path, remedy="make it with plan -o")
    seen = content.get("fingerprint")
    # 1 is also what True and 1.0 are equal to.
    if type(content.get("version")) is not int or content["version"] != 1:
        raise UsageError(
            "a plan of another version", file=path, remedy="make it again with plan -o"
        )
    if not isinstance(seen, dict) or not isinstance(seen.get("data"), dict):
        raise UsageError(
            "the plan does not say what it saw of policy, model and data",
            file=path, field="fingerprint", remedy="make it again with plan -o",
        )  # fmt: skip
    seeds = content.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        raise UsageError(
            "the plan does not say for which seeds it is",
            file=path, field="seeds", remedy="make it again with plan -o",
        )  # fmt: skip
    return {**content, "policy_file": os.path.normpath(path.parent / content["policy_file"])}


def check_unmoved(plan: Plan, written: Mapping[str, Any]) -> None:
    """Refuse if policy, model or data differ from what a written plan saw.

    Raises:
        UsageError: naming what has moved.
    """
    then, now = written["fingerprint"], plan.fingerprint()
    if then.get("key", "") != now["key"]:
        raise UsageError(
            "the plan was made with another key of the digests, so its data can't be compared",
            remedy="apply it where it was made, or with the same SAFEEDIT_DIGEST_KEY; or make a "
            "new plan",
        )
    moved = [part for part in ("policy", "model") if then.get(part) != now[part]]
    before: Mapping[str, Any] = then["data"]
    moved += [
        f"data of {name}"
        for name in sorted(before.keys() | now["data"].keys())
        if before.get(name) != now["data"].get(name)
    ]
    if moved:
        raise UsageError(
            f"since the plan was made, these have changed: {', '.join(moved)}",
            remedy="review the changes and make a new plan",
        )
