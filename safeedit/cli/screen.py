"""How a command talks to whoever called it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safeedit.cli.digest_key import digest_key
from safeedit.cli.terminal import console, tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

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

    def context(self, seed: int, *, fresh: bool = False) -> AbstractContextManager[RunContext]:
        """What work on a model may know of its surroundings, progress bars included."""
        return RunSurroundings(self, seed, fresh)

    def beside(self, bars: RichProgress, message: str) -> None:
        """A warning while bars are drawn: above them, never read as markup, never wrapped."""
        if bars.disable:
            self.warn(message)
        else:
            bars.console.print(
                f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )


class RunSurroundings:
    """A run context whose progress bars live as long as the ``with`` block."""

    def __init__(self, screen: Screen, seed: int, fresh: bool) -> None:
        self.screen, self.seed, self.fresh = screen, seed, fresh

    def __enter__(self) -> RunContext:
        from safeedit.cache import cache_dir
        from safeedit.cli.progress import Announcer
        from safeedit.contracts import RunContext

        cache = cache_dir()
        secret = digest_key(cache)
        shown = Announcer(self.screen.console(), self.screen.say, quiet=self.screen.quiet)
        self.bars = shown.bars
        self.bars.start()
        return RunContext(
            seed=self.seed,
            cache=cache,
            secret=secret,
            progress=shown.progress,
            stages=shown.stage,
            warn=lambda message: self.screen.beside(self.bars, message),
            fresh=self.fresh,
        )

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()
