"""How long each kind of work takes on this machine, as finished runs have shown.

A run leaves, for each kind of work of its plan, the seconds that a unit of it took: of the last
few runs, by machine, device, threads and dtype, in one file of the cache that holds names of kinds
and numbers, nothing else. Of those the median counts. What has not run here yet is taken from
work that is like it, or else from the speed of one matrix product.

A file that can't be read or written costs precision, and is no reason to stop.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from safeedit.cache import PRIVATE, cache_dir, write_atomically
from safeedit.model.sources import best_device
from safeedit.planning.plan import Plan
from safeedit.planning.road import PlannedStage, audit_kind
from safeedit.planning.throughput import measured_flops
from safeedit.policy.files import read_json
from safeedit.private import private_folder

FILE = "paces.json"
KEPT = 5
"""Runs that a pace is the median of."""

MADE_OF = {"audit": 0.2, "fit": 0.6, "layers": 0.6, "attack": 0.6}
"""Share of a matrix product's speed that work of a kind reaches, by the kind's first word."""
BYTES_A_SECOND = 2.0e8
"""Of whatever else a stage does, with the weights."""

Basis = Literal["runs here", "like runs here", "arithmetic"]
"""What a pace stands on, best first."""


@dataclass
class Paces:
    """Seconds a unit of work takes, by kind.

    Args:
        cache: Folder in which they are kept.
        machine: Where they hold: see :func:`machine`.
        dtype: Of the weights.
    """

    cache: Path
    machine: str
    dtype: str
    known: dict[str, list[float]] = field(default_factory=dict)
    """Kind -> what the last runs took, seconds a unit, newest last."""

    def __post_init__(self) -> None:
        self.known = _kinds(_read(self.cache / FILE).get(self.machine))

    @classmethod
    def of(cls, plan: Plan, cache: Path | None = None) -> Paces:
        """Those of this machine, for a plan's device and dtype; ``cache`` is the user's unless
        given."""
        device = plan.loaded.policy.model.device
        if device == "auto":
            device = str(best_device(plan.weights_bytes) or "several GPUs")
        return cls(cache or cache_dir(), machine(device, plan.dtype), plan.dtype)

    def seconds(self, stage: PlannedStage) -> float:
        """What a stage takes where nothing of it has been done before."""
        return sum(amount * self.pace(kind)[0] for kind, amount in stage.kinds().items())

    def pace(self, kind: str) -> tuple[float, Basis]:
        """Seconds a unit of a kind of work takes, and how that is known."""
        if kind in self.known:
            return median(self.known[kind]), "runs here"
        alike, sort = kind.partition(",")[0], kind.partition(" ")[0]
        for like in (f"{alike},", f"{sort} "):
            if found := [median(v) for known, v in self.known.items() if known.startswith(like)]:
                return median(found), "like runs here"
        if sort in MADE_OF:
            return 1 / (measured_flops(self.dtype) * MADE_OF[sort]), "arithmetic"
        return 1 / BYTES_A_SECOND, "arithmetic"

    def learn(self, stage: PlannedStage, seconds: float, audits: Mapping[str, float]) -> None:
        """Take note of what a stage took that a run has made from nothing.

        Args:
            stage: From the plan.
            seconds: All of it.
            audits: What an audit's ``use`` names -> seconds of its audits there.
        """
        rest = max(seconds - sum(audits.values()), 0.0)
        found = {audit_kind(use, stage.when): each for use, each in audits.items()}
        for kind, amount in stage.kinds().items():
            took = rest if kind == stage.own else found.get(kind)
            if took is not None and amount > 0:
                self.known[kind] = [*self.known.get(kind, []), took / amount][-KEPT:]

    def keep(self) -> None:
        """Write what was learnt."""
        with suppress(OSError):
            private_folder(self.cache)
            content = {**_read(self.cache / FILE), self.machine: self.known}
            write_atomically(self.cache / FILE, json.dumps(content, indent=1).encode(), PRIVATE)


def machine(device: str, dtype: str) -> str:
    """What decides how fast work goes, in words: two machines of one name are alike."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    kernels = torch.backends.cpu.get_cpu_capability()
    where = f"{platform.machine()} {kernels}, {cores}"
    if device.startswith("cuda") and torch.cuda.is_available():
        device = torch.cuda.get_device_name(device)  # cuda:0 and cuda:1 may be two of a kind
    return f"{device}, {dtype}, {where}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _kinds(found: object) -> dict[str, list[float]]:
    """What the file says of one machine, as far as it makes sense."""
    kinds = {}
    for kind, paces in found.items() if isinstance(found, dict) else ():
        good = [
            float(pace)
            for pace in (paces if isinstance(paces, list) else ())
            if isinstance(pace, int | float) and math.isfinite(pace) and pace >= 0
        ]
        if good:
            kinds[str(kind)] = good[-KEPT:]
    return kinds
