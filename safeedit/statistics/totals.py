"""Metrics that are functions of sums over independent units: regressions, gaps, ratios of either.

Every unit (a profession with all its sentences) brings a row of sums; the statistic is a function
of their total that does not change when every sum is doubled. Resampling units is then adding
rows, and each unit has an *influence*: the value plus ``k`` times the statistic's gradient at the
total times the unit's row. The mean of the influences is the value, so that such metrics pair up,
before and after an edit, like means over items do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from safeedit.records import Direction, Metric
from safeedit.statistics.intervals import Floats, bootstrap_totals

Statistic = Callable[[Floats], Floats]
"""Maps totals ``(..., p)`` to ``(...)``."""

_STEP = 1e-6


def totals_metric(
    name: str,
    keys: Sequence[str],
    totals: Floats,
    statistic: Statistic,
    unit: str,
    direction: Direction,
    *,
    note: str = "",
    undefined: str = "the statistic is not defined on this data",
) -> Metric:
    """A statistic of sums with its bootstrap interval, and each unit's influence as items.

    A resample on which the statistic is not defined (a side without sentences) counts as one that
    gives the value itself.

    Args:
        name: Name of the metric.
        keys: ``(k,)`` digests of the units.
        totals: ``(k, p)`` sums over the items of each unit.
        statistic: Of their total; homogeneous of degree 0.
        unit: Unit of the statistic.
        direction: Which way is better.
        note: Kept in the metric.
        undefined: The note where the statistic is not a number: why that may be.
    """

    def quiet(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return statistic(sums)

    whole = totals.sum(axis=0)
    value = float(quiet(whole)) if len(keys) else float("nan")
    if not np.isfinite(value):
        return Metric(
            name=name, value=None, interval=None, n=0, unit=unit, direction=direction,
            note="; ".join(filter(None, (note, undefined))),
        )  # fmt: skip

    def defined(sums: Floats) -> Floats:
        found = quiet(sums)
        return np.where(np.isfinite(found), found, value)

    influences = value + _influences(totals, whole, defined)
    return Metric(
        name=name,
        value=value,
        interval=bootstrap_totals(totals, defined) if len(keys) > 1 else None,
        n=len(keys),
        unit=unit,
        direction=direction,
        items=dict(zip(keys, influences.tolist(), strict=True)),
        note=note,
    )


def _influences(totals: Floats, whole: Floats, statistic: Statistic) -> Floats:
    """``(k,)``, with mean 0: what each unit adds to the statistic, to first order."""
    steps = _STEP * np.maximum(np.abs(whole), np.sqrt((totals**2).sum(axis=0)))
    moves = np.diag(steps)
    change = statistic(whole + moves) - statistic(whole - moves)
    gradient = np.divide(change, 2 * steps, out=np.zeros_like(steps), where=steps > 0)
    found: Floats = len(totals) * (totals @ gradient)
    return found - found.mean()


def abs_ratio(statistic: Statistic) -> Statistic:
    """``|statistic now| / |statistic before|`` of totals that hold both, side by side."""

    def ratio(sums: Floats) -> Floats:
        half = sums.shape[-1] // 2
        return np.abs(statistic(sums[..., :half])) / np.abs(statistic(sums[..., half:]))

    return ratio


def ratio(statistic: Statistic) -> Statistic:
    """``statistic now / statistic before`` of totals that hold both, side by side."""

    def found(sums: Floats) -> Floats:
        half = sums.shape[-1] // 2
        return statistic(sums[..., :half]) / statistic(sums[..., half:])

    return found


# -- Least squares ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """Least squares of y on one or two variables and a constant, each ``(...)``.

    Attributes:
        first: Slope of the first variable, in units of y per unit of it.
        second: Slope of the second.
        intercept: Value at 0.
        r2: Share of the variance of y that is explained.
    """

    first: Floats
    second: Floats
    intercept: Floats
    r2: Floats


def moments(first: Floats, second: Floats, y: Floats) -> Floats:
    """``(n, 10)``: what :func:`least_squares` needs summed, of each item.

    Args:
        first: ``(n,)``.
        second: ``(n,)``; zeros where there is no second variable.
        y: ``(n,)``.
    """
    one = np.ones_like(y)
    columns = (one, first, second, y, first**2, first * second, second**2,
               first * y, second * y, y**2)  # fmt: skip
    return np.stack(columns, axis=-1)


def least_squares(sums: Floats) -> Fit:
    """The fit to items whose :func:`moments` were summed.

    A variable that never varies has slope 0; two that vary as one leave nothing defined (NaN).

    Args:
        sums: ``(..., 10)``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        n, a, b, y, aa, ab, bb, ay, by, yy = np.moveaxis(sums, -1, 0)
        caa, cab, cbb = aa - a * a / n, ab - a * b / n, bb - b * b / n
        cay, cby, cyy = ay - a * y / n, by - b * y / n, yy - y * y / n
        tiny = 1e-12
        no_a, no_b = caa <= tiny * np.maximum(aa, tiny), cbb <= tiny * np.maximum(bb, tiny)
        determinant = caa * cbb - cab * cab
        determinant = np.where(determinant > tiny * caa * cbb, determinant, np.nan)
        first = np.where(no_b, cay / caa, (cay * cbb - cby * cab) / determinant)
        second = np.where(no_a, cby / cbb, (cby * caa - cay * cab) / determinant)
        first, second = np.where(no_a, 0.0, first), np.where(no_b, 0.0, second)
        intercept = (y - first * a - second * b) / n
        return Fit(first, second, intercept, (first * cay + second * cby) / cyy)
