"""``safeedit cache``: what is there, and making room without losing what can't be made again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from safeedit.workflows.cache_use import entries
from tests.road import Workplace

DAY = 86_400


def fill(place: Workplace) -> dict[str, Path]:
    """Entries of several kinds: a megabyte each, used so many days ago."""
    found = {}
    for name, days in {
        "store/audit-1": 40, "store/edit-2": 20, "store/dose-3": 10, "store/attack-4": 1,
        "moments/5.safetensors": 30, "models/canaries-6": 99, "scorers/7": 99, "audits/8": 99,
    }.items():  # fmt: skip
        path = place.cache / name
        file = path if path.suffix else path / "content"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 1_000_000)
        then = time.time() - days * DAY
        os.utime(path, (then, then))
        found[name] = path
    return found


def listed(place: Workplace) -> dict[str, Any]:
    result = place.run("cache", "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_it_says_what_lies_there(place: Workplace) -> None:
    fill(place)
    found = listed(place)
    assert found["folder"] == str(place.cache)
    assert {kind: each["entries"] for kind, each in found["kinds"].items()} == dict.fromkeys(
        ["audit", "edit", "dose", "attack", "moments", "models", "scorers", "audits"], 1
    )
    assert {each["bytes"] for each in found["kinds"].values()} == {1_000_000}
    told = place.run("cache").stdout
    assert f"cache {place.cache}: 8 MB" in told
    assert "1 entry, 1 MB: audits of models, finished\n" in told
    assert "1 entry, 1 MB: models fetched, converted or planted; stays when pruned\n" in told


def test_an_empty_cache_is_no_error(place: Workplace) -> None:
    assert listed(place)["kinds"] == {}
    assert place.run("cache", "prune", "--older-than", "0h").exit_code == 0


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--older-than", "25d"], {"audits/8", "store/audit-1", "moments/5.safetensors"}),
        (["--older-than", "5w"], {"audits/8", "store/audit-1"}),
        (["--larger-than", "2.5MB"], {"audits/8", "store/audit-1", "moments/5.safetensors",
                                      "store/edit-2"}),
        (["--larger-than", "1GB"], set()),
        (["--larger-than", "2.5MB", "--older-than", "12h"],
         {"audits/8", "store/audit-1", "moments/5.safetensors", "store/edit-2", "store/dose-3",
          "store/attack-4"}),
    ],
)  # fmt: skip
def test_what_was_used_longest_ago_goes_and_models_and_cards_stay(
    place: Workplace, options: list[str], gone: set[str]
) -> None:
    paths = fill(place)
    tried = place.run("cache", "prune", *options, "--dry-run", "--json")
    assert {row["name"] for row in json.loads(tried.stdout)["removed"]} == {
        name.partition("/")[2] for name in gone
    }
    assert all(path.exists() for path in paths.values()), "a dry run removes nothing"
    result = place.run("cache", "prune", *options)
    assert result.exit_code == 0, result.stderr
    assert {name for name, path in paths.items() if not path.exists()} == gone
    noun = "entry" if len(gone) == 1 else "entries"
    assert f"removed {len(gone)} {noun}, " in result.stderr


@pytest.mark.parametrize("wrong", ["30", "30 days", "-3d", "d", "1e9d", "5GB"])
def test_an_age_that_is_none_is_refused(place: Workplace, wrong: str) -> None:
    paths = fill(place)
    result = place.run("cache", "prune", "--older-than", wrong)
    assert result.exit_code == 2
    assert "is no age: a number and h, d, w, e.g. 30d" in result.stderr
    assert all(path.exists() for path in paths.values())


def test_nothing_goes_unless_it_is_said_what(place: Workplace) -> None:
    fill(place)
    result = place.run("cache", "prune")
    assert result.exit_code == 2
    assert "give --older-than 30d" in result.stderr


def test_a_link_is_removed_and_not_what_it_leads_to(place: Workplace) -> None:
    fill(place)
    outside = place.folder / "mine"
    outside.mkdir()
    (outside / "file").write_text("dear to me")
    (place.cache / "store" / "audit-link").symlink_to(outside)
    assert place.run("cache", "prune", "--older-than", "0h").exit_code == 0
    assert (outside / "file").read_text() == "dear to me"
    assert entries(place.cache) == []


def test_what_a_living_run_is_writing_stays(place: Workplace) -> None:
    unfinished = place.cache / "store" / ".audit-1.0123abcd"
    unfinished.mkdir(parents=True)
    assert place.run("cache", "prune", "--older-than", "0h").exit_code == 0
    assert unfinished.exists()
