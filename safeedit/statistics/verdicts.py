"""Gates: three-valued judgements on measured metrics. Pure; no torch, no model, no data.

A gate passes, fails or is inconclusive:

- too few independent items (``min_n``), nothing measured, an audit skipped, or a percentage of a
  value that was 0 before the edits: inconclusive; a count over all items that there are
  (:func:`safeedit.statistics.metrics.census_metric`) needs no number of them;
- without ``confidence`` the point estimate is held against the bound;
- with it the whole interval must lie inside (pass) or outside (fail); if it straddles the
  bound the gate is inconclusive.

What each kind is held against is said in :mod:`safeedit.policy.gate`: ``min`` and ``max`` read the
metric after the edits, the others its change, over paired items where there are any; percentages
are shares of the value before. Exactly on the bound is inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from safeedit.records import (
    AttackPoint,
    AttackRecord,
    Comparison,
    Interval,
    Status,
    Verdict,
)
from safeedit.statistics.metrics import compare, interval_at

if TYPE_CHECKING:
    from safeedit.policy.gate import GateMeaning, GateSpec

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
    meaning = gate.meaning
    value, n, bound = after.value, after.n, meaning.sign * gate.bound.value
    start = 0.0
    if meaning.of_change:
        if before is None or not _known(before.value) or not _known(comparison.difference):
            return _verdict(gate, "inconclusive", "has no value before the edits to compare with")
        assert before is not None
        assert before.value is not None
        value, start = comparison.difference, before.value
        n = comparison.n_pairs or min(before.n, after.n)
        if gate.bound.relative:
            if before.value == 0:
                reason = f"was 0 before the edits: {gate.bound} of nothing is no bound"
                return _verdict(gate, "inconclusive", reason, value)
            bound *= abs(before.value)
    assert value is not None
    figure = f"changed by {value:+.4g}" if meaning.of_change else f"is {value:.4g}"
    if n < gate.min_n and not after.trials:
        status: Status = "inconclusive"
        reason = f"rests on {n} independent {_items(n)}, fewer than the {gate.min_n} asked for"
    elif gate.confidence is None:
        status = "pass" if _inside(value, bound, meaning) else "fail"
        reason = f"{figure}, {_relation(value, bound)} the bound {bound:.4g}"
        if after.trials and not meaning.of_change:
            reason += f": {after.note}"
    elif (interval := _interval(comparison, gate)) is None:
        status, reason = "inconclusive", f"{figure}, but has no interval at {gate.confidence:g}"
        if after.trials:
            reason += ": it counts all items that there are, so leave 'confidence' out"
    else:
        ends = [_inside(end, bound, meaning) for end in (interval.low, interval.high)]
        status = "pass" if all(ends) else "inconclusive" if any(ends) else "fail"
        where = {"pass": "inside", "fail": "outside", "inconclusive": "on both sides of"}[status]
        reason = (
            f"{figure}; its {interval.level:.4g} interval [{interval.low:.4g}, "
            f"{interval.high:.4g}] lies {where} the bound {bound:.4g}"
        )
    return _verdict(gate, status, reason, value, bound, start + bound)


def judge_under(gate: GateSpec, name: str, attack: AttackRecord | None) -> Verdict:
    """Hold a metric against a gate under an attack: it must hold at every strength and seed.

    Args:
        gate: The condition.
        name: Id of the attack.
        attack: What it gave; None where it was not made. A change is one from the untouched
            model under the same attack.

    Returns:
        The worst verdict of all points, with the point in its reason.
    """
    if attack is None or not attack.points:
        why = f": it failed {attack.failed}" if attack is not None and attack.failed else ""
        reason = f"was not measured under {name}{why}"
        return _under(gate, name, _verdict(gate, "inconclusive", reason))
    judged = [_at_point(gate, name, point) for point in attack.points]
    side = 1.0 if gate.meaning.passes == "below" else -1.0

    def badness(verdict: Verdict) -> tuple[int, float]:
        value = verdict.value if verdict.value is not None else -side * math.inf
        return _WORST.index(verdict.status), side * value

    worst = max(judged, key=badness)
    if attack.failed and worst.status == "pass":
        reason = f"{gate.metric} was not measured at every strength of {name}: {attack.failed}"
        worst = worst.model_copy(update={"status": "inconclusive", "reason": reason})
    return worst


_WORST: tuple[Status, ...] = ("pass", "inconclusive", "fail")


def _at_point(gate: GateSpec, name: str, point: AttackPoint) -> Verdict:
    found = {metric.name: metric for metric in point.edited}
    base = {metric.name: metric for metric in point.base}
    metric = found.get(gate.metric)
    verdict = judge(gate, None if metric is None else compare(base.get(gate.metric), metric))
    reason = verdict.reason.removeprefix(f"{gate.metric} ")
    told = f"{gate.metric} under {name} ({point.label}) {reason}"
    return _under(gate, name, verdict.model_copy(update={"reason": told}))


def _under(gate: GateSpec, name: str, verdict: Verdict) -> Verdict:
    return verdict.model_copy(update={"under": name, "condition": gate.condition_under(name)})


def overall(verdicts: Iterable[Verdict]) -> tuple[Status, int]:
    """The run's status and exit code: any fail fails, else any inconclusive is inconclusive.

    No gates at all pass: nothing was asked, so nothing was missed. Whether a policy may
    export without a gate is for the plan to decide, before anything runs.
    """
    found = {verdict.status for verdict in verdicts}
    worst: Status = "fail" if "fail" in found else "inconclusive" if found - {"pass"} else "pass"
    return worst, EXIT_CODES[worst]


def _interval(comparison: Comparison, gate: GateSpec) -> Interval | None:
    """The interval the gate asks for, at its own confidence."""
    level = gate.confidence
    assert level is not None
    if not gate.meaning.of_change:
        return interval_at(comparison.after, level)
    found = comparison.difference_interval
    if found is None or math.isclose(found.level, level):
        return found
    return compare(comparison.before, comparison.after, level).difference_interval


def _inside(value: float, bound: float, meaning: GateMeaning) -> bool:
    return _equal(value, bound) or meaning.inside(value, bound)


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
    bound_on_metric: float | None = None,
) -> Verdict:
    return Verdict(
        metric=gate.metric,
        condition=gate.condition,
        kind=gate.kind,
        of_change=gate.meaning.of_change,
        passes=gate.meaning.passes,
        confidence=gate.confidence,
        status=status,
        reason=f"{gate.metric} {reason}",
        value=value,
        bound=bound,
        bound_on_metric=bound_on_metric,
    )
