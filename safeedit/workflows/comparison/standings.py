"""What a comparison writes to disk, and who stands on the Pareto front. No torch here.

The front is drawn by point values: a row is on it if no other is at least as good in both metrics
and better in one. A row off the front *overlaps* it if none of the rows on it that beat it is
clear of it: wherever such a row is better by value, the 95 % intervals overlap. These are intervals
of each row alone; rows share their items, so differences are known better than they look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from safeedit.records import Direction, Metric, ModelRecord, Record, Status

SCHEMA_VERSION = 1
"""Version of ``comparison.json``."""

Kind = Literal["none", "editor", "random", "prompt"]
Place = Literal["front", "overlaps", "behind", ""]


class Cost(Record):
    """What one editor's run took."""

    fit_seconds: float
    """Computing the change."""
    dose_seconds: float
    """Choosing its strength on validation data."""
    wall_seconds: float
    """The whole run, audits included."""
    peak_memory_bytes: int
    """Peak resident memory; of all runs so far in one process, where the system keeps but one."""
    peak_device_bytes: int


class Standing(Record):
    """One row: an editor, the untouched model, a random control, or a prompt that stands before
    every question."""

    name: str
    use: str
    """The editor; empty for the untouched model and for prompts."""
    kind: Kind
    error: str = ""
    """First line of why there are no figures."""
    warning: str = ""
    metrics: dict[str, Metric] = Field(default_factory=dict)
    """Full name -> figure, of several seeds their mean; items are left to the row's own record."""
    by_seed: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    """Full name -> its value with each of several seeds."""
    params: dict[str, Any] = Field(default_factory=dict)
    dose: float | None = None
    """Of the first seed."""
    targets_met: bool | None = None
    """Whether the dose met its targets on validation data; None where it was fixed."""
    entries_changed: int | None = None
    """Stored weights that are others than before."""
    status: Status | None = None
    """What the policy's gates say of it."""
    cost: Cost | None = None
    place: Place = ""
    """Empty where one of the two metrics has no value."""


class Axis(Record):
    """One of the two metrics that rows are ranked by."""

    metric: str
    unit: str
    direction: Direction
    description: str


class Standings(Record):
    """A comparison, complete."""

    schema_version: int = Field(SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    policy_name: str
    policy_digest: str
    """Of the policy as given, before editors take their turns."""
    model: ModelRecord
    seed: int
    seeds: tuple[int, ...] = ()
    """All that each editor was run with."""
    safeedit: str
    success: Axis
    locality: Axis
    knowedit: dict[str, str]
    """KnowEdit's name -> full name of the metric that comes nearest to it."""
    rows: tuple[Standing, ...]


def placed(rows: Sequence[Standing], success: Axis, locality: Axis) -> tuple[Standing, ...]:
    """The rows with their places."""
    axes = (success, locality)
    points = {row.name: _point(row, axes) for row in rows}
    there = {name: point for name, point in points.items() if point is not None}
    front = {
        name: point
        for name, point in there.items()
        if not any(_beats(other, point) for other in there.values())
    }

    def place(name: str) -> Place:
        point = there.get(name)
        if point is None:
            return ""
        if name in front:
            return "front"
        better = [other for other in front.values() if _beats(other, point)]
        return "behind" if any(_clear(other, point) for other in better) else "overlaps"

    return tuple(row.model_copy(update={"place": place(row.name)}) for row in rows)


Span = tuple[float, float, float]
"""Low end, value and high end, turned so that more is better."""


def _point(row: Standing, axes: Sequence[Axis]) -> tuple[Span, ...] | None:
    found = []
    for axis in axes:
        metric = row.metrics.get(axis.metric)
        if metric is None or metric.value is None:
            return None
        low, high = metric.value, metric.value
        if metric.interval is not None:
            low, high = metric.interval.low, metric.interval.high
        if axis.direction == "higher":
            found.append((low, metric.value, high))
        else:
            found.append((-high, -metric.value, -low))
    return tuple(found)


def _beats(one: Sequence[Span], other: Sequence[Span]) -> bool:
    """At least as good in every metric by value, and better in one."""
    pairs = [(a[1], b[1]) for a, b in zip(one, other, strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _clear(one: Sequence[Span], other: Sequence[Span]) -> bool:
    """Better in some metric with intervals that don't overlap."""
    return any(a[0] > b[2] for a, b in zip(one, other, strict=True))
