"""``--events FILE``: what a run tells of itself, as JSON lines for programs.

Each line is an object with ``event`` and ``time`` (UTC). A run writes ``run begins`` with its
stages and what each is expected to take; ``stage begins`` and ``stage ends`` with its figures;
``progress`` of what goes on within, at most once a second; ``warning``; and at its end ``run ends``
with verdict and exit code, or ``run broke off``. Several runs may be written to one file.

No line holds data: names of stages and metrics, counts, figures, and what warnings and errors say.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeedit.cli.progress import Course, Loop, Silence
from safeedit.errors import SafeeditError, UsageError

if TYPE_CHECKING:
    from safeedit.observing import Ended, Stage

FORMAT, VERSION = "safeedit-events", 1
_EVERY = 1.0
"""Seconds between two lines of progress."""
_FIRST_LINE = 1 << 16
"""Bytes in which the first line of a file of events ends."""


class EventFile(Silence):
    """The file that events are added to.

    Args:
        path: Made if it is not there.
        warn: Is told once if it can't be written any more; that is no reason to stop.

    Raises:
        UsageError: It can't be written, or is a file of something else.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._file: int | None = _opened(path)
        """A descriptor, unbuffered: a line is in the file when it is said."""
        self._warn = warn
        self._last = float("-inf")

    def run_begins(self, course: Course, run_id: str) -> None:
        stages = [{"stage": stage.name, "expected_seconds": stage.seconds}
                  for stage in course.stages]  # fmt: skip
        self._write("run begins", format=FORMAT, version=VERSION, run_id=run_id, stages=stages)

    def stage_begins(self, course: Course, stage: Stage) -> None:
        self._write("stage begins", **_of(stage), expected_seconds=stage.seconds)

    def stage_ends(self, course: Course, stage: Stage, ended: Ended) -> None:
        self._write(
            "stage ends",
            **_of(stage),
            done=ended.done,
            seconds=ended.seconds,
            spared_seconds=ended.spared,
            figures=ended.figures,
        )

    def loop_begins(self, course: Course, loop: Loop) -> None:
        self._progress(course, loop)

    def loop_moves(self, course: Course, loop: Loop) -> None:
        self._progress(course, loop)

    def run_ends(self, course: Course, status: str, exit_code: int) -> None:
        seconds = course.clock() - course.begun
        self._write("run ends", status=status, exit_code=exit_code, seconds=seconds)

    def warned(self, course: Course, message: str) -> None:
        self._write("warning", message=message)

    def closes(self, error: BaseException | None) -> None:
        if isinstance(error, SafeeditError):
            self._write("run broke off", error=str(error), exit_code=error.exit_code)
        elif error is not None:  # a library's words may quote data
            self._write("run broke off", error=type(error).__name__, exit_code=3)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _progress(self, course: Course, loop: Loop) -> None:
        now = course.clock()
        if now - self._last < _EVERY:
            return
        self._last = now
        self._write(
            "progress",
            stage=course.running.name if course.running is not None else None,
            what=loop.description,
            done=loop.done,
            total=loop.total,
            per_second=loop.rate(now),
            seconds_left=loop.left(now),
            run_seconds_left=course.left(),
        )

    def _write(self, event: str, **said: Any) -> None:
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"event": event, "time": now, **said}) + "\n"
        try:
            os.write(self._file, line.encode())
        except OSError as error:
            os.close(self._file)
            self._file = None
            self._warn(f"--events: {error.strerror}; no more events are written")


def _of(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.name, "number": stage.number, "total": stage.total}


def _opened(path: Path) -> int:
    from safeedit.export.places import check_output

    path = check_output(path, "--events", "the file of events")
    try:
        # Without O_NONBLOCK a pipe would wait for its other end.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError(
            f"events can't be written here: {error.strerror}", file=path, field="--events",
            remedy="choose a file in a folder that is there",
        ) from error  # fmt: skip
    if stat.S_ISREG(os.fstat(file).st_mode) and _ours(file):
        return file
    os.close(file)
    raise UsageError(
        "there is something here that holds no events of safeedit, so nothing is added to it",
        file=path, field="--events", remedy="choose another name",
    )  # fmt: skip


def _ours(file: int) -> bool:
    """Whether a file is empty, or begins as we begin one; what a killed run left of a line is
    ended."""
    size = os.fstat(file).st_size
    if not size:
        return True
    try:
        found = json.loads(os.pread(file, _FIRST_LINE, 0).partition(b"\n")[0])
    except ValueError:
        return False
    if not isinstance(found, dict) or not {"event", "time"} <= found.keys():
        return False
    if os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")
    return True
