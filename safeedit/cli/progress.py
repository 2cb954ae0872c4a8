"""How long work is followed: what is running, how far it is, how long it still takes.

An :class:`Announcer` is told of stages and loops and keeps a :class:`Course`; what people and
programs get to see of it are its views: lines in a log (:class:`Lines`), a picture on a terminal
(:mod:`safeedit.cli.live`), JSON lines in a file (:mod:`safeedit.cli.events`).

In a log nobody sees a bar move: a line says that a stage begins, another that it has ended and what
it found, and in between, of what takes long, one a minute how far it is::

    stage 2 of 9: audit before ..., about 41 s
      leakage: asking: 24 of 48 after 60 s, 0.4 a second, 60 s left
    stage 2 of 9: audit before: done in 95 s: leakage.extraction_rate 0.857
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from safeedit.observing import Ended, Figures, Stage

Item = TypeVar("Item")

_EVERY = 60.0
"""Seconds between two lines that say how far something is."""


_PAUSE = 0.5
"""Seconds without an item after which those before it count as one batch."""


@dataclass
class Loop:
    """Something that goes through items one by one, or in batches: many at once, then none for a
    while."""

    description: str
    total: int | None
    begun: float
    done: int = 0

    def __post_init__(self) -> None:
        self._last = self._batch = self.begun
        """When the last item was done, and the first of its batch."""
        self._before = 0, self.begun
        """Items done before that batch, and when."""

    def moved(self, now: float) -> None:
        """One more item is done."""
        if now - self._last > _PAUSE:
            self._before, self._batch = (self.done, self._last), now
        self.done, self._last = self.done + 1, now

    def rate(self, now: float) -> float | None:
        """Items a second; None before anybody knows."""
        done, at = self._known(now)
        return done / (at - self.begun) if done and at > self.begun else None

    def left(self, now: float) -> float | None:
        """Seconds until it ends, if it goes on as it did; None where nobody knows."""
        rate, (done, at) = self.rate(now), self._known(now)
        if rate is None or self.total is None:
            return None
        return max((self.total - done) / rate - (now - at), 0.0)

    def _known(self, now: float) -> tuple[int, float]:
        """How many items were done when; of a batch that is just being counted nobody knows yet."""
        whole = now - self._last > _PAUSE or self._last - self._batch > 2 * _PAUSE
        return (self.done, self._last) if whole else self._before

    def count(self) -> str:
        """``12 of 300``."""
        return f"{self.done:,} of {self.total:,}" if self.total is not None else f"{self.done:,}"


@dataclass
class Course:
    """Where a run is."""

    clock: Callable[[], float]
    begun: float
    stages: tuple[Stage, ...] = ()
    running: Stage | None = None
    stage_begun: float = 0.0
    loops: list[Loop] = field(default_factory=list)
    """Those within others last."""
    took: float = 0.0
    """Seconds of the stages that were made from nothing, so far."""
    expected: float = 0.0
    """What was expected of them."""

    def pending(self) -> tuple[Stage, ...]:
        """Stages that are still to come."""
        at = self.running.number if self.running is not None else 0
        return tuple(stage for stage in self.stages if stage.number > at)

    def expects(self, stage: Stage) -> float | None:
        """Seconds that a stage is expected to take, as much slower or faster than planned as those
        before it were, within a factor of four; None where nobody knows."""
        if stage.seconds is None:
            return None
        ratio = self.took / self.expected if self.expected > 0 and self.took > 0 else 1.0
        return stage.seconds * min(max(ratio, 0.25), 4.0)

    def left_here(self) -> float | None:
        """Seconds until the stage that is running ends."""
        expected = self.expects(self.running) if self.running is not None else None
        return None if expected is None else max(expected - (self.clock() - self.stage_begun), 0.0)

    def left(self) -> float | None:
        """Seconds until the end."""
        ahead = [self.left_here(), *map(self.expects, self.pending())]
        return None if None in ahead else sum(filter(None, ahead))


class View(Protocol):
    """Something that shows where a run is."""

    def run_begins(self, course: Course, run_id: str) -> None: ...
    def stage_begins(self, course: Course, stage: Stage) -> None: ...
    def stage_ends(self, course: Course, stage: Stage, ended: Ended) -> None: ...
    def loop_begins(self, course: Course, loop: Loop) -> None: ...
    def loop_moves(self, course: Course, loop: Loop) -> None: ...
    def loop_ends(self, course: Course, loop: Loop) -> None: ...
    def run_ends(self, course: Course, status: str, exit_code: int) -> None: ...
    def warned(self, course: Course, message: str) -> None: ...
    def closes(self, error: BaseException | None) -> None: ...


class Silence:
    """The view that shows nothing; others override what they show."""

    def run_begins(self, course: Course, run_id: str) -> None:
        """A run begins, and its stages are known."""

    def stage_begins(self, course: Course, stage: Stage) -> None:
        """A stage begins."""

    def stage_ends(self, course: Course, stage: Stage, ended: Ended) -> None:
        """A stage has ended."""

    def loop_begins(self, course: Course, loop: Loop) -> None:
        """A loop begins; it is the last of ``course.loops``."""

    def loop_moves(self, course: Course, loop: Loop) -> None:
        """One more item of a loop is done."""

    def loop_ends(self, course: Course, loop: Loop) -> None:
        """A loop has ended, perhaps before its items did."""

    def run_ends(self, course: Course, status: str, exit_code: int) -> None:
        """A run has its verdict."""

    def warned(self, course: Course, message: str) -> None:
        """Something was said loudly."""

    def closes(self, error: BaseException | None) -> None:
        """Nothing more is to come; ``error`` where it broke off."""


class Announcer:
    """An :class:`~safeedit.observing.Observer` that keeps a course and tells views.

    Args:
        views: Whom to tell.
        clock: Seconds.
    """

    def __init__(self, *views: View, clock: Callable[[], float] = time.monotonic) -> None:
        self.views, self._clock = views, clock
        self.course = Course(clock, clock())

    def progress(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        """See :class:`~safeedit.contracts.Progress`."""
        with self._loop(description, total or _length(items)) as loop:
            for item in items:
                yield item
                loop.moved(self._clock())
                for view in self.views:
                    view.loop_moves(self.course, loop)

    @contextmanager
    def _loop(self, description: str, total: int | None) -> Iterator[Loop]:
        loop = Loop(description, total, self._clock())
        self.course.loops.append(loop)
        for view in self.views:
            view.loop_begins(self.course, loop)
        try:
            yield loop
        finally:  # a loop may end before its items do
            for view in self.views:
                view.loop_ends(self.course, loop)
            if loop in self.course.loops:  # an outer one that broke off took it with it
                self.course.loops.remove(loop)

    def run_begins(self, run_id: str, stages: Sequence[Stage]) -> None:
        self.course = Course(self._clock, self._clock(), tuple(stages))
        for view in self.views:
            view.run_begins(self.course, run_id)

    def stage_begins(self, stage: Stage) -> None:
        course = self.course
        course.running, course.stage_begun = stage, self._clock()
        for view in self.views:
            view.stage_begins(course, stage)

    def stage_ends(self, stage: Stage, ended: Ended) -> None:
        course = self.course
        if ended.done and not ended.spared and stage.seconds is not None:
            course.took += ended.seconds
            course.expected += stage.seconds
        for view in self.views:
            view.stage_ends(course, stage, ended)

    def run_ends(self, status: str, exit_code: int) -> None:
        for view in self.views:
            view.run_ends(self.course, status, exit_code)

    def warned(self, message: str) -> None:
        """Something was said loudly."""
        for view in self.views:
            view.warned(self.course, message)

    def closes(self, error: BaseException | None) -> None:
        """Nothing more is to come."""
        for view in self.views:
            view.closes(error)


class Warnings(Silence):
    """What was said loudly, and nothing else.

    Args:
        warn: Where it goes.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def warned(self, course: Course, message: str) -> None:
        self._warn(message)


