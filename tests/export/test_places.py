"""Outputs go where the system can hold them, and never into a checkpoint; known when planning."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from safeedit.errors import ExportError, UsageError
from safeedit.export import places
from safeedit.export.places import (
    check_apart,
    check_folder,
    check_output,
    check_room,
    usable,
    within,
)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("out\0put", "NUL"),
        ("~nobody-of-that-name/out", "no home folder for '~nobody-of-that-name'"),
        ("out/" + "n" * 256, "has 256 bytes"),
        ("out/" + "n" * 250, "has 250 bytes"),  # fits, but not with what is staged beside it
        ("n" * 256 + "/out", "has 256 bytes"),
        ("out/" + "é" * 128, "has 256 bytes"),
        ("/".join(["n" * 200] * 30), "leave room"),
        ("out/\udcff", "no text"),
    ],
)
def test_a_path_that_the_system_can_not_hold_is_refused_with_a_remedy(
    path: str, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        usable(path, "export.dir")
    assert caught.value.remedy
    assert caught.value.field == "export.dir"


@pytest.mark.parametrize("path", ["out", "out/" + "n" * 230, "out/" + "é" * 110, "a b/ü", "./~x"])
def test_a_path_that_it_can_hold_is_taken(path: str, tmp_path: Path) -> None:
    assert usable(tmp_path / path) == tmp_path / path.removeprefix("./")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert usable("~/out") == tmp_path / "out"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "Models" / "base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "manifest.sha256").write_text("")
    return folder


def itself(folder: Path, tmp_path: Path) -> Path:
    return folder


def below(folder: Path, tmp_path: Path) -> Path:
    return folder / "evidence" / "new" / "deeper"


def through_a_link(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(folder)
    return tmp_path / "link" / "new"


def through_dots(folder: Path, tmp_path: Path) -> Path:
    return tmp_path / "elsewhere" / ".." / folder.relative_to(tmp_path) / "new"


def through_a_linked_parent(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "parent").symlink_to(folder.parent)
    return tmp_path / "parent" / folder.name


SPELLINGS = [itself, below, through_a_link, through_dots, through_a_linked_parent]


@pytest.mark.parametrize("spelt", SPELLINGS)
@pytest.mark.parametrize("kind", ["model", "export"])
def test_nothing_is_written_into_a_checkpoint_however_the_path_is_spelt(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    spelt: Callable[[Path, Path], Path],
) -> None:
    folder: Path = request.getfixturevalue(kind)
    with pytest.raises(UsageError, match="would be written into") as caught:
        check_output(spelt(folder, tmp_path), "--report", "the report")
    assert caught.value.field == "--report"
    assert "outside" in caught.value.remedy


@pytest.mark.parametrize("spelt", SPELLINGS)
def test_what_does_not_exist_yet_is_kept_apart_too(
    tmp_path: Path, spelt: Callable[[Path, Path], Path]
) -> None:
    with pytest.raises(UsageError, match="written into the export"):
        check_apart(
            spelt(tmp_path / "out" / "trial", tmp_path), tmp_path / "out/trial", name="the export"
        )


def test_beside_a_checkpoint_and_above_it_there_is_room(
    tmp_path: Path, model: Path, export: Path
) -> None:
    for path in (tmp_path, model.parent, model.with_name("base.report"), tmp_path / "export2"):
        check_output(path)
        for other in (model, export):
            check_apart(path, other)


@pytest.mark.parametrize("other", ["TRIAL", "Trial/below", "tri\u0061l", "TRIAL/deeper/below"])
def test_names_that_differ_in_case_alone_count_as_one(tmp_path: Path, other: str) -> None:
    assert within(tmp_path / "out" / other, tmp_path / "out" / "trial")


def test_names_that_differ_in_how_an_accent_is_written_count_as_one(tmp_path: Path) -> None:
    assert within(tmp_path / "cafe\u0301" / "x", tmp_path / "caf\u00e9")


def test_two_folders_that_the_disk_tells_apart_are_two(tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    try:
        (tmp_path / "TRIAL").mkdir()
    except FileExistsError:
        pytest.skip("this file system tells no case apart")
    assert not within(tmp_path / "TRIAL" / "x", tmp_path / "trial")


def test_a_folder_to_be_filled_must_be_one_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_folder(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="is a file"):
            check_folder(path, "--report", "the report")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="may not be written"):
        check_folder(tmp_path / "new")


def test_more_than_is_free_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda path: 10**9)
    check_room(tmp_path / "out", 10**9)
    with pytest.raises(ExportError, match=r"about 1\.50 GB and 1\.00 GB are free") as caught:
        check_room(tmp_path / "out", 15 * 10**8)
    assert "free some space" in caught.value.remedy


def test_what_is_free_is_asked_of_the_disk_where_the_export_is_to_be(tmp_path: Path) -> None:
    assert places.free_bytes(tmp_path / "not" / "there" / "yet") > 0
