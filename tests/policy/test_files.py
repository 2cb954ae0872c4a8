"""Files that a user names: regular ones only, to a limit, and never a wait."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from safeedit.policy.files import (
    NotRegularError,
    TooLargeError,
    check_regular,
    open_regular,
    read_json,
    read_regular,
)

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a": 1}')
    return path


def test_a_regular_file_is_read_whole(file: Path) -> None:
    check_regular(file)
    assert read_regular(file) == read_regular(str(file), limit=8) == b'{"a": 1}'
    assert read_json(file) == {"a": 1}
    with open_regular(file) as opened:
        assert opened.read() == b'{"a": 1}'


def test_a_link_counts_as_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_regular(link) == b'{"a": 1}'
    out = tmp_path / "out"
    out.symlink_to("/dev/zero")
    with pytest.raises(NotRegularError, match="a device"):
        read_regular(out)


def test_a_file_over_the_limit_is_not_read(file: Path) -> None:
    with pytest.raises(TooLargeError, match="7 bytes"):
        read_regular(file, limit=7)
    with file.open("wb") as opened:
        opened.truncate(2 << 20)
    with pytest.raises(TooLargeError, match="1 MiB"):
        read_regular(file, limit=1 << 20)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (read_regular, open_regular, check_regular, read_json):
        with pytest.raises(NotRegularError, match="a pipe"):
            read(pipe)


def test_a_pipe_that_somebody_writes_into_is_refused_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_WRONLY)), daemon=True)
    writer.start()
    with pytest.raises(NotRegularError, match="a pipe"):
        read_regular(pipe)
    writer.join(timeout=5)


def test_folders_sockets_and_devices_are_named_as_what_they_are(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        for path, kind in (
            (tmp_path, "a folder"),
            (tmp_path / "s", "a socket"),
            (Path("/dev/null"), "a device"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(NotRegularError, match=kind):
                read_regular(path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_files_of_the_system_are_none_even_where_they_say_so(tmp_path: Path) -> None:
    link = tmp_path / "environ"
    link.symlink_to("/proc/self/environ")
    for path in ("/proc/self/environ", "/proc/self/mem", "/proc/kmsg", link):
        with pytest.raises(NotRegularError, match="the running system"):
            read_regular(path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_file_reached_through_proc_is_still_a_file(file: Path) -> None:
    with file.open("rb") as opened:
        assert read_regular(f"/proc/self/fd/{opened.fileno()}") == b'{"a": 1}'


def test_what_is_not_there_is_an_error_of_the_usual_kind(tmp_path: Path) -> None:
    for name in ("absent", "a\0b", "x" * 300, "folder/" * 900):
        for read in (read_regular, check_regular):
            with pytest.raises(OSError, match=r"\w"):
                read(tmp_path / name)


def test_json_that_is_nested_too_deeply_is_a_value_error(file: Path) -> None:
    file.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="too deeply"):
        read_json(file)
    file.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ValueError, match="too deeply"):
        read_json(file)
    file.write_text("[" * 100 + "]" * 100)
    assert read_json(file)
