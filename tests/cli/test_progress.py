"""What is shown of long work, in a log and on a terminal: which stage of how many, how far, how
long still."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from safeedit.cli.live import Picture
from safeedit.cli.progress import Announcer, Course, Lines, Loop
from safeedit.observing import Ended, Figures, Stage
from tests.road import NUDGE, Workplace

ROAD = (
    Stage("open model", 1, 4, 10.0),
    Stage("audit before", 2, 4, 40.0),
    Stage("edit a: fit", 3, 4, 20.0),
    Stage("audit after", 4, 4, 40.0),
)


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


@pytest.fixture
def log(said: list[str], watch: Watch) -> Announcer:
    return Announcer(Lines(said.append), clock=watch)


def slowly(watch: Watch, count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        watch.now += seconds
        yield number


def ended(seconds: float, *, spared: float = 0.0, done: bool = True, **figures: float) -> Ended:
    found: Figures = {**figures}
    return Ended(seconds, spared, found, done)


# In a log -------------------------------------------------------------------------------


def test_a_stage_says_its_number_what_is_expected_what_it_took_and_what_it_found(
    said: list[str], log: Announcer
) -> None:
    log.run_begins("run", ROAD)
    log.stage_begins(ROAD[1])
    assert list(log.progress([0, 1, 2], "asking", 3)) == [0, 1, 2]
    log.stage_ends(ROAD[1], ended(4.5, n=1234, rate=0.8571))
    assert said == [
        "stage 2 of 4: audit before ..., about 40 s",
        "stage 2 of 4: audit before: done in 4.5 s: n 1,234, rate 0.857",
    ]


def test_what_breaks_off_is_not_said_to_be_done(said: list[str], log: Announcer) -> None:
    log.stage_begins(ROAD[2])
    log.stage_ends(ROAD[2], ended(3.0, done=False))
    assert said[-1] == "stage 3 of 4: edit a: fit: broke off after 3.0 s"


def test_work_that_earlier_runs_have_done_is_said(said: list[str], log: Announcer) -> None:
    log.stage_ends(ROAD[1], ended(1.0, spared=40.0))
    assert "done in 1.0 s (40 s of work were taken from earlier runs)" in said[-1]


def test_within_a_stage_what_takes_long_says_how_far_it_is_once_a_minute(
    said: list[str], log: Announcer, watch: Watch
) -> None:
    log.stage_begins(Stage("audit before", 2, 4))
    list(log.progress(slowly(watch, 10, 25.0), "generating", 10))
    assert said == [
        "stage 2 of 4: audit before ...",
        "  generating: 3 of 10 after 75 s, 0.04 a second, 2 min 55 s left",
        "  generating: 6 of 10 after 150 s, 0.04 a second, 1 min 40 s left",
        "  generating: 9 of 10 after 225 s, 0.04 a second, 25 s left",
    ]


def test_many_short_loops_of_a_long_stage_are_told_once_a_minute_too(
    said: list[str], log: Announcer, watch: Watch
) -> None:
    log.stage_begins(ROAD[1])
    for _ in range(40):
        list(log.progress(slowly(watch, 2, 2.0), "asking", 2))
    assert len(said) == 1 + 2


def test_outside_of_stages_loops_say_that_they_begin_and_end(
    said: list[str], log: Announcer, watch: Watch
) -> None:
    list(log.progress(slowly(watch, 2, 1.5), "reading", 2))
    assert said == ["reading ...", "reading: 2 of 2 in 3.0 s"]


def test_a_loop_that_ends_early_says_how_far_it_came(said: list[str], log: Announcer) -> None:
    doses = log.progress((0.5, 1.0, 2.0), "trying doses")
    assert next(doses) == 0.5
    assert next(doses) == 1.0
    doses.close()  # type: ignore[attr-defined]
    assert said == ["trying doses ...", "trying doses: 1 of 3 in 0.0 s"]
    assert log.course.loops == []


def test_without_a_known_total_what_was_done_is_counted(said: list[str], log: Announcer) -> None:
    list(log.progress(iter("ab"), "reading"))
    assert said[-1] == "reading: 2 in 0.0 s"


# How long still -------------------------------------------------------------------------


def test_the_time_left_is_what_is_expected_of_the_stages_to_come(watch: Watch) -> None:
    shown = Announcer(clock=watch)
    shown.run_begins("run", ROAD)
    shown.stage_begins(ROAD[1])
    watch.now = 15.0
    assert shown.course.left() == 25.0 + 20.0 + 40.0


def test_stages_to_come_are_taken_to_be_as_slow_as_those_before(watch: Watch) -> None:
    shown = Announcer(clock=watch)
    shown.run_begins("run", ROAD)
    shown.stage_begins(ROAD[0])
    shown.stage_ends(ROAD[0], ended(20.0))  # 10 s were expected
    shown.stage_begins(ROAD[1])
    assert shown.course.left() == 2 * (40.0 + 20.0 + 40.0)
    shown.stage_ends(ROAD[1], ended(1.0, spared=79.0))  # says nothing of how fast work goes
    shown.stage_begins(ROAD[2])
    assert shown.course.left() == 2 * (20.0 + 40.0)


def test_where_a_stage_is_of_unknown_length_no_time_left_is_made_up(watch: Watch) -> None:
    shown = Announcer(clock=watch)
    shown.run_begins("run", (ROAD[0], Stage("audit before", 2, 2)))
    shown.stage_begins(ROAD[0])
    assert shown.course.left() is None


def test_a_loop_knows_its_rate_and_its_time_left_from_its_first_items_on() -> None:
    loop = Loop("asking", 40, begun=100.0)
    assert loop.rate(110.0) is None
    assert loop.left(110.0) is None
    for second in range(1, 11):
        loop.moved(100.0 + 2 * second)
    assert loop.rate(121.0) == 0.5
    assert loop.left(121.0) == 59.0
    endless = Loop("reading", None, begun=0.0)
    endless.moved(0.1)
    assert endless.left(10.0) is None


def test_the_first_item_of_a_batch_does_not_stand_for_all_of_it() -> None:
    loop = Loop("asking", 216, begun=0.0)
    loop.moved(100.0)  # 72 items were asked together, and are counted one by one
    assert loop.left(100.0) is None
    for _ in range(71):
        loop.moved(100.001)
    assert loop.left(101.0) == pytest.approx(199.0, abs=0.1)
    loop.moved(200.0)
    assert loop.left(200.0) == pytest.approx(100.0, abs=0.1)


# On a terminal --------------------------------------------------------------------------


def drawn(watch: Watch, height: int = 25) -> tuple[Announcer, Console, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=90, height=height)
    return Announcer(Picture(console), clock=watch), console, written


def plain(written: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())


def test_a_terminal_shows_what_is_done_what_runs_and_what_is_to_come(watch: Watch) -> None:
    shown, _, written = drawn(watch)
    shown.run_begins("run", ROAD)
    shown.stage_begins(ROAD[0])
    shown.stage_ends(ROAD[0], ended(9.0, parameters=1000))
    shown.stage_begins(ROAD[1])
    for _ in shown.progress(slowly(watch, 4, 2.5), "asking", 8):
        pass
    loop = shown.progress(slowly(watch, 4, 2.5), "asking", 8)
    assert next(loop) == 0
    assert next(loop) == 1
    shown.views[0].closes(None)
    text = plain(written)
    assert re.search(r"1/4  open model\s+9\.0 s  parameters 1,?000", text)
    assert re.search(r"2/4  audit before\s+15 s  about 21 s left", text)
    assert "asking: 1 of 8, 0.4 a second, 15 s left" in text
    assert re.search(r"3/4  edit a: fit\s+about 18 s", text)
    assert re.search(r"4/4  audit after\s+about 36 s", text)
    assert "15 s so far, about 1 min 15 s left" in text


def test_a_low_terminal_says_how_many_stages_it_leaves_out(watch: Watch) -> None:
    shown, _, written = drawn(watch, height=6)
    shown.run_begins("run", ROAD)
    shown.stage_begins(ROAD[0])
    shown.views[0].closes(None)
    assert "and 2 more" in plain(written)


def test_names_are_never_read_as_markup(watch: Watch) -> None:
    shown, _, written = drawn(watch)
    odd = Stage("edit [bold]x[/]: fit", 1, 1)
    shown.run_begins("run", [odd])
    shown.stage_begins(odd)
    shown.stage_ends(odd, ended(1.0))
    shown.views[0].closes(None)
    assert "edit [bold]x[/]: fit" in plain(written)


def test_a_course_without_a_run_has_nothing_to_come() -> None:
    course = Course(clock=float, begun=0.0)
    assert course.pending() == ()
    assert course.left() is None


# Of a whole run -------------------------------------------------------------------------


def test_the_log_of_a_run_numbers_every_stage_of_its_plan_in_order(place: Workplace) -> None:
    edits = [
        {**NUDGE, "id": "one"},
        {**NUDGE, "id": "two", "control": False},
    ]  # fmt: skip
    result = place.run("apply", place.policy(edits=edits))
    assert result.exit_code == 0, result.stderr
    line = r"^stage (\d+) of (\d+): (.*?)(?: \.\.\..*|: done in .* s.*)$"
    stages = re.findall(line, result.stderr, re.MULTILINE)
    names = ["open model", "audit before", "edit one: fit", "edit one: dose", "edit one: control",
             "edit one: gates so far", "edit two: fit", "edit two: dose", "stage", "reload",
             "audit after", "judge"]  # fmt: skip
    assert stages == [
        (str(number), str(len(names)), name)
        for number, name in enumerate(names, 1)
        for _ in ("begins", "ends")
    ]
    assert re.search(r"audit after: done in .* s: drift\.distance 0\.\d+", result.stderr)
    assert re.search(
        r"judge: done in .* s: gates 1, passed 1, verdict pass, exported ", result.stderr
    )
    assert "\x1b[" not in result.stderr


def test_quiet_says_nothing_of_stages(place: Workplace) -> None:
    result = place.run("apply", "-q", place.policy())
    assert result.exit_code == 0
    assert result.stderr == ""
