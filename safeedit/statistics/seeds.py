"""One policy run with several seeds: what its gates say of all of them, and how far figures spread.

Another seed is another division of the data, other random choices of the editor, another dose where
that is chosen. Under ``worst`` a gate is the worst of its verdicts. Under ``mean`` the mean of what
was held against the bounds is held against the mean of the bounds, and of intervals the mean of
their ends: seeds share most of their items, so that items drawn otherwise would move all of them,
and averaging makes that error no smaller. The exported checkpoint is that of the first seed, which
must pass by itself whatever the mean is. Pure; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from safeedit.records import Interval, Metric, RunRecord, SeedVerdict, Status, Verdict
from safeedit.statistics.verdicts import badness, gap, meets, relation, unsure

if TYPE_CHECKING:
    from safeedit.policy.gate import GateSpec


def over_seeds(gate: GateSpec, verdicts: Mapping[int, Verdict]) -> Verdict:
    """What a gate says of several seeds together.

    Args:
        gate: The condition.
        verdicts: Seed -> what it says of the run with it; that of the checkpoint first.
    """
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    first, *_ = verdicts
    found = _mean(gate, first, verdicts) if gate.over_seeds == "mean" else _worst(gate, verdicts)
    by_seed = tuple(
        SeedVerdict(
            seed=seed,
            status=verdict.status,
            reason=verdict.reason,
            value=verdict.value,
            bound=verdict.bound,
            bound_on_metric=verdict.bound_on_metric,
        )
        for seed, verdict in verdicts.items()
    )
    return found.model_copy(update={"by_seed": by_seed})


def all_over_seeds(
    gates: Sequence[GateSpec], found: Mapping[int, Sequence[Verdict]]
) -> tuple[Verdict, ...]:
    """What every gate says of several seeds together, under each of its attacks.

    Args:
        gates: Those of the run, in order.
        found: Seed -> what they say of the run with it, in the same order; that of the checkpoint
            first.
    """
    asked = [gate for gate in gates for _ in gate.under or ("",)]
    return tuple(
        over_seeds(gate, {seed: verdicts[place] for seed, verdicts in found.items()})
        for place, gate in enumerate(asked)
    )


def _worst(gate: GateSpec, verdicts: Mapping[int, Verdict]) -> Verdict:
    seed = max(verdicts, key=lambda each: badness(gate, verdicts[each]))
    return _told(gate, verdicts[seed], f"with seed {seed}, the worst of {len(verdicts)}")


def _mean(gate: GateSpec, first: int, verdicts: Mapping[int, Verdict]) -> Verdict:
    """The mean over the seeds, once the first passes by itself and every one says something."""
    if verdicts[first].status != "pass":
        return _told(gate, verdicts[first], f"with seed {first}, which the checkpoint is of")
    for seed, each in verdicts.items():
        if each.status == "inconclusive" and each.interval is None:
            told = _told(gate, each, f"with seed {seed}, so that there is no mean")
            return unsure(told, told.reason)
    value = fmean(_known(each.value) for each in verdicts.values())
    bound = fmean(_known(each.bound) for each in verdicts.values())
    on_metric = fmean(_known(each.bound_on_metric) for each in verdicts.values())
    figure = f"{'changed by' if gate.meaning.of_change else 'is'} {value:.4g} in the mean over "
    figure += f"{len(verdicts)} seeds"
    interval, near = _mean_interval([each.interval for each in verdicts.values()]), None
    if interval is None:
        status: Status = "pass" if meets(value, bound, gate.meaning) else "fail"
        reason = f"{figure}, {relation(value, bound)} the bound {bound:.4g}"
    else:
        ends = [meets(end, bound, gate.meaning) for end in (interval.low, interval.high)]
        status = "pass" if all(ends) else "inconclusive" if any(ends) else "fail"
        near = gap(interval, bound)
        reason = (
            f"{figure}; the mean of their intervals, [{interval.low:.4g}, {interval.high:.4g}], "
            f"lies {_WHERE[status]} the bound {bound:.4g}"
        )
    return verdicts[first].model_copy(
        update={
            "status": status,
            "reason": f"{gate.metric} {reason}",
            "value": value,
            "bound": bound,
            "bound_on_metric": on_metric,
            "nearness": near,
            "interval": interval,
        }
    )


_WHERE: dict[Status, str] = {
    "pass": "inside",
    "fail": "outside",
    "inconclusive": "on both sides of",
}


def _told(gate: GateSpec, verdict: Verdict, which: str) -> Verdict:
    reason = verdict.reason.removeprefix(f"{gate.metric} ")
    return verdict.model_copy(update={"reason": f"{gate.metric} {which}: {reason}"})


def _known(value: float | None) -> float:
    assert value is not None, "a verdict that is none for want of a figure is inconclusive"
    return value


def _mean_interval(intervals: Sequence[Interval | None]) -> Interval | None:
    found = [each for each in intervals if each is not None]
    if not found or len(found) < len(intervals):
        return None
    return Interval(
        low=fmean(each.low for each in found),
        high=fmean(each.high for each in found),
        level=found[0].level,
        method=f"mean over seeds, {found[0].method}",
    )


@dataclass(frozen=True)
class Spread:
    """One figure of the runs with several seeds."""

    values: tuple[float | None, ...]
    """In the order of the seeds; None where it has no value."""

    @property
    def known(self) -> tuple[float, ...]:
        """Those that are numbers."""
        return tuple(each for each in self.values if each is not None and math.isfinite(each))

    @property
    def mean(self) -> float | None:
        return fmean(self.known) if self.known else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; None of fewer than two."""
        return stdev(self.known) if len(self.known) > 1 else None

    @property
    def least(self) -> float | None:
        return min(self.known, default=None)

    @property
    def greatest(self) -> float | None:
        return max(self.known, default=None)


def spreads(runs: Sequence[RunRecord]) -> dict[str, Spread]:
    """Every figure after the edits, by full name; those under attacks as ``NAME under ATTACK,
    STRENGTH``, each at the attack's own seeds' mean; and the dose of every edit.

    Args:
        runs: One record for each seed.
    """
    found = [_figures(run) for run in runs]
    names = dict.fromkeys(name for figures in found for name in figures)
    return {name: Spread(tuple(figures.get(name) for figures in found)) for name in names}


def _figures(run: RunRecord) -> dict[str, float | None]:
    found: dict[str, float | None] = {f"dose of {edit.id}": edit.dose for edit in run.edits}
    found |= {metric.name: metric.value for audit in run.after for metric in audit.metrics}
    attacked: dict[str, list[float | None]] = {}
    for attack in run.attacks:
        for point in attack.points:
            for metric in point.edited:
                name = f"{metric.name} under {attack.id}, {point.label}"
                attacked.setdefault(name, []).append(metric.value)
    return found | {name: Spread(tuple(values)).mean for name, values in attacked.items()}


def mean_of(metrics: Sequence[Metric]) -> Metric:
    """The mean over seeds of one metric, with the mean of the intervals; without items.

    Args:
        metrics: One for each seed, at least one.
    """
    first = metrics[0]
    if len(metrics) == 1:
        return first
    known = [each for each in metrics if each.value is not None]
    return first.model_copy(
        update={
            "value": Spread(tuple(each.value for each in metrics)).mean,
            "interval": _mean_interval([each.interval for each in known]),
            "n": min(each.n for each in metrics),
            "items": {}, "weights": {}, "groups": {}, "positions": {}, "axis": "", "trials": {},
        }
    )  # fmt: skip
