"""Packed data files: read like the files in them, and never unpacked without end."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pyarrow
import pytest

from safeedit.data import unpacking
from tests.data.sources import jsonl, load, refused, rows


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


PACK = {".gz": gzip.compress, ".zst": zstd}


def packed(folder: Path, suffix: str, content: bytes, name: str = "a.jsonl") -> Path:
    path = folder / (name + suffix)
    path.write_bytes(PACK[suffix](content))
    return path


@pytest.mark.parametrize("suffix", [*PACK])
def test_a_packed_file_reads_like_the_file_in_it(tmp_path: Path, suffix: str) -> None:
    plain = jsonl(tmp_path / "a.jsonl", rows())
    assert load(packed(tmp_path, suffix, plain.read_bytes())).digest == load(plain).digest
    table = b"prompt;answer\na?;b\n"
    assert len(load(packed(tmp_path, suffix, table, "a.csv"))) == 1


@pytest.mark.parametrize("suffix", [*PACK])
def test_files_packed_one_after_another_are_read_whole(tmp_path: Path, suffix: str) -> None:
    plain = jsonl(tmp_path / "a.jsonl", rows()).read_bytes()
    lines = plain.splitlines(keepends=True)
    path = tmp_path / f"b.jsonl{suffix}"
    path.write_bytes(b"".join(PACK[suffix](line) for line in lines))
    assert len(load(path)) == len(lines)


@pytest.mark.parametrize("suffix", [*PACK])
def test_a_file_that_is_packed_under_another_name_is_read(tmp_path: Path, suffix: str) -> None:
    plain = jsonl(tmp_path / "a.jsonl", rows())
    plain.write_bytes(PACK[suffix](plain.read_bytes()))
    assert len(load(plain)) == 4


@pytest.mark.parametrize("suffix", [*PACK])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = packed(tmp_path, suffix, os.urandom(5000))
    path.write_bytes(path.read_bytes()[:-9])
    assert "damaged or cut short" in refused(path).message


@pytest.mark.parametrize("suffix", [*PACK])
def test_a_small_file_that_unpacks_to_much_is_refused_soon(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "ALWAYS", 1 << 20)
    path = packed(tmp_path, suffix, b" " * (40 << 20))
    before = time.process_time()
    assert "unpacks to more than" in refused(path).message
    assert time.process_time() - before < 5


def test_a_name_that_promises_packing_is_held_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b'{"prompt": "a?"}\n')
    assert "is no gzip file" in refused(path).message


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.xlsx", "a.jsonl.bz2", "a.jsonl.xz"])
def test_other_packing_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 something")
    assert refused(path).remedy


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["/dev/zero", "/proc/self/environ", "pipe"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    if name == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(name)
    assert "can't be read" in refused(path).message
