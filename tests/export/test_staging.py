"""Whatever happens while an export is made, its target is absent, old or complete."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from safeedit.errors import ExportError, UsageError
from safeedit.export import staging as module
from safeedit.export.staging import EVIDENCE, Staging, check_target, writing

MAKER = """
import shutil, signal, sys, time
# A test run in the background inherits "ignore".
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from safeedit.export import staging as module

target, moment, overwrite = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "overwrite"
settle, rename, rmtree = module._settle, Path.rename, shutil.rmtree

def halt():
    print("here", flush=True)
    while True:  # a signal that lands just before one long sleep would wait for its end
        time.sleep(0.05)

def settle_then_halt(folder):
    settle(folder)
    halt()

def rename_then_halt(source, goal):
    moved = rename(source, goal)
    if source == target:
        halt()
    return moved

def halt_before_removal(path, **options):
    shutil.rmtree = rmtree
    halt()
    rmtree(path, **options)

if moment == "settled":
    module._settle = settle_then_halt
if moment == "moved aside":
    Path.rename = rename_then_halt
with module.Staging(target, overwrite=overwrite) as staging:
    (staging.path / "evidence").mkdir()
    (staging.path / "first").write_text("new")
    if moment == "half written":
        halt()
    (staging.path / "second").write_text("new")
    if moment == "in place":
        shutil.rmtree = halt_before_removal
    staging.promote()
"""


def start_and_reach(moment: str, target: Path, overwrite: bool) -> subprocess.Popen[str]:
    """A process that makes an export and stops at ``moment``."""
    mode = "overwrite" if overwrite else "new"
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(target), moment, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def finish(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0


def export(target: Path, content: str, *, overwrite: bool = False) -> None:
    with Staging(target, overwrite=overwrite) as staging:
        (staging.path / EVIDENCE).mkdir()
        (staging.path / "first").write_text(content)
        (staging.path / "second").write_text(content)
        staging.promote()


def content(target: Path) -> set[str]:
    return {(target / name).read_text() for name in ("first", "second")}


def test_a_promoted_folder_holds_what_was_staged_and_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    export(tmp_path / "out" / "model", "new")
    assert content(tmp_path / "out" / "model") == {"new"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_without_promotion_nothing_is_left(tmp_path: Path) -> None:
    with Staging(tmp_path / "model") as staging:
        (staging.path / "weights").write_text("unfinished")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_passes_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Staging(tmp_path / "model") as staging:
        (staging.path / "weights").write_text("unfinished")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_before_any_work_and_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    export(target, "old")
    with pytest.raises(ExportError, match="exists") as caught:
        check_target(target)
    assert "overwrite" in caught.value.remedy
    with pytest.raises(ExportError, match="exists"), Staging(target):
        pytest.fail("the folder was entered")
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_target_that_appears_during_the_work_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(ExportError, match="exists"), Staging(target) as staging:
        target.mkdir()
        staging.promote()
    assert list(target.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_overwriting_replaces_an_export_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    export(target, "old")
    (target / "third").write_text("only in the old one")
    export(target, "new", overwrite=True)
    assert content(target) == {"new"}
    assert not (target / "third").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_overwriting_refuses_a_folder_that_is_not_an_export(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="did not export"):
        check_target(target, overwrite=True)
    with pytest.raises(ExportError, match="did not export"):
        export(target, "new", overwrite=True)
    assert (target / "thesis.txt").read_text() == "years of work"


def test_overwriting_refuses_a_file_and_a_link(tmp_path: Path) -> None:
    export(tmp_path / "elsewhere", "old")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(ExportError, match="did not export"):
            check_target(tmp_path / name, overwrite=True)


def test_overwriting_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    export(tmp_path / "model", "new", overwrite=True)
    assert content(tmp_path / "model") == {"new"}


def test_if_the_swap_fails_the_old_export_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    export(target, "old")
    rename = Path.rename

    def fails_into_place(source: Path, goal: Path) -> Path:
        if ".staging-" in source.name:
            raise OSError(errno.EIO, "disk")
        return rename(source, goal)

    monkeypatch.setattr(Path, "rename", fails_into_place)
    with pytest.raises(ExportError, match="could not be written"):
        export(target, "new", overwrite=True)
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["half written", "settled"])
def test_a_killed_process_leaves_no_target_and_the_next_run_clears_up(
    tmp_path: Path, moment: str, how: signal.Signals
) -> None:
    target = tmp_path / "model"
    finish(start_and_reach(moment, target, overwrite=False), how)
    assert not target.exists()
    if how is signal.SIGINT:
        assert list(tmp_path.iterdir()) == []
    export(target, "newer")
    assert content(target) == {"newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize(
    ("moment", "expected"),
    [("half written", "old"), ("settled", "old"), ("moved aside", "old"), ("in place", "new")],
)
def test_a_process_killed_while_overwriting_costs_neither_export(
    tmp_path: Path, moment: str, expected: str, how: signal.Signals
) -> None:
    target = tmp_path / "model"
    export(target, "old")
    finish(start_and_reach(moment, target, overwrite=True), how)
    with Staging(target, overwrite=True):  # what the next run does first: it tidies up
        assert content(target) == {expected}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_folder_of_a_living_process_is_not_cleared_away(tmp_path: Path) -> None:
    target = tmp_path / "model"
    other = start_and_reach("half written", target, overwrite=False)
    try:
        theirs = list(tmp_path.iterdir())
        export(target, "ours")
        assert all((folder / "first").exists() for folder in theirs)
    finally:
        finish(other, signal.SIGKILL)
    assert content(target) == {"ours"}


def test_a_folder_with_a_similar_name_is_not_cleared_away(tmp_path: Path) -> None:
    bystanders = [tmp_path / ".model.staging", tmp_path / ".model2.staging-00", tmp_path / "model2"]
    for folder in bystanders:
        folder.mkdir()
    export(tmp_path / "model", "new")
    assert all(folder.exists() for folder in bystanders)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="part of its path is a file"):
        check_target(tmp_path / "file" / "model")
    with pytest.raises(ExportError), Staging(tmp_path / "file" / "model"):
        pytest.fail("the folder was entered")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ExportError, match="not writable"):
            check_target(tmp_path / "deep" / "model")
    finally:
        tmp_path.chmod(0o700)


def test_an_unwritable_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ExportError, match="not writable") as caught:
        check_target(tmp_path / "deep" / "model")
    assert caught.value.file == str(tmp_path)


def test_checking_a_target_creates_nothing(tmp_path: Path) -> None:
    check_target(tmp_path / "deep" / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_export_is_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with Staging(tmp_path / "model") as staging:
            private = staging.path / "weights"
            private.touch(mode=0o600)
            staging.promote()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750


def test_every_file_is_on_the_disk_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    sync = module._sync
    target = tmp_path / "model"

    def noting(path: Path) -> None:
        synced.append((path.name, target.exists()))
        sync(path)

    monkeypatch.setattr(module, "_sync", noting)
    export(target, "new")
    before = [name for name, promoted in synced if not promoted]
    assert {"first", "second", EVIDENCE} < set(before)
    assert synced[-1] == (tmp_path.name, True)


def test_errors_of_the_system_become_export_errors_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No space left") as caught, writing(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in caught.value.remedy
    with pytest.raises(ExportError, match="No space left") as caught, writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
    assert "free some space" in caught.value.remedy


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError), writing(tmp_path):
        raise UsageError("called wrongly")
    with pytest.raises(SafetensorError), writing(tmp_path):
        raise SafetensorError("a header (os error none)")
