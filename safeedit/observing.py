"""How a run tells where it is: its stages, as they are planned, begin and end.

The runner tells an :class:`Observer`; what is made of it (lines in a log, a picture on a terminal,
JSON lines) is the command line's business. What goes on within a stage is told through
:class:`~safeedit.contracts.Progress`.

Nothing that is told here is data: names of stages, metrics and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Figures = dict[str, float | str | None]
"""What a stage has found, by name: numbers and words for people, a few of each; never data."""


@dataclass(frozen=True)
class Stage:
    """One part of a run."""

    name: str
    """As the record has it, e.g. ``edit sanitation: fit``."""
    number: int
    """From 1 to :attr:`total`."""
    total: int
    seconds: float | None = None
    """What it is expected to take where nothing of it has been done before; None: not known."""


@dataclass(frozen=True)
class Ended:
    """How a stage ended."""

    seconds: float
    """That it took."""
    spared: float
    """Seconds of work that were found done by earlier runs."""
    figures: Figures
    done: bool
    """False where it broke off."""


class Observer(Protocol):
    """Who is told how a run goes. Its methods return at once and raise nothing."""

    def run_begins(self, run_id: str, stages: Sequence[Stage]) -> None:
        """The run, as its record names it, and all stages that it will go through, in order."""

    def stage_begins(self, stage: Stage) -> None: ...

    def stage_ends(self, stage: Stage, ended: Ended) -> None: ...

    def run_ends(self, status: str, exit_code: int) -> None:
        """The verdict: ``pass``, ``fail`` or ``inconclusive``."""


class Unobserved:
    """The observer that tells nobody."""

    def run_begins(self, run_id: str, stages: Sequence[Stage]) -> None:
        """Nothing."""

    def stage_begins(self, stage: Stage) -> None:
        """Nothing."""

    def stage_ends(self, stage: Stage, ended: Ended) -> None:
        """Nothing."""

    def run_ends(self, status: str, exit_code: int) -> None:
        """Nothing."""
