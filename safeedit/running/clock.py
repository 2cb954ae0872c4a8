"""The stages of a run: told as they begin and end, their seconds kept and learnt from."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from safeedit.observing import Ended, Figures, Observer, Stage
from safeedit.planning.paces import Paces
from safeedit.planning.road import PlannedStage
from safeedit.records import ResourceRecord


@dataclass
class Effort:
    """Seconds of work: those that pass, and those that earlier runs have saved this one."""

    spared: float = 0.0
    audits: dict[str, float] = field(default_factory=dict)
    """What an audit's ``use`` names -> seconds of audits that this run has made itself."""

    def now(self) -> float:
        """Differences of it are what work takes when nothing of it is in the store."""
        return time.perf_counter() + self.spared

    def audited(self, use: str, seconds: float) -> None:
        """An audit was made."""
        self.audits[use] = self.audits.get(use, 0.0) + seconds


@dataclass
class Clock:
    """Tells of the stages of a run, keeps their seconds in order, and learns from them.

    Args:
        run_id: Of the run.
        road: All stages of this run.
        paces: Say what each is expected to take, and are told what it took.
        observer: Whom to tell.
        effort: Of the run.
    """

    run_id: str
    road: tuple[PlannedStage, ...]
    paces: Paces
    observer: Observer
    effort: Effort
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.told = {
            planned.name: (planned, Stage(planned.name, number, len(self.road), seconds))
            for number, planned in enumerate(self.road, 1)
            for seconds in [self.paces.seconds(planned)]
        }
        self.observer.run_begins(self.run_id, [stage for _, stage in self.told.values()])

    @contextmanager
    def stage(self, name: str) -> Iterator[Figures]:
        """One stage; what it finds may be put into what is given, to be told at its end."""
        planned, stage = self.told[name]
        start, spared, audits = time.perf_counter(), self.effort.spared, dict(self.effort.audits)
        figures: Figures = {}
        done = False
        self.observer.stage_begins(stage)
        try:
            yield figures
            done = True
        finally:
            seconds, spared = time.perf_counter() - start, self.effort.spared - spared
            self.stages[name] = self.stages.get(name, 0.0) + seconds + spared
            if done and not spared:  # else nobody knows what was made and what was found
                taken = {
                    use: total - audits.get(use, 0.0)
                    for use, total in self.effort.audits.items()
                    if total > audits.get(use, 0.0)
                }
                self.paces.learn(planned, seconds, taken)
            self.observer.stage_ends(stage, Ended(seconds, spared, figures, done))

    def ends(self, status: str, exit_code: int) -> None:
        """The run has its verdict: what it took is kept for the estimates of later ones."""
        self.paces.keep()
        self.observer.run_ends(status, exit_code)

    def record(self) -> ResourceRecord:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return ResourceRecord(
            wall_seconds=time.perf_counter() - self.started,
            spared_seconds=self.effort.spared,
            peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
            peak_device_bytes=(
                torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            ),
            stages=dict(self.stages),
        )
