"""What a log says of long work: which stage of how many, that it begins and ends, how far it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from safeedit.cli.progress import Announcer
from tests.road import NUDGE, Workplace


class Watch:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watch() -> Watch:
    return Watch()


def announcer(said: list[str], watch: Watch, **options: bool) -> Announcer:
    return Announcer(Console(file=io.StringIO()), said.append, clock=watch, **options)


def slowly(watch: Watch, count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        watch.now += seconds
        yield number


def test_a_stage_says_its_number_its_begin_its_end_and_what_happens_within(
    said: list[str], watch: Watch
) -> None:
    shown = announcer(said, watch)
    with shown.stage("audit before", 2, 7):
        assert list(shown.progress(slowly(watch, 3, 1.5), "asking", 3)) == [0, 1, 2]
    assert said == [
        "stage 2 of 7: audit before ...",
        "  asking ...",
        "  asking: 3 of 3 in 4.5 s",
        "stage 2 of 7: audit before: done in 4.5 s",
    ]


def test_what_breaks_off_is_not_said_to_be_done(said: list[str], watch: Watch) -> None:
    shown = announcer(said, watch)
    with pytest.raises(KeyError), shown.stage("edit a: fit", 3, 7):
        for number in shown.progress(slowly(watch, 5, 1.0), "fitting", 5):
            if number == 2:
                raise KeyError
    assert said[1:] == [
        "  fitting ...",
        "  fitting: 2 of 5 in 3.0 s",
        "stage 3 of 7: edit a: fit: broke off after 3.0 s",
    ]


def test_a_loop_that_ends_early_says_how_far_it_came(said: list[str], watch: Watch) -> None:
    shown = announcer(said, watch)
    doses = shown.progress((0.5, 1.0, 2.0), "trying doses")
    assert next(doses) == 0.5
    assert next(doses) == 1.0
    doses.close()  # type: ignore[attr-defined]
    assert said == ["trying doses ...", "trying doses: 1 of 3 in 0.0 s"]


def test_what_takes_long_says_how_far_it_is_once_a_minute(said: list[str], watch: Watch) -> None:
    shown = announcer(said, watch)
    list(shown.progress(slowly(watch, 10, 25.0), "generating", 10))
    assert said == [
        "generating ...",
        "generating: 3 of 10 after 75 s",
        "generating: 6 of 10 after 150 s",
        "generating: 9 of 10 after 225 s",
        "generating: 10 of 10 in 250.0 s",
    ]


def test_without_a_known_total_what_was_done_is_counted(said: list[str], watch: Watch) -> None:
    list(announcer(said, watch).progress(iter("ab"), "reading"))
    assert said[-1] == "reading: 2 in 0.0 s"


def test_quiet_says_nothing(said: list[str], watch: Watch) -> None:
    shown = announcer(said, watch, quiet=True)
    with shown.stage("reload", 5, 7):
        assert list(shown.progress([1, 2], "asking")) == [1, 2]
    assert said == []


def test_on_a_terminal_bars_are_drawn_and_no_lines(said: list[str], watch: Watch) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    shown = Announcer(console, said.append, clock=watch)
    with shown.bars, shown.stage("audit before", 2, 7):
        for _ in shown.progress([1, 2, 3], "asking"):
            shown.bars.refresh()
    assert said == []
    assert "stage 2 of 7: audit before" in written.getvalue()
    assert "asking" in written.getvalue()
    assert "1/3" in written.getvalue()


def test_the_log_of_a_run_numbers_every_stage_of_its_plan_in_order(place: Workplace) -> None:
    edits = [
        {**NUDGE, "id": "one"},
        {**NUDGE, "id": "two", "control": False},
    ]  # fmt: skip
    result = place.run("apply", place.policy(edits=edits))
    assert result.exit_code == 0, result.stderr
    line = r"^stage (\d+) of (\d+): (.*?)(?: \.\.\.|: done in .* s)$"
    stages = re.findall(line, result.stderr, re.MULTILINE)
    names = ["open model", "audit before", "edit one: fit", "edit one: dose", "edit one: control",
             "edit one: gates so far", "edit two: fit", "edit two: dose", "stage", "reload",
             "audit after"]  # fmt: skip
    assert stages == [
        (str(number), str(len(names)), name)
        for number, name in enumerate(names, 1)
        for _ in ("begins", "ends")
    ]
