"""What a gate can tell at the number of items at hand, known before anything is measured.

A share of 82 items moves in steps of .012: a gate that allows .02 is decided by one of them. What
is said here rests on the number of independent items alone, which is the most there can be (an
audit may count fewer, those that the base knew), and on a guess of how many change; intervals
measured in the run take its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safeedit.data import Dataset, Item
from safeedit.data.independence import together
from safeedit.planning.plan import PlannedAudit
from safeedit.policy import GateSpec
from safeedit.statistics.intervals import wilson

_LEVEL = 0.95
_Z = 1.96


@dataclass(frozen=True)
class Power:
    """What a gate on a share of items can tell.

    Attributes:
        n: Independent items, at most.
        half_width: Of the 95 % interval of what is held against the bound, were it on the bound;
            of a change, if as many items changed as the bound allows.
        warning: Why the gate can't tell what it asks; empty where it can.
    """

    n: int
    half_width: float
    warning: str = ""

    def __str__(self) -> str:
        return (
            f"at most {self.n} independent items, of which one is {1 / self.n:.2g}; the half width "
            f"of a 95 % interval is about {self.half_width:.2g}"
        )


def power(gate: GateSpec, audits: Sequence[PlannedAudit]) -> Power | None:
    """What a gate can tell.

    Args:
        gate: On a metric of one of the audits.
        audits: Of the plan.

    Returns:
        None where the metric is no share of items, the bound a percentage of a value that is not
        known yet, or the gate under an attack, whose audits ask other items.
    """
    audit = next((audit for audit in audits if audit.id == gate.audit), None)
    spec = audit.metrics.get(gate.metric) if audit is not None else None
    if audit is None or spec is None or spec.unit != "rate" or gate.under or gate.bound.relative:
        return None
    n = _independent(gate.name, audit)
    if not n:
        return None
    if gate.meaning.of_change:
        return _of_change(gate, n, gate.meaning.asks_for_change)
    if spec.signed:  # a change by itself
        return _of_change(gate, n, (gate.bound.value > 0) == (gate.meaning.passes == "above"))
    return _of_value(gate, n)


def _of_value(gate: GateSpec, n: int) -> Power:
    bound = min(max(gate.bound.value, 0.0), 1.0)
    interval = wilson(bound * n, n, _LEVEL)
    half = (interval.high - interval.low) / 2
    if gate.confidence is None:
        return Power(n, half)
    below = gate.meaning.passes == "below"

    def reaches(count: int) -> float:
        best = wilson(0 if below else count, count, float(gate.confidence or _LEVEL))
        return best.high if below else best.low

    end = reaches(n)
    if gate.meaning.inside(end, gate.bound.value) or not gate.meaning.inside(
        0.0 if below else 1.0, gate.bound.value
    ):
        return Power(n, half)
    needed = n
    while not gate.meaning.inside(reaches(needed), gate.bound.value) and needed < 10**6:
        needed += max(1, needed // 50)
    return Power(
        n,
        half,
        f"the gate {gate.metric} {gate.condition} can't pass: with at most {n} items the interval "
        f"of {'0' if below else '1'} ends at {end:.2g}; give it some {needed} items, a wider "
        "bound, or no confidence",
    )


def _of_change(gate: GateSpec, n: int, asks_for_change: bool) -> Power:
    bound = abs(gate.bound.value)
    # Of n pairs as many differ as the bound allows, but one at least: a share d of them, of which
    # the difference has a variance of d / n.
    half = _Z * math.sqrt(max(bound, 1 / n) / n)
    if asks_for_change or bound == 0 or half < bound:
        return Power(n, half)
    allowed = math.floor(bound * n + 1e-9)
    return Power(
        n,
        half,
        f"the gate {gate.metric} {gate.condition} is decided by few items: of at most {n} it "
        f"allows {allowed}, and chance alone moves the change by about {half:.2g}; more items or a "
        "wider bound make it hold elsewhere",
    )


def _independent(metric: str, audit: PlannedAudit) -> int:
    """Items of the test split that the metric is over, those that tell the same counted once."""
    roles = [role for role in audit.auditor.roles if role.name in audit.data]
    named = [role for role in roles if metric.startswith(f"{role.name}_")]
    for role in (named or roles)[:1]:
        return _count(audit.data, role.name, erased=role.erased)
    return 0


def _count(data: Mapping[str, Dataset], role: str, *, erased: bool) -> int:
    items: Sequence[Item] = data[role].items("test")
    keys = [str(index) for index in range(len(items))]
    return len(set(together(keys, items, erased=erased).values()))
