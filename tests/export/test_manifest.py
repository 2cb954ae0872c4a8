"""The manifest finds every kind of change, and sha256sum agrees with it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from safeedit.errors import ExportError
from safeedit.export.manifest import MANIFEST, UNDO, hash_files, verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / UNDO).write_bytes(b"originals")
    write_manifest(tmp_path)
    return tmp_path


def test_digests_are_those_of_the_files(folder: Path) -> None:
    digests = hash_files(folder)
    assert digests.keys() == {"model.safetensors", "config.json", UNDO}
    assert digests["config.json"] == hashlib.sha256(b"{}").hexdigest()


def test_an_untouched_folder_has_no_problems(folder: Path) -> None:
    assert verify_manifest(folder) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "config.json").write_text("{ }"), "config.json: changed"),
        (lambda f: (f / "config.json").unlink(), "config.json: missing"),
        (lambda f: (f / "evil.py").write_text("import os"), "evil.py: not in the manifest"),
        (lambda f: (f / UNDO).write_bytes(b"other"), f"{UNDO}: changed"),
        (lambda f: (f / "sub").symlink_to(f / "evidence"), "sub: not a plain file"),
        (lambda f: (f / "gone").symlink_to("nowhere"), "gone: not a plain file"),
        (lambda f: (f / MANIFEST).write_text(""), f"{MANIFEST}: empty"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), f"{MANIFEST}: not readable"),
    ],
)
def test_each_kind_of_damage_is_named(
    folder: Path, damage: Callable[[Path], object], problem: str
) -> None:
    damage(folder)
    assert verify_manifest(folder) == [problem]


def test_one_flipped_bit_in_the_weights_is_found(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[3500] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert verify_manifest(folder) == ["model.safetensors: changed"]


def test_the_files_that_undo_the_edit_may_be_withheld(folder: Path) -> None:
    (folder / UNDO).unlink()
    assert verify_manifest(folder) == []


def test_a_folder_without_manifest_is_no_export(tmp_path: Path) -> None:
    (problem,) = verify_manifest(tmp_path)
    assert "no export of safeedit" in problem


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "config.json"])
def test_lines_that_leave_the_folder_or_repeat_a_file_are_problems(folder: Path, name: str) -> None:
    with (folder / MANIFEST).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    (problem,) = verify_manifest(folder)
    assert "not a line of a manifest" in problem


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_checks_it_without_safeedit(folder: Path) -> None:
    command = ["sha256sum", "--strict", "-c", MANIFEST]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
    (folder / "config.json").write_text("{ }")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode != 0


def test_a_disk_that_is_full_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / MANIFEST).symlink_to("/dev/full")
    with pytest.raises(ExportError, match="No space left"):
        write_manifest(tmp_path)


def test_what_is_read_whole_is_no_larger_than_evidence_is(folder: Path) -> None:
    with (folder / MANIFEST).open("wb") as manifest:
        manifest.truncate(1 << 40)  # takes no room
    assert verify_manifest(folder) == [f"{MANIFEST}: not readable"]
