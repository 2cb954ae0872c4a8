"""The cache folder, digests of files, and the atomic write."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safeedit import cache
from safeedit.cache import PRIVATE, cache_dir, write_atomically

pytestmark = pytest.mark.usefixtures("own_cache")


class TestTheDigestOfAFile:
    def settled(self, path: Path, content: bytes) -> Path:
        """A file that was last written an hour ago."""
        path.write_bytes(content)
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 3_600 * 10**9))
        return path

    def test_is_remembered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.settled(tmp_path / "file", b"weights")
        first = cache.file_sha256(path)
        monkeypatch.setattr(hashlib, "file_digest", pytest.fail)
        assert first == cache.file_sha256(path) == hashlib.sha256(b"weights").hexdigest()

    def test_is_not_remembered_of_a_file_that_was_just_written(self, tmp_path: Path) -> None:
        path, now = tmp_path / "file", time.time_ns()
        for content in (b"weights", b"WEIGHTS", b"weights"):
            path.write_bytes(content)
            os.utime(path, ns=(now, now))  # all within one tick of the clock
            assert cache.file_sha256(path) == hashlib.sha256(content).hexdigest()

    def test_is_read_again_where_memory_is_damaged(self, tmp_path: Path) -> None:
        path = self.settled(tmp_path / "file", b"weights")
        first = cache.file_sha256(path)
        for remembered in (cache_dir() / "digests").iterdir():
            remembered.write_text("half a di")
        assert cache.file_sha256(path) == first

    def test_needs_no_cache_that_can_be_written(self, tmp_path: Path) -> None:
        path = self.settled(tmp_path / "file", b"weights")
        (cache_dir() / "digests").write_text("a file where the folder should be")
        assert cache.file_sha256(path) == hashlib.sha256(b"weights").hexdigest()


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


class TestAnAtomicWrite:
    def test_leaves_the_content_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "file"
        path.parent.mkdir()
        for content in (b"first", b"second, and longer", b""):
            write_atomically(path, content)
            assert path.read_bytes() == content
            assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
    def test_has_the_bits_asked_for_under_any_umask(self, umask: int, tmp_path: Path) -> None:
        before = os.umask(umask)
        try:
            write_atomically(tmp_path / "private", b"", PRIVATE)
            write_atomically(tmp_path / "open", b"", 0o644)
            write_atomically(tmp_path / "ordinary", b"")
        finally:
            os.umask(before)
        assert permissions(tmp_path / "private") == 0o600
        assert permissions(tmp_path / "open") == 0o644
        assert permissions(tmp_path / "ordinary") == 0o666 & ~umask

    def test_replaces_a_file_that_others_could_read_by_one_they_can_not(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"open")
        path.chmod(0o644)
        write_atomically(path, b"secret", PRIVATE)
        assert permissions(path) == 0o600

    def test_that_fails_leaves_the_file_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"before")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"after")
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]

    def test_never_replaces_where_it_may_not(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        write_atomically(path, b"first", overwrite=False)
        with pytest.raises(FileExistsError):
            write_atomically(path, b"second", overwrite=False)
        assert path.read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [path]

    def test_never_replaces_where_there_are_no_links_either(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_links(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
        path = tmp_path / "key"
        write_atomically(path, b"first", overwrite=False)
        with pytest.raises(FileExistsError):
            write_atomically(path, b"second", overwrite=False)
        assert path.read_bytes() == b"first"

    def test_takes_the_longest_name_there_is(self, tmp_path: Path) -> None:
        path = tmp_path / ("n" * 255)
        write_atomically(path, b"long")
        assert path.read_bytes() == b"long"

    def test_does_not_write_through_a_link(self, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.write_bytes(b"not ours")
        (tmp_path / "file").symlink_to(other)
        write_atomically(tmp_path / "file", b"ours")
        assert other.read_bytes() == b"not ours"
        assert not (tmp_path / "file").is_symlink()

    def test_clears_away_what_a_killed_one_left(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; from pathlib import Path; from safeedit import cache\n"
            "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
            "cache.write_atomically(Path(sys.argv[1]), b'half')\n"
        )
        path = tmp_path / "file"
        path.write_bytes(b"before")
        killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"before"
        assert len(list(tmp_path.iterdir())) == 2
        write_atomically(tmp_path / "another", b"whole")
        assert {p.name for p in tmp_path.iterdir()} == {"file", "another"}

    def test_leaves_the_unfinished_file_of_a_living_one(self, tmp_path: Path) -> None:
        theirs = tmp_path / f"{cache.PARTIAL}0123.partial"
        with theirs.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            write_atomically(tmp_path / "ours", b"whole")
            assert theirs.exists()
        write_atomically(tmp_path / "ours", b"whole")
        assert not theirs.exists(), "the control: once it is dead it goes"
