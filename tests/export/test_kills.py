"""At whatever file operation a run ends, what stands is the old export, the new one or none, whole;
and the next run succeeds and clears up. By kill, by a full disk, by Ctrl-C.

A few operations of each kind are tried here, in one program that forks
(:mod:`tests.export.killing`); ``make hostile`` tries every one.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.export import killing

ROOT = Path(__file__).parents[2]
SCENARIOS = ("new", "overwritten", "in two steps")
HOWS = tuple(killing.HOWS)


def ends(folder: Path, how: str, scenario: str, first: int, step: int) -> list[dict[str, Any]]:
    """What was left after each run that ended at operation ``first``, ``first + step``, ..."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    numbers = [str(first), str(step)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.killing", str(folder), how, scenario, *numbers],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def judged(told: list[dict[str, Any]], how: str, scenario: str) -> Iterator[str]:
    """What is not as it should be, in words."""
    old = "nothing" if scenario == "new" else 1
    for end in told:
        place = f"{how}, {scenario}, operation {end['at']}"
        after, then = end["after"], end["then"]
        # Between two steps the old one has a hidden name, from which the next run takes it back.
        said = how == "killed" or (how == "starved" and "under a hidden name" in end["stderr"])
        aside = scenario == "in two steps" and after["stands"] == "nothing" and said
        if after["stands"] not in (old, 2) and not aside:
            yield f"{place}: {after['stands']} stands"
        if after["problems"]:
            yield f"{place}: what stands is not whole: {after['problems'][0]}"
        if (end["next"], then["stands"], then["problems"], then["left"]) != (0, 3, [], []):
            yield f"{place}: the next run exits {end['next']} and leaves {then}"
        if then["report"] != 3:
            yield f"{place}: the report beside the next export is of {then['report']}"
        if how == "killed":
            continue
        exported = after["stands"] == 2
        if "unexpected" in end["stderr"]:
            yield f"{place}: {end['stderr']}"
        if how == "interrupted" and end["code"] != (0 if exported else 3):
            yield f"{place}: exit {end['code']}, and {after['stands']} stands"
        if how == "starved" and end["code"] not in ((0, 3) if exported else (3,)):
            yield f"{place}: exit {end['code']}, and {after['stands']} stands"
        if end["code"] == 3 and not end["stderr"].strip():
            yield f"{place}: says nothing"
        if after["left"] and how == "interrupted":
            yield f"{place}: leaves {after['left']}"


@pytest.mark.slow
@pytest.mark.parametrize(("how", "scenario"), list(zip(HOWS, SCENARIOS, strict=True)))
def test_wherever_a_run_ends_what_stands_is_whole_and_the_next_run_works(
    tmp_path: Path, how: str, scenario: str
) -> None:
    told = ends(tmp_path, how, scenario, first=5, step=23)
    assert len(told) > 4
    assert told[-1]["over"]  # the control: the last ran to its end
    assert (told[-1]["code"], told[-1]["after"]["stands"]) == (0, 2)
    assert list(judged(told, how, scenario)) == []


@pytest.mark.hostile
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("how", HOWS)
def test_at_every_file_operation_what_stands_is_whole_and_the_next_run_works(
    tmp_path: Path, how: str, scenario: str
) -> None:
    told = ends(tmp_path, how, scenario, first=1, step=1)
    sys.stdout.write(f"{how}, {scenario}: {len(told)} ends tried\n")
    assert list(judged(told, how, scenario)) == []


@pytest.mark.hostile
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_on_a_disk_of_any_size_a_run_exports_whole_or_says_that_it_is_full(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    outcomes = []
    for kilobytes in range(64, 400, 12):
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(volume)], check=False
        )
        if mounted.returncode:
            pytest.skip("no disk can be mounted here")
        try:
            code, stderr, whole = killing.apply_on(volume / "out", tmp_path / "work")
        finally:
            subprocess.run(["umount", str(volume)], check=True)
        assert "unexpected" not in stderr, stderr
        assert code in (0, 3), stderr
        # The last to be written are the reports; without them the export stands, and that is said.
        assert whole == (code == 0 or "the export itself is complete" in stderr)
        if code:
            assert os.strerror(errno.ENOSPC) in stderr or "are free" in stderr
        outcomes.append(code)
    assert {0, 3} == set(outcomes)
