"""How a command talks to whoever called it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safeedit.cli.digest_key import digest_key
from safeedit.cli.terminal import console, tell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from rich.console import Console

    from safeedit.cli.progress import View
    from safeedit.contracts import RunContext


@dataclass(frozen=True)
class Screen:
    """How to talk to whoever called: quietly or not, in JSON or not."""

    quiet: bool
    verbose: bool

    def console(self) -> Console:
        return console(stderr=True, quiet=self.quiet)

    def say(self, text: str) -> None:
        if not self.quiet:
            tell(text)

    def warn(self, message: str) -> None:
        tell(f"warning: {message}")

    def context(
        self, seed: int, *, fresh: bool = False, events: Path | None = None
    ) -> AbstractContextManager[RunContext]:
        """What work on a model may know of its surroundings, and who is told how far it is.

        Args:
            seed: Of everything random.
            fresh: Make again what earlier runs have left.
            events: File that JSON lines are added to.
        """
        return RunSurroundings(self, seed, fresh, events)


class RunSurroundings:
    """A run context whose views live as long as the ``with`` block."""

    def __init__(self, screen: Screen, seed: int, fresh: bool, events: Path | None) -> None:
        self.screen, self.seed, self.fresh, self.events = screen, seed, fresh, events

    def __enter__(self) -> RunContext:
        from safeedit.cache import cache_dir
        from safeedit.cli.progress import Announcer
        from safeedit.contracts import RunContext

        cache = cache_dir()
        secret = digest_key(cache)
        self.shown = Announcer(*self._views())
        return RunContext(
            seed=self.seed,
            cache=cache,
            secret=secret,
            progress=self.shown.progress,
            observer=self.shown,
            warn=self.shown.warned,
            fresh=self.fresh,
        )

    def _views(self) -> Iterator[View]:
        from safeedit.cli.events import EventFile
        from safeedit.cli.live import Picture
        from safeedit.cli.progress import Lines, Warnings

        if self.events is not None:
            yield EventFile(self.events, self.screen.warn)
        console = self.screen.console()
        if console.is_terminal and not self.screen.quiet:
            yield Picture(console)
            return
        yield Warnings(self.screen.warn)
        if not self.screen.quiet:
            yield Lines(self.screen.say)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shown.closes(error)
