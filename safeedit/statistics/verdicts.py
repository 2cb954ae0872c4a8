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
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from safeedit.records import (
    AttackPoint,
    AttackRecord,
    Comparison,
    EditRecord,
    Interval,
    Metric,
    Nearness,
    Status,
    Verdict,
)
from safeedit.statistics.metrics import compare, interval_at

if TYPE_CHECKING:
    from safeedit.policy.gate import GateMeaning, GateSpec

EXIT_CODES: dict[Status, int] = {"pass": 0, "fail": 1, "inconclusive": 4}


def verdicts_on(
    gate: GateSpec,
    comparisons: Mapping[str, Comparison],
    edits: Sequence[EditRecord],
    attacks: Sequence[AttackRecord],
) -> list[Verdict]:
    """All that a gate says of a run: one verdict, or one for each attack it names.

    Args:
        gate: The condition.
        comparisons: Full name of a metric -> before and after the edits.
        edits: Those of the run, with their controls.
        attacks: Those of the run.
    """
    if gate.under:
        made = {attack.id: attack for attack in attacks}
        return [judge_under(gate, name, made.get(name)) for name in gate.under]
    comparison = comparisons.get(gate.metric)
    if gate.against:
        return [judge_against(gate, comparison.after if comparison else None, edits)]
    return [judge(gate, comparison)]


def judge(gate: GateSpec, comparison: Comparison | None, *, beside: str = "") -> Verdict:
    """Hold a metric against one gate.

    Args:
        gate: The condition.
        comparison: Its metric before and after; None where it was not measured.
        beside: The control whose metric stands for that before the edits, in words; empty where
            it is that.

    Returns:
        The verdict, with a reason in words that names the metric and both figures.
    """
    if comparison is None:
        return _verdict(gate, "inconclusive", "was not measured: its audit was skipped")
    after, before = comparison.after, comparison.before
    if not _known(after.value):
        return _verdict(gate, "inconclusive", _unmeasured("has no value", after.note))
    held_against = f"with the {beside}" if beside else "before the edits"
    meaning = gate.meaning
    value, n, bound = after.value, after.n, meaning.sign * gate.bound.value
    start = 0.0
    if meaning.of_change:
        if before is None or not _known(before.value) or not _known(comparison.difference):
            return _verdict(gate, "inconclusive", f"has no value {held_against} to compare with")
        assert before is not None
        assert before.value is not None
        value, start = comparison.difference, before.value
        n = comparison.n_pairs or min(before.n, after.n)
        if gate.bound.relative:
            if before.value == 0:
                reason = f"was 0 {held_against}: {gate.bound} of nothing is no bound"
                return _verdict(gate, "inconclusive", reason, value)
            bound *= abs(before.value)
    assert value is not None
    change = "differs" if beside else "changed"
    figure = f"{change} by {value:+.4g}" if meaning.of_change else f"is {value:.4g}"
    near: Nearness | None = None
    interval: Interval | None = None
    if n < gate.min_n and not after.trials:
        status: Status = "inconclusive"
        reason = f"rests on {n} independent {_items(n)}, fewer than the {gate.min_n} asked for"
    elif gate.confidence is None:
        status = "pass" if meets(value, bound, meaning) else "fail"
        reason = f"{figure}, {relation(value, bound)} the bound {bound:.4g}"
        if after.trials and not meaning.of_change:
            reason += f": {after.note}"
        near = nearness(comparison, meaning, value, bound)
    else:
        interval = _interval(comparison, gate)
        status, told = _interval_says(gate, comparison, interval, bound)
        reason, near = f"{figure}{told}", gap(interval, bound)
    verdict = _verdict(gate, status, reason, value, bound, start + bound)
    return verdict.model_copy(update={"nearness": near, "interval": interval})


def _interval_says(
    gate: GateSpec, comparison: Comparison, interval: Interval | None, bound: float
) -> tuple[Status, str]:
    """On which side of the bound a whole interval lies, and that in words."""
    if interval is None:
        told = f", but has no interval at {gate.confidence:g}"
        if comparison.after.trials:
            told += ": it counts all items that there are, so leave 'confidence' out"
        return "inconclusive", told
    ends = [meets(end, bound, gate.meaning) for end in (interval.low, interval.high)]
    status: Status = "pass" if all(ends) else "inconclusive" if any(ends) else "fail"
    where = {"pass": "inside", "fail": "outside", "inconclusive": "on both sides of"}[status]
    return status, (
        f"; its {interval.level:.4g} interval [{interval.low:.4g}, {interval.high:.4g}] lies "
        f"{where} the bound {bound:.4g}"
    )


