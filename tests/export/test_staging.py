"""Whatever happens while an export is made, its target is absent, old or complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from safeedit.errors import ExportError, UsageError
from safeedit.export import disk
from safeedit.export import staging as module
from safeedit.export.manifest import MANIFEST, RECORD, write_manifest
from safeedit.export.staging import EVIDENCE, Staging, check_target, recover, writing

MAKER = """
import shutil, signal, sys, time
# A test run in the background inherits "ignore".
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from safeedit.export import staging as module
from safeedit.export.manifest import write_manifest

target, moment, overwrite = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "overwrite"
settle, rename, rmtree = module.settle, Path.rename, shutil.rmtree

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
    module.settle = settle_then_halt
if moment == "moved aside":
    Path.rename = rename_then_halt
if moment == "moved aside":
    module.exchange = lambda one, other: False
with module.Staging(target, overwrite=overwrite) as staging:
    (staging.path / "evidence").mkdir()
    (staging.path / "evidence" / "report.json").write_text(
        '{"schema_version": 1, "run_id": "new", "export": null}'
    )
    (staging.path / "first").write_text("new")
    if moment == "half written":
        halt()
    (staging.path / "second").write_text("new")
    write_manifest(staging.path)
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


def export(target: Path, content: str, *more: str, overwrite: bool = False) -> None:
    with Staging(target, overwrite=overwrite) as staging:
        (staging.path / EVIDENCE).mkdir()
        record = {"schema_version": 1, "run_id": content, "export": None}
        (staging.path / RECORD).write_text(json.dumps(record))
        for name in ("first", "second", *more):
            (staging.path / name).write_text(content)
        write_manifest(staging.path)
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


def test_an_interrupt_just_after_the_folder_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def interrupt(path: Path, flags: int) -> int:
        opened.append(path)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "open", interrupt)
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "model"):
        pytest.fail("the folder is not locked yet")
    assert [path.name.startswith(".model.staging-") for path in opened] == [True]
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
    export(target, "old", "third")
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


def unlisted_file(target: Path) -> None:
    (target / EVIDENCE / "thesis.txt").write_text("years of work")


def no_manifest(target: Path) -> None:
    (target / MANIFEST).unlink()


def no_record(target: Path) -> None:
    (target / RECORD).unlink()


def a_record_of_another_tool(target: Path) -> None:
    (target / RECORD).write_text('{"accuracy": 0.9}')
    write_manifest(target)


def a_record_that_is_not_the_manifests(target: Path) -> None:
    (target / RECORD).write_text('{"schema_version": 1, "run_id": "other", "export": null}')


def a_link(target: Path) -> None:
    (target / "first").unlink()
    (target / "first").symlink_to(target / "second")


def a_pipe(target: Path) -> None:
    os.mkfifo(target / "pipe")


@pytest.mark.parametrize(
    "change",
    [
        unlisted_file, no_manifest, no_record, a_record_of_another_tool,
        a_record_that_is_not_the_manifests, a_link, a_pipe,
    ],
)  # fmt: skip
def test_overwriting_refuses_a_folder_that_holds_more_or_less_than_an_export_of_ours(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    target = tmp_path / "model"
    export(target, "old")
    check_target(target, overwrite=True)  # the control: as exported it may be replaced
    change(target)
    before = sorted(path.relative_to(target) for path in target.rglob("*"))
    with pytest.raises(ExportError, match="did not export"):
        check_target(target, overwrite=True)
    with pytest.raises(ExportError, match="did not export"):
        export(target, "new", overwrite=True)
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == before


def test_a_users_folder_called_evidence_makes_no_export(tmp_path: Path) -> None:
    (tmp_path / "case" / EVIDENCE).mkdir(parents=True)
    (tmp_path / "case" / EVIDENCE / "photo.png").write_text("irreplaceable")
    with pytest.raises(ExportError, match="did not export"):
        export(tmp_path / "case", "new", overwrite=True)
    assert (tmp_path / "case" / EVIDENCE / "photo.png").read_text() == "irreplaceable"


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
    monkeypatch.setattr(module, "exchange", lambda one, other: False)
    with pytest.raises(ExportError, match="could not be written"):
        export(target, "new", overwrite=True)
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_if_the_old_export_cannot_be_put_back_it_is_said_where_it_is_and_taken_back_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    export(target, "old")
    rename = Path.rename

    def fails_into_place(source: Path, goal: Path) -> Path:
        if goal == target:
            raise OSError(errno.ENOSPC, "disk")
        return rename(source, goal)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails_into_place)
        patched.setattr(module, "exchange", lambda one, other: False)
        with pytest.raises(ExportError, match="it is whole, under a hidden name") as caught:
            export(target, "new", overwrite=True)
    hidden = Path(str(caught.value.file))
    assert content(hidden) == {"old"}
    assert "takes it back" in caught.value.remedy
    with Staging(target, overwrite=True):
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


def test_where_the_system_can_an_export_is_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    export(target, "old")
    if not disk.exchange(*two_folders(tmp_path / "trial")):
        pytest.skip("this system or file system has no exchange")
    shutil.rmtree(tmp_path / "trial")

    def renamed(source: Path, goal: Path) -> Path:
        raise AssertionError("a rename leaves a moment without an export")

    monkeypatch.setattr(Path, "rename", renamed)
    export(target, "new", overwrite=True)
    assert content(target) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def two_folders(place: Path) -> tuple[Path, Path]:
    (place / "one" / "in one").mkdir(parents=True)
    (place / "other").mkdir()
    return place / "one", place / "other"


def test_where_the_system_has_no_exchange_an_export_is_replaced_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "renameat2", lambda: None)
    assert not disk.exchange(*two_folders(tmp_path / "trial"))
    shutil.rmtree(tmp_path / "trial")
    target = tmp_path / "model"
    export(target, "old")
    export(target, "new", overwrite=True)
    assert content(target) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_name_is_given_only_where_nothing_bears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_folders(tmp_path)
    with pytest.raises(FileExistsError):
        disk.rename_new(one, other)
    monkeypatch.setattr(disk, "renameat2", lambda: None)
    with pytest.raises(FileExistsError):
        disk.rename_new(one, other)
    disk.rename_new(one, tmp_path / "new")
    assert (tmp_path / "new" / "in one").is_dir()


def test_an_export_left_aside_by_a_dead_run_is_taken_back_when_planning(tmp_path: Path) -> None:
    target = tmp_path / "model"
    export(target, "old")
    target.rename(tmp_path / ".model.replaced-0123abcd")
    (tmp_path / ".model.staging-0123abcd").mkdir()
    recover(target)
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_mount_point_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    check_target(volume, overwrite=True)
    monkeypatch.setattr(module, "mounts", lambda: {str(volume)})
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="mount point") as caught:
            check_target(volume, overwrite=overwrite)
        assert "inside it" in caught.value.remedy
    check_target(volume / "model", overwrite=True)


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
    sync = module.sync
    target = tmp_path / "model"

    def noting(path: Path) -> None:
        synced.append((path.name, target.exists()))
        sync(path)

    monkeypatch.setattr(module, "sync", noting)
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


def test_an_error_of_the_system_without_a_number_is_an_export_error_too(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No space left"), writing(tmp_path):
        raise OSError("cannot write delta: I/O error: No space left on device (os error 28)")
    with pytest.raises(ExportError, match="gave no reason"), writing(tmp_path):
        raise OSError("it did not work")


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError), writing(tmp_path):
        raise UsageError("called wrongly")
    with pytest.raises(SafetensorError), writing(tmp_path):
        raise SafetensorError("a header (os error none)")