class Lines(Silence):
    """Lines for a log.

    Args:
        say: Where they go.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = 0.0

    def stage_begins(self, course: Course, stage: Stage) -> None:
        self._last = course.clock()
        self._say(f"{_titled(stage)} ...{about(course.expects(stage))}")

    def stage_ends(self, course: Course, stage: Stage, ended: Ended) -> None:
        self._say(f"{_titled(stage)}: {how(ended)}{listed(ended.figures)}")

    def loop_begins(self, course: Course, loop: Loop) -> None:
        if course.running is None:
            self._last = course.clock()
            self._say(f"{_indent(course)}{loop.description} ...")

    def loop_moves(self, course: Course, loop: Loop) -> None:
        now = course.clock()
        if now - self._last >= _EVERY:
            self._last = now
            told = f"{loop.count()} after {now - loop.begun:.0f} s{going(loop, now)}"
            self._say(f"{_indent(course)}{loop.description}: {told}")

    def loop_ends(self, course: Course, loop: Loop) -> None:
        if course.running is None:
            took = course.clock() - loop.begun
            self._say(f"{_indent(course)}{loop.description}: {loop.count()} in {took:.1f} s")


def how(ended: Ended) -> str:
    """``done in 41 s (3 min of work were taken from earlier runs)``."""
    from safeedit.report.wording import took

    return f"{'done in' if ended.done else 'broke off after'} {took(ended.seconds, ended.spared)}"


def listed(figures: Figures) -> str:
    """``: dose 1.0, doses tried 2 of 3``; nothing where there are none."""
    from safeedit.report.wording import number

    def shown(value: float | str | None) -> str:
        if isinstance(value, str):
            return value
        return f"{value:,}" if isinstance(value, int) else number(value)

    found = ", ".join(f"{name} {shown(value)}" for name, value in figures.items())
    return f": {found}" if found else ""


def going(loop: Loop, now: float) -> str:
    """``, 0.4 a second, 60 s left``, as far as it is known."""
    from safeedit.report.wording import duration

    rate, left = loop.rate(now), loop.left(now)
    told = "" if rate is None else f", {rate:.3g} a second"
    return told if left is None else f"{told}, {duration(left)} left"


def about(seconds: float | None) -> str:
    """``, about 41 s``; nothing where nobody knows."""
    from safeedit.report.wording import duration

    return "" if seconds is None else f", about {duration(seconds)}"


def _titled(stage: Stage) -> str:
    return f"stage {stage.number} of {stage.total}: {stage.name}"


def _indent(course: Course) -> str:
    return "  " * (len(course.loops) - (course.running is None))


def _length(items: Iterable[Any]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
