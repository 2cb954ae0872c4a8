"""``--events FILE``: the same as JSON lines, for programs."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from safeedit.cli.events import EventFile
from safeedit.cli.progress import Announcer
from tests.road import ANSWERS, LEAKAGE, NUDGE, SUBJECTS, Workplace


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_tells_its_stages_its_progress_and_its_verdict(place: Workplace) -> None:
    path = place.folder / "events.jsonl"
    result = place.run("apply", place.policy(), "--events", path)
    assert result.exit_code == 0, result.stderr
    found = events(path)
    assert found[0]["event"] == "run begins"
    assert found[0]["format"] == "safeedit-events"
    names = [stage["stage"] for stage in found[0]["stages"]]
    assert names[0] == "open model"
    assert names[-1] == "judge"
    for event in ("stage begins", "stage ends"):
        assert [each["stage"] for each in found if each["event"] == event] == names
    ends = {each["stage"]: each for each in found if each["event"] == "stage ends"}
    assert ends["audit after"]["figures"].keys() == {"drift.distance"}
    assert ends["open model"]["figures"]["parameters"] == 48864
    assert all(each["done"] and each["seconds"] >= 0 for each in ends.values())
    assert found[-1]["event"] == "run ends"
    assert (found[-1]["status"], found[-1]["exit_code"]) == ("pass", 0)
    assert found[0]["run_id"] == place.report.run_id
    assert all(datetime.fromisoformat(each["time"]).tzinfo for each in found)


def test_a_second_run_is_added_and_what_it_found_done_is_counted(place: Workplace) -> None:
    path = place.folder / "events.jsonl"
    policy = place.policy()
    assert place.run("apply", policy, "--events", path).exit_code == 0
    with path.open("a") as file:
        file.write('{"event": "prog')  # as a killed run leaves it
    assert place.run("audit", policy, "--events", path).exit_code == 0
    lines = path.read_text().splitlines()
    runs = [line for line in lines if line.startswith('{"event": "run begins"')]
    assert len(runs) == 2
    before = [json.loads(line) for line in lines if '"stage ends"' in line][-2]
    assert before["stage"] == "audit before"
    assert before["spared_seconds"] > 0


def test_no_event_holds_a_word_of_what_is_to_be_erased(place: Workplace) -> None:
    path = place.folder / "events.jsonl"
    policy = place.policy(
        audits=[LEAKAGE], gates=[{"metric": "leakage.known_before", "min": 0, "min_n": 1}]
    )
    result = place.run("apply", policy, "--events", path)
    assert result.exit_code == 0, result.stderr
    text = path.read_text()
    assert '"what": "leakage' in text
    assert not [word for word in (*SUBJECTS, *ANSWERS) if json.dumps(word)[1:-1] in text]


def test_what_breaks_off_is_told_with_its_exit_code(place: Workplace) -> None:
    path = place.folder / "events.jsonl"
    result = place.run("apply", place.policy(edits=[{**NUDGE, "use": "meddler"}]), "--events", path)
    assert result.exit_code == 3
    found = events(path)
    assert found[-2]["event"] == "stage ends"
    assert not found[-2]["done"]
    assert found[-1]["event"] == "run broke off"
    assert found[-1]["exit_code"] == 3
    assert "changed the model while proposing" in found[-1]["error"]


@pytest.mark.parametrize("text", ["prompt: mine\n", '{"prompt": "mine"}\n', "\n", "[]\n"])
def test_a_file_of_something_else_is_left_as_it_is(place: Workplace, text: str) -> None:
    path = place.text("mine.jsonl", text)
    result = place.run("apply", place.policy(), "--events", path)
    assert result.exit_code == 2
    assert "holds no events of safeedit" in result.stderr
    assert path.read_text() == text


def test_where_events_can_not_go_is_refused_before_any_work(place: Workplace) -> None:
    policy = place.policy()
    result = place.run("apply", policy, "--events", place.folder / "none" / "events.jsonl")
    assert result.exit_code == 2
    assert "--events" in result.stderr
    assert "remedy: " in result.stderr
    os.mkfifo(place.folder / "pipe")
    assert place.run("apply", policy, "--events", place.folder / "pipe").exit_code == 2
    inside = place.run("apply", policy, "--events", place.folder / "model" / "events.jsonl")
    assert inside.exit_code == 2
    assert not (place.folder / "model" / "events.jsonl").exists()


def test_a_disk_that_fills_up_ends_the_events_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    shown = Announcer(EventFile(tmp_path / "events.jsonl", warned.append))

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    shown.warned("one")
    shown.warned("two")
    assert warned == ["--events: No space left on device; no more events are written"]


def test_progress_is_told_at_most_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "events.jsonl"
    shown = Announcer(EventFile(path, lambda message: None), clock=lambda: now[0])
    for _ in shown.progress(range(40), "asking", 40):
        now[0] += 0.25
    shown.closes(None)
    told = events(path)
    assert [each["done"] for each in told] == [0, *range(4, 41, 4)]
    assert told[-2]["per_second"] == 4.0
    assert told[-2]["seconds_left"] == 1.0
