"""Reports are named by run where one would replace that of an export that stands; and Ctrl-C after
promotion ends nothing that is done."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from safeedit.export import interrupts
from safeedit.records import RunRecord
from safeedit.report import FILES
from safeedit.report.files import write_files
from safeedit.running.audits import Audits
from safeedit.workflows.verification import verify
from tests.road import SMALL_DRIFT, Workplace

FAILING = [{**SMALL_DRIFT, "max": 0.0}]
AGAIN: dict[str, Any] = {"dir": "out/trial", "overwrite": True}


def reports(place: Workplace) -> dict[str, RunRecord]:
    """Folder within that of the reports -> the record in it."""
    folder = place.folder / "out" / "trial.report"
    return {
        path.parent.relative_to(folder).as_posix(): RunRecord.model_validate_json(path.read_text())
        for path in sorted(folder.rglob("report.json"))
    }


def test_a_run_that_exports_nothing_leaves_the_report_of_the_standing_export(
    place: Workplace,
) -> None:
    assert place.run("apply", place.policy()).exit_code == 0
    first = place.report
    result = place.run("apply", place.policy(gates=FAILING, export=AGAIN))
    assert result.exit_code == 1
    found = reports(place)
    assert found.pop(".") == first
    ((name, second),) = found.items()
    assert (second.run_id, second.export) == (name, None)
    assert f"{name}{os.sep}report.html" in result.stderr
    assert {path.name for path in (place.target.with_name("trial.report") / name).iterdir()} == set(
        FILES
    )


def test_a_run_that_replaces_the_export_replaces_its_report(place: Workplace) -> None:
    assert place.run("apply", place.policy()).exit_code == 0
    assert place.run("apply", place.policy(seed=1, export=AGAIN)).exit_code == 0
    assert {name: record.seed for name, record in reports(place).items()} == {".": 1}


def test_without_a_standing_export_the_report_lies_where_it_is_said_to(place: Workplace) -> None:
    for _ in range(2):
        assert place.run("apply", place.policy(gates=FAILING)).exit_code == 1
    assert list(reports(place)) == ["."]


def test_of_two_runs_into_one_export_the_losers_report_does_not_land_over_the_winners(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, winners = Audits.measure_edited, []

    def lose(*arguments: Any) -> Any:
        if not winners:
            winners.append(None)
            result = place.run("apply", place.policy(seed=1))
            assert result.exit_code == 0, result.stderr
        return audit(*arguments)

    monkeypatch.setattr(Audits, "measure_edited", lose)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "exists" in result.stderr
    found = reports(place)
    assert (found["."].seed, found.pop(".").status) == (1, "pass")
    ((_, loser),) = found.items()
    assert (loser.seed, loser.export, loser.exit_code) == (0, None, 3)


def test_two_runs_of_one_second_have_two_names(place: Workplace) -> None:
    names = set()
    for _ in range(3):
        assert place.run("apply", place.policy(gates=FAILING)).exit_code == 1
        names.add(place.report.run_id)
    assert len(names) == 3


def test_a_chosen_folder_keeps_the_report_of_an_export_that_stands(place: Workplace) -> None:
    chosen = place.folder / "reports"
    assert place.run("apply", place.policy(), "--report", chosen).exit_code == 0
    other = place.policy(gates=FAILING, export={"dir": "out/other"})
    assert place.run("apply", other, "--report", chosen).exit_code == 1
    assert RunRecord.model_validate_json((chosen / "report.json").read_text()).export is not None
    assert len(list(chosen.glob("*/report.json"))) == 1
    place.target.rename(place.folder / "moved")  # it stands no more
    assert place.run("apply", other, "--report", chosen).exit_code == 1
    assert RunRecord.model_validate_json((chosen / "report.json").read_text()).export is None


def test_what_dead_runs_left_in_the_folder_of_reports_is_removed_by_the_next(
    tmp_path: Path,
) -> None:
    dead, living = tmp_path / ".safeedit-01.partial", tmp_path / ".safeedit-45.partial"
    bystander = tmp_path / ".report.md"
    for path in (dead, living, bystander):
        path.write_text("")
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write_files({"report.md": "text"}, tmp_path)
    os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *sorted([bystander.name, living.name]), "report.md"
    ]  # fmt: skip
    assert (tmp_path / "report.md").read_text() == "text"


# Ctrl-C ---------------------------------------------------------------------------------


def test_interrupts_are_held_from_promotion_to_the_end_of_the_outermost() -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupts.hold()  # outside: without effect
    assert signal.getsignal(signal.SIGINT) is before
    with interrupts.until_done():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        with interrupts.until_done():
            interrupts.hold()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.noted()
    assert signal.getsignal(signal.SIGINT) is before
    with interrupts.until_done():
        assert not interrupts.noted()


@pytest.mark.parametrize("moment", ["naming", "reports", "screen"])
def test_ctrl_c_after_promotion_ends_nothing_and_is_told(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def then_interrupt(module: str, name: str) -> None:
        import importlib

        owner = importlib.import_module(module)
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    match moment:
        case "naming":
            then_interrupt("safeedit.export.staging", "rename_new")
        case "reports":
            then_interrupt("safeedit.running.reports", "write_all")
        case "screen":
            then_interrupt("safeedit.report.terminal", "render")
    result = place.run("apply", place.policy())
    assert result.exit_code == 0, result.stderr
    assert "interrupted too late: the export was complete by then and stands" in result.stderr
    assert verify(place.target) == []
    assert reports(place)["."].export is not None


def test_ctrl_c_before_promotion_still_ends_the_run(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("safeedit.export.staging.settle", press)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert not place.target.exists()
    assert place.unfinished() == []


ENDING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import atexit, time
import safeedit.cli.main as cli

def last():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)

atexit.register(last)
sys.argv = ["safeedit", "list", "policies"]
cli.main()
"""


def test_ctrl_c_while_the_interpreter_ends_changes_no_exit_code() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
