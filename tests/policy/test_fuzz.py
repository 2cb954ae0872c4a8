"""Whatever a file holds, a policy loads or a PolicyError says why not."""

from __future__ import annotations

import os
import time
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
SETTINGS = settings(
    derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


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


@pytest.mark.hostile
@pytest.mark.timeout(1200)
@settings(SETTINGS, max_examples=20_000)
@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.lists(PIECES, max_size=4))
def test_thousands_of_slips_are_read_or_refused(
    tmp_path: Path, at: int, gone: int, put: list[str]
) -> None:
    text = GOOD[:at] + "".join(put) + GOOD[at + gone :]
    loads_or_refuses(tmp_path / "a.yaml", text.encode())


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
HUGE = {
    "deep list": "[" * 300_000, "deep mapping": "{a: " * 100_000, "deep dashes": "- " * 200_000,
    "questions": "? " * 200_000, "many keys": "".join(f"k{n}: b\n" for n in range(60_000)),
    "aliases of aliases": BOMB, "long word": "name: " + "x" * 900_000,
    "long number": "seed: " + "9" * 900_000, "brackets": "[]" * 400_000,
    "percents": "gates: [{metric: a.b, max_increase: '" + "9" * 500_000 + "'}]",
    "layers": "edits: [{use: rome, layers: '" + "9" * 500_000 + "-'}]",
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HUGE)
def test_files_made_to_take_long_are_refused_soon(tmp_path: Path, kind: str) -> None:
    before = time.process_time()
    loads_or_refuses(tmp_path / "a.yaml", HUGE[kind].encode())
    assert time.process_time() - before < 10


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/maps", None])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, target: str | None) -> None:
    path = tmp_path / "a.yaml"
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(PolicyError, match="can't be read"):
        load_policy(path)


@pytest.mark.parametrize("depth", [20, 39, 41, 200, 400])
def test_options_of_any_depth_are_read_or_refused(tmp_path: Path, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    loads_or_refuses(tmp_path / "a.yaml", f"{GOOD}\naudits: [{{use: x, y: {nested}}}]\n".encode())


VALUES = ["null", "[]", "{}", "-1", "x", "true", ".nan", "''", "[1]", "{a: b}", "1e400", "9" * 500]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("line", [line for line in GOOD.splitlines() if ":" in line])
def test_any_value_in_any_place_is_read_or_refused(tmp_path: Path, line: str, value: str) -> None:
    changed = f"{line[: line.index(':')]}: {value}"
    loads_or_refuses(tmp_path / "a.yaml", GOOD.replace(line, changed).encode())
