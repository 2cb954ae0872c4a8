"""The stages of a run: announced as they begin, and their seconds kept."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from safeedit.contracts import Stages, unannounced
from safeedit.records import ResourceRecord


@dataclass
class Effort:
    """Seconds of work: those that pass, and those that earlier runs have saved this one."""

    spared: float = 0.0

    def now(self) -> float:
        """Differences of it are what work takes when nothing of it is in the store."""
        return time.perf_counter() + self.spared


@dataclass
class Clock:
    """Announces the stages of a run and keeps their seconds, in order."""

    planned: tuple[str, ...]
    """All stages of this run."""
    announce: Stages = unannounced
    effort: Effort = field(default_factory=Effort)
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.effort.now()
        number = self.planned.index(name) + 1
        try:
            with self.announce(name, number, len(self.planned)):
                yield
        finally:
            elapsed = self.effort.now() - start
            self.stages[name] = self.stages.get(name, 0.0) + elapsed

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
