"""Where a run is, on a terminal: what is done stays above, what runs and what is to come moves.

::

     2/9  audit before           41 s  leakage.extraction_rate 0.857, locality.unchanged 1.000
     3/9  edit sanitation: fit   12 s  about 20 s left
            training: 96 of 300, 8.1 a second, 25 s left
     4/9  edit sanitation: dose        about 53 s
    ...
    1 min 5 s so far, about 4 min 10 s left
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safeedit.cli.progress import Course, Loop, Silence, about, going, how, listed

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

    from safeedit.observing import Ended, Stage

_SPARE_LINES = 4
"""Lines of the terminal that are left to what was there."""
_LONGEST_NAME = 40


class Picture(Silence):
    """A picture of a run that is drawn again and again.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._course: Course | None = None
        self._live = Live(
            get_renderable=self._drawn,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def run_begins(self, course: Course, run_id: str) -> None:
        self._course = course

    def loop_begins(self, course: Course, loop: Loop) -> None:
        self._course = course

    def stage_ends(self, course: Course, stage: Stage, ended: Ended) -> None:
        from rich.text import Text

        took = how(ended).removeprefix("done in ")
        line = f"{self._titled(stage)}  {took:>10}  {listed(ended.figures).removeprefix(': ')}"
        self._console.print(Text(line.rstrip(), "" if ended.done else "red"), soft_wrap=True)

    def warned(self, course: Course, message: str) -> None:
        from rich.text import Text

        # Above the picture, never read as markup, never wrapped.
        self._console.print(Text(f"warning: {message}", "yellow"), soft_wrap=True)

    def closes(self, error: BaseException | None) -> None:
        self._live.stop()

    def _titled(self, stage: Stage) -> str:
        stages = self._course.stages if self._course is not None else ()
        width = min(max((len(each.name) for each in stages), default=0), _LONGEST_NAME)
        digits = len(str(stage.total))
        return f"{stage.number:>{digits}}/{stage.total}  {stage.name:<{width}}"

    def _drawn(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        course = self._course
        if course is None:
            return Group()
        lines = [*self._now(course)]
        room = max(self._console.height - _SPARE_LINES - len(lines), 0)
        pending = course.pending()
        lines += [
            Text(f"{self._titled(stage)}  {'':>10}  {about(course.expects(stage))[2:]}", "dim")
            for stage in pending[:room]
        ]
        if len(pending) > room:
            lines.append(Text(f"and {len(pending) - room} more", "dim"))
        if course.stages:
            lines.append(self._total(course))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)

    def _now(self, course: Course) -> list[Text]:
        """The stage that runs, and what goes on within it."""
        from rich.text import Text

        from safeedit.report.wording import duration

        now, found = course.clock(), []
        if course.running is not None:
            elapsed, ahead = duration(now - course.stage_begun), course.left_here()
            left = f"about {duration(ahead)} left" if ahead else ""
            found.append(Text(f"{self._titled(course.running)}  {elapsed:>10}  {left}", "bold"))
        for depth, loop in enumerate(list(course.loops), 1):
            indent = "  " * (depth + (course.running is not None))
            found.append(Text(f"{indent}{loop.description}: {loop.count()}{going(loop, now)}"))
        return found

    def _total(self, course: Course) -> Text:
        from rich.text import Text

        from safeedit.report.wording import duration

        left = course.left()
        ahead = "" if left is None else f", about {duration(left)} left"
        return Text(f"{duration(course.clock() - course.begun)} so far{ahead}")
