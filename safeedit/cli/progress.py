"""How long work is shown: bars on a terminal, lines with stage, counts and seconds in a log.

In a log nobody sees a bar move, so everything is said as it begins and once more as it ends::

    stage 2 of 7: audit before ...
      leakage: asking ...
      leakage: asking: 48 of 48 in 3.1 s
    stage 2 of 7: audit before: done in 41.0 s

and in between, of what takes long, how far it is, at most once a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

_EVERY = 60.0
"""Seconds between two lines that say how far something is."""


class Announcer:
    """Shows progress and stages, as bars or as lines.

    Args:
        console: Where bars go, if it is a terminal.
        say: Where lines go, if it is none.
        quiet: Whether to show nothing at all.
        clock: Seconds.
    """

    def __init__(
        self,
        console: Console,
        say: Callable[[str], None],
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._say, self._quiet, self._clock = say, quiet, clock
        self._depth = 0

    def progress(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        """See :class:`~safeedit.contracts.Progress`."""
        total = total or _length(items)
        shown = self._lines if self.bars.disable else self._bar
        return shown(items, description, total)

    @contextmanager
    def stage(self, name: str, number: int, total: int) -> Iterator[None]:
        """See :class:`~safeedit.contracts.Stages`."""
        told = f"stage {number} of {total}: {name}"
        if not self.bars.disable:
            task = self.bars.add_task(told, total=None)
            try:
                yield
            finally:
                self.bars.remove_task(task)
            return
        with self._between(f"{told} ...", lambda how: f"{told}: {how}"):
            yield

    def _bar(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        task = self.bars.add_task(description, total=total)
        try:
            for item in items:
                yield item
                self.bars.advance(task)
        finally:  # a loop may end before its items do
            self.bars.remove_task(task)

    def _lines(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        done = 0

        def count() -> str:
            return f"{done} of {total}" if total is not None else str(done)

        begun = last = self._clock()
        indent = "  " * self._depth
        self._line(f"{indent}{description} ...")
        try:
            for item in items:
                yield item
                done += 1
                now = self._clock()
                if now - last >= _EVERY:
                    last = now
                    self._line(f"{indent}{description}: {count()} after {now - begun:.0f} s")
        finally:
            took = self._clock() - begun
            self._line(f"{indent}{description}: {count()} in {took:.1f} s")

    @contextmanager
    def _between(self, begins: str, ends: Callable[[str], str]) -> Iterator[None]:
        begun = self._clock()
        self._line("  " * self._depth + begins)
        self._depth += 1
        how = "broke off after"
        try:
            yield
            how = "done in"
        finally:
            self._depth -= 1
            took = self._clock() - begun
            self._line("  " * self._depth + ends(f"{how} {took:.1f} s"))

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._say(text)


def _length(items: Iterable[Any]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
