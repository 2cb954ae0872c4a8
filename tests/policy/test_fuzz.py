"""Whatever a file holds, a policy loads or a PolicyError says why not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeedit.errors import PolicyError
from safeedit.policy import load_policy
from tests.policy.test_loading import GOOD

PIECES = st.sampled_from(
    ["{", "}", "[", "]", ": ", "- ", "&a ", "*a", "!!x ", "~", "'", "\n", "1e9"]
)
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def loads_or_refuses(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with suppress(PolicyError):
        load_policy(path)


@SETTINGS
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes) -> None:
    loads_or_refuses(tmp_path / "a.yaml", raw)


@SETTINGS
@given(st.integers(0, len(GOOD)), st.integers(0, 12), PIECES)
def test_any_slip_of_the_pen_is_read_or_refused(
    tmp_path: Path, at: int, gone: int, put: str
) -> None:
    loads_or_refuses(tmp_path / "a.yaml", (GOOD[:at] + put + GOOD[at + gone :]).encode())


VALUES = ["null", "[]", "{}", "-1", "x", "true", ".nan", "''", "[1]", "{a: b}", "1e400", "9" * 500]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("line", [line for line in GOOD.splitlines() if ":" in line])
def test_any_value_in_any_place_is_read_or_refused(tmp_path: Path, line: str, value: str) -> None:
    changed = f"{line[: line.index(':')]}: {value}"
    loads_or_refuses(tmp_path / "a.yaml", GOOD.replace(line, changed).encode())
