"""Gates: three-valued judgements on measured metrics. Pure; no torch, no model, no data.

A gate passes, fails or is inconclusive:

- too few independent items (``min_n``), nothing measured, or an audit skipped: inconclusive;
- without ``confidence`` the point estimate is held against the bound;
- with it the whole interval must lie inside (pass) or outside (fail); if it straddles the
  bound the gate is inconclusive.

``min`` and ``max`` read the metric after the edits; the other four (``max_increase``,
``min_decrease`` ...) its change, over paired items where there are any, and relative bounds are
shares of the value before. Exactly on the bound is inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from safeedit.records import Comparison, Interval, Status, Verdict
from safeedit.statistics.metrics import compare, interval_at

if TYPE_CHECKING:
    from safeedit.policy import GateSpec

EXIT_CODES: dict[Status, int] = {"pass": 0, "fail": 1, "inconclusive": 4}


def judge(gate: GateSpec, comparison: Comparison | None) -> Verdict:
    """Hold a metric against one gate.

    Args:
        gate: The condition.
        comparison: Its metric before and after; None where it was not measured.

    Returns:
        The verdict, with a reason in words that names the metric and both figures.
    """
    if comparison is None:
        return _verdict(gate, "inconclusive", "was not measured: its audit was skipped")
    after, before = comparison.after, comparison.before
    if not _known(after.value):
        return _verdict(gate, "inconclusive", _unmeasured("has no value", after.note))
    value, n, bound = after.value, after.n, gate.bound.value
    if gate.needs_before:
        if before is None or not _known(before.value) or not _known(comparison.difference):
            return _verdict(gate, "inconclusive", "has no value before the edits to compare with")
        assert before is not None
        value = comparison.difference
        n = comparison.n_pairs or min(before.n, after.n)
        if gate.bound.relative:
            bound *= abs(before.value or 0.0)
        if gate.kind in ("max_decrease", "min_decrease"):
            bound = -bound
    if n < gate.min_n:
        reason = f"rests on {n} independent {_items(n)}, fewer than the {gate.min_n} asked for"
        return _verdict(gate, "inconclusive", reason, value, bound)
    assert value is not None
    figure = f"changed by {value:+.4g}" if gate.needs_before else f"is {value:.4g}"
    if gate.confidence is None:
        inside = _inside(value, bound, gate.lower_is_inside)
        reason = f"{figure}, {_relation(value, bound)} the bound {bound:.4g}"
        return _verdict(gate, "pass" if inside else "fail", reason, value, bound)
    interval = _interval(comparison, gate)
    if interval is None:
        reason = f"{figure}, but has no interval at {gate.confidence:g}"
        return _verdict(gate, "inconclusive", reason, value, bound)
    ends = [_inside(end, bound, gate.lower_is_inside) for end in (interval.low, interval.high)]
    status: Status = "pass" if all(ends) else "inconclusive" if any(ends) else "fail"
    where = {"pass": "inside", "fail": "outside", "inconclusive": "on both sides of"}[status]
    reason = (
        f"{figure}; its {interval.level:.4g} interval [{interval.low:.4g}, {interval.high:.4g}] "
        f"lies {where} the bound {bound:.4g}"
    )
    return _verdict(gate, status, reason, value, bound)


def overall(verdicts: Iterable[Verdict]) -> tuple[Status, int]:
    """The run's status and exit code: any fail fails, else any inconclusive is inconclusive.

    No gates at all pass: nothing was asked, so nothing was missed. Whether a policy may
    export without a gate is for the plan to decide, before anything runs.
    """
    found = {verdict.status for verdict in verdicts}
    worst: Status = "fail" if "fail" in found else "inconclusive" if found - {"pass"} else "pass"
    return worst, EXIT_CODES[worst]


def describe(gate: GateSpec) -> str:
    """The gate in one line: ``leakage.extraction_rate max 0.02 at confidence 0.95``."""
    return f"{gate.metric} {gate.condition}"


def _interval(comparison: Comparison, gate: GateSpec) -> Interval | None:
    """The interval the gate asks for, at its own confidence."""
    level = gate.confidence
    assert level is not None
    if not gate.needs_before:
        return interval_at(comparison.after, level)
    found = comparison.difference_interval
    if found is None or math.isclose(found.level, level):
        return found
    return compare(comparison.before, comparison.after, level).difference_interval


def _inside(value: float, bound: float, lower_is_inside: bool) -> bool:
    return _equal(value, bound) or (value < bound) == lower_is_inside


def _relation(value: float, bound: float) -> str:
    return "exactly on" if _equal(value, bound) else "below" if value < bound else "above"


def _equal(value: float, bound: float) -> bool:
    # 0.8 - 0.7 is 0.10000000000000009; the bound it was meant to meet is 0.1.
    return math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _unmeasured(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text


def _items(n: int) -> str:
    return "item" if n == 1 else "items"


def _verdict(
    gate: GateSpec,
    status: Status,
    reason: str,
    value: float | None = None,
    bound: float | None = None,
) -> Verdict:
    return Verdict(
        metric=gate.metric,
        condition=gate.condition,
        status=status,
        reason=f"{gate.metric} {reason}",
        value=value,
        bound=bound,
    )
