"""Ctrl-C while the last step is taken: noted, not obeyed.

Up to the moment in which an export gets its name, an interrupt ends the run and nothing is left.
After it the export stands: a run that then said "interrupted" would deny what it has done. So
:func:`hold` is called just before that moment, and from then until the outermost
:func:`until_done` ends, Ctrl-C is only noted.

Signal handlers belong to the process, and so does the state of this module.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _State:
    depth = 0
    held = False
    noted = False
    previous: Any = None


def hold() -> None:
    """Note interrupts from here on; without effect outside :func:`until_done` and in a thread,
    where no signal arrives."""
    if not _State.depth or _State.held:
        return
    if threading.current_thread() is threading.main_thread():
        _State.previous = signal.signal(signal.SIGINT, _note)
        _State.held = True


def noted() -> bool:
    """Whether an interrupt has been noted since :func:`hold`."""
    return _State.noted


@contextmanager
def until_done() -> Iterator[None]:
    """Within the outermost of these, what :func:`hold` began goes on."""
    if not _State.depth:
        _State.noted = False
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        if not _State.depth and _State.held:
            if signal.getsignal(signal.SIGINT) is _note:
                signal.signal(signal.SIGINT, _State.previous)
            _State.held, _State.previous = False, None


def _note(number: int, frame: FrameType | None) -> None:
    _State.noted = True