def judge_against(gate: GateSpec, after: Metric | None, edits: Sequence[EditRecord]) -> Verdict:
    """Hold a metric's distance from that of random changes against a gate: it must hold beside each
    of them.

    Args:
        gate: The condition.
        after: The metric of the edited model; None where it was not measured.
        edits: Those of the run; the random controls of the one that the gate names, or of the only
            one that has any, are what it is held against.

    Returns:
        The worst verdict of all draws, with the draw in its reason.
    """
    drawn = [
        control
        for edit in edits
        for control in edit.controls
        if control.random and gate.in_place_of in ("", edit.id)
    ]
    if not drawn:
        verdict = _verdict(gate, "inconclusive", "was not measured: no random change was made")
        return verdict.model_copy(update={"against": gate.against})
    judged = []
    for control in drawn:
        found = {metric.name: metric for metric in control.metrics}
        comparison = None if after is None else compare(found.get(gate.metric), after)
        verdict = judge(gate, comparison, beside=control.name)
        reason = verdict.reason.removeprefix(f"{gate.metric} ")
        told = f"{gate.metric} against {control.name}, seed {control.seed}: {reason}"
        judged.append(verdict.model_copy(update={"reason": told, "against": gate.against}))
    return max(judged, key=lambda verdict: badness(gate, verdict))


def nearness(
    comparison: Comparison, meaning: GateMeaning, value: float, bound: float
) -> Nearness | None:
    """How little would turn a verdict on a point estimate.

    Args:
        comparison: The metric, before and after.
        meaning: Of the gate.
        value: What was held against the bound.
        bound: On the same scale.
    """
    after = comparison.after
    if after.unit == "rate" and after.items and not after.weights:
        keys = set(after.items)
        if meaning.of_change and comparison.before is not None:
            keys &= comparison.before.items.keys()
        if keys and {after.items[key] for key in keys} <= {0, 1}:
            steps = abs(value - bound) * len(keys)
            # On the bound passes: what passes must go beyond it, what fails only there.
            passes = meets(value, bound, meaning)
            turning = math.floor(steps + 1e-9) + 1 if passes else math.ceil(steps - 1e-9)
            rises = passes == (meaning.passes == "below")
            holding = sum(after.items[key] for key in keys) + (turning if rises else -turning)
            possible = 0 <= holding <= len(keys)
            return Nearness(items=turning, of=len(keys)) if possible else None
    return gap(comparison.difference_interval if meaning.of_change else after.interval, bound)


def gap(interval: Interval | None, bound: float) -> Nearness | None:
    """How far a bound is outside of an interval; None where that says nothing."""
    if interval is None or interval.high <= interval.low:
        return None
    outside = max(interval.low - bound, bound - interval.high, 0.0)
    return Nearness(gap=outside / (interval.high - interval.low))


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
    worst = max(judged, key=lambda verdict: badness(gate, verdict))
    if attack.failed and worst.status == "pass":
        reason = f"{gate.metric} was not measured at every strength of {name}: {attack.failed}"
        worst = unsure(worst, reason)
    return worst


_WORST: tuple[Status, ...] = ("pass", "inconclusive", "fail")


def badness(gate: GateSpec, verdict: Verdict) -> tuple[int, float]:
    """By which the worst of several verdicts of one gate is the greatest: how far beyond its own
    bound each is, for percentages are of different values."""
    side = 1.0 if gate.meaning.passes == "below" else -1.0
    if verdict.value is None:
        return _WORST.index(verdict.status), -math.inf
    return _WORST.index(verdict.status), side * (verdict.value - (verdict.bound or 0.0))


def unsure(verdict: Verdict, reason: str) -> Verdict:
    """A verdict made inconclusive, whatever its figures say."""
    return verdict.model_copy(update={"status": "inconclusive", "reason": reason, "interval": None})


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


def meets(value: float, bound: float, meaning: GateMeaning) -> bool:
    """Whether a value is on the passing side of a bound, or on it."""
    return _equal(value, bound) or meaning.inside(value, bound)


def relation(value: float, bound: float) -> str:
    """Where a value lies by a bound, in words."""
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
