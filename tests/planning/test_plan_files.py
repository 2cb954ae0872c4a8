"""Whatever a plan file holds, it is applied as it was written or refused."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.road import Workplace, make_workplace, register

VALUES: list[Any] = [
    None,
    True,
    1,
    1.0,
    -1,
    "x",
    "",
    [],
    {},
    [1],
    {"a": {}},
    "a\0b",
    "\ud800",
    10**40,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield make_workplace(tmp_path_factory.mktemp("plans"))


def refused(place: Workplace, path: Path) -> None:
    result = place.run("apply", path)
    assert result.exit_code in (2, 3), result.output
    assert "unexpected" not in result.stderr
    assert "error: " in result.stderr


def written(place: Workplace) -> dict[str, Any]:
    path = place.folder / "plan.json"
    path.unlink(missing_ok=True)
    assert place.run("plan", place.policy(), "-o", path).exit_code == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("field", ["format", "version", "policy_file", "fingerprint"])
def test_any_value_in_a_field_that_counts_is_refused(place: Workplace, field: str) -> None:
    plan, path = written(place), place.folder / "bad.json"
    for value in VALUES:
        if plan[field] == value and type(plan[field]) is type(value):
            continue
        path.write_text(json.dumps({**plan, field: value}))
        refused(place, path)
    path.write_text(json.dumps({key: value for key, value in plan.items() if key != field}))
    refused(place, path)


@pytest.mark.parametrize("field", ["policy", "model", "data"])
def test_any_value_in_a_fingerprint_is_refused(place: Workplace, field: str) -> None:
    plan, path = written(place), place.folder / "bad.json"
    for value in VALUES:
        path.write_text(json.dumps(plan | {"fingerprint": {**plan["fingerprint"], field: value}}))
        refused(place, path)


def test_plans_that_are_no_json_are_refused(place: Workplace) -> None:
    path, draw = place.folder / "bad.json", random.Random(13)
    whole = json.dumps(written(place)).encode()
    cut = [whole[: draw.randrange(1, len(whole))] for _ in range(10)]
    for raw in (b"", b"[]", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\0", *cut):
        path.write_bytes(raw)
        refused(place, path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device", "system", "folder"])
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_what_is_no_plain_file_is_refused_at_once(
    place: Workplace, tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"it{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "system": "/proc/self/maps"}[kind])
    refused(place, path)
