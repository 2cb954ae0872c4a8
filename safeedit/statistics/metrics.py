"""Metrics with honest intervals, and the same metric before and after.

Auditors make metrics with :func:`rate_metric`, :func:`mean_metric` and
:func:`statistic_metric` from values per item under keyed digests; :func:`compare` pairs two
metrics by those keys. Where several items are not independent (phrasings of one fact), give
``groups``: ``n`` then counts groups and the interval allows for it, however many items were
measured.

Values that are not finite are never averaged over: the metric's value is None, with a note,
and a gate on it is inconclusive. Fails with :class:`~safeedit.errors.UsageError` on rates
outside [0, 1], weights that are not positive and groups that miss an item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from safeedit.errors import UsageError
from safeedit.records import BOUNDS, Comparison, Direction, Interval, Metric
from safeedit.statistics.intervals import (
    NORMAL,
    Codes,
    Floats,
    bootstrap,
    bootstrap_totals,
    mcnemar,
    normal_interval_at,
    paired_rate_difference,
    rate_interval,
    unpaired_difference,
    wilcoxon,
    wilson,
)

LEVEL = 0.95


def rate_metric(
    name: str,
    items: Mapping[str, bool | float],
    unit: str,
    direction: Direction,
    *,
    groups: Mapping[str, str] | None = None,
    level: float = LEVEL,
    note: str = "",
) -> Metric:
    """The share of items for which something holds, with Wilson's interval.

    Args:
        name: Name of the metric.
        items: Digest of the item -> whether it holds, or how far (between 0 and 1).
        unit: Usually ``rate``.
        direction: Which way is better.
        groups: Digest of the item -> digest of its group, where items are not independent.
        level: Confidence of the interval.
        note: Kept in the metric.
    """
    metric = _empty(name, items, unit, direction, groups, None, note)
    if any(not 0 <= value <= 1 for value in metric.items.values()):
        raise UsageError(f"{name}: the values of a rate lie between 0 and 1")
    if not _measurable(metric, items):
        return metric
    interval = rate_interval_of(metric, level)
    return metric.model_copy(update={"value": _mean(metric), "interval": interval})


def mean_metric(
    name: str,
    items: Mapping[str, float],
    unit: str,
    direction: Direction,
    *,
    weights: Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
    level: float = LEVEL,
    note: str = "",
) -> Metric:
    """The mean over items, with a BCa bootstrap interval.

    Args:
        name: Name of the metric.
        items: Digest of the item -> value in ``unit``.
        unit: ``nats``, ``tokens`` ...
        direction: Which way is better.
        weights: Digest of the item -> weight; with nats per token weighted by tokens the
            value is nats per token over all texts, a ratio of sums.
        groups: Digest of the item -> digest of its group, where items are not independent.
        level: Confidence of the interval.
        note: Kept in the metric.
    """
    metric = _empty(name, items, unit, direction, groups, weights, note)
    if not _measurable(metric, items):
        return metric
    interval = mean_interval_of(metric, level)
    return metric.model_copy(update={"value": _mean(metric), "interval": interval})


def statistic_metric(
    name: str,
    items: Mapping[str, float],
    statistic: Callable[[Floats], Floats],
    unit: str,
    direction: Direction,
    *,
    groups: Mapping[str, str] | None = None,
    level: float = LEVEL,
    note: str = "",
) -> Metric:
    """Any statistic over items (a median rank ...), with a BCa bootstrap interval.

    Args:
        name: Name of the metric.
        items: Digest of the item -> value.
        statistic: Maps ``(..., n)`` to ``(...)``, e.g. ``lambda x: np.median(x, axis=-1)``.
        unit: Unit of the statistic.
        direction: Which way is better.
        groups: Digest of the item -> digest of its group, where items are not independent.
        level: Confidence of the interval.
        note: Kept in the metric.
    """
    metric = _empty(name, items, unit, direction, groups, None, note)
    if not _measurable(metric, items):
        return metric
    keys = sorted(metric.items)
    values = _values(metric, keys)
    interval = None
    if metric.n > 1:
        interval = bootstrap(statistic, values, groups=_codes(metric, keys), level=level)
    return metric.model_copy(update={"value": float(statistic(values)), "interval": interval})


def census_metric(
    name: str,
    items: Mapping[str, float],
    unit: str,
    direction: Direction,
    *,
    trials: Mapping[str, int],
    groups: Mapping[str, str] | None = None,
    level: float = LEVEL,
    note: str = "",
) -> Metric:
    """How many of the items there are something holds for.

    The items are no sample: the request of one person has three facts, and all three were tried.
    What was sampled are the ways of trying, so the count has no interval; its note says in how many
    ways, and what the same count would say of a rate over items like these.

    Args:
        name: Name of the metric.
        items: Digest of the item -> 1 where it holds, 0 where it does not, NaN where nobody knows.
        unit: Usually ``items``.
        direction: Which way is better.
        trials: Digest of the item -> in how many ways it was tried.
        groups: Digest of the item -> digest of its group, where items are not independent.
        level: Confidence of the rate's upper end.
        note: Why a count of 0 must not be relied on; empty where it can be. With it, and where
            nobody knows of some items, a count of 0 has no value; a count of more has one always.
    """
    if items.keys() - trials.keys():
        raise UsageError(f"{name}: trials are missing for some items")
    found = sum(value == 1 for value in items.values())
    finite = {key: value for key, value in items.items() if math.isfinite(value)}
    metric = rate_metric(name, finite, unit, direction, groups=groups, level=level)
    own = {key: trials[key] for key in metric.items}
    if not items or (not found and (note or len(finite) < len(items))):
        why = "of some items nobody knows" if items else "there are no items"
        return Metric(
            name=name, value=None, interval=None, n=0, unit=unit, direction=direction,
            note=note or why,
        )  # fmt: skip
    fewest, most = min(own.values()), max(own.values())
    ways = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    said = f"{found} of {len(items)} items told in {ways} askings each"
    if metric.interval is not None:
        said += f"; as a rate over items like these: at most {metric.interval.high:.2g}"
    update = {"value": float(found), "interval": None, "trials": own}
    return metric.model_copy(update=update | {"note": "; ".join(filter(None, (said, note)))})


def exponential_metric(
    name: str,
    items: Mapping[str, float],
    unit: str,
    direction: Direction,
    *,
    weights: Mapping[str, float],
    groups: Mapping[str, str] | None = None,
    note: str = "",
) -> Metric:
    """``exp`` of a weighted mean (perplexity, of nats per token), with a bootstrap interval.

    Its items are the exponentials of each item's own value.

    Args:
        name: Name of the metric.
        items: Digest of the item -> mean of its logarithms.
        unit: ``perplexity``, ``ratio`` ...
        direction: Which way is better.
        weights: Digest of the item -> weight, e.g. tokens.
        groups: Digest of the item -> digest of its group, where items are not independent.
        note: Kept in the metric.
    """
    if not all(map(math.isfinite, items.values())):
        return Metric(
            name=name, value=None, interval=None, n=0, unit=unit, direction=direction,
            note="; ".join(filter(None, (note, "some values are not finite"))),
        )  # fmt: skip
    keys = sorted(items)
    w = np.array([weights[key] for key in keys])
    totals = np.stack([np.array([items[key] for key in keys]) * w, w], axis=1)

    def exponential(sums: Floats) -> Floats:
        # Capped: a ruined model reads at 1e304, which no gate mistakes for a good one.
        return np.exp(np.minimum(sums[..., 0] / sums[..., 1], 700.0))

    units = totals
    if groups is not None:
        _, codes = np.unique([groups[key] for key in keys], return_inverse=True)
        units = np.stack([np.bincount(codes, column) for column in totals.T], axis=1)
    interval = bootstrap_totals(units, exponential) if len(units) > 1 else None
    return Metric(
        name=name,
        value=float(exponential(totals.sum(axis=0))),
        interval=interval,
        n=len(units),
        unit=unit,
        direction=direction,
        groups={key: groups[key] for key in keys} if groups is not None else {},
        items={key: math.exp(min(items[key], 700.0)) for key in keys},
        weights=dict(weights),
        note=note,
    )


def rate_interval_of(metric: Metric, level: float) -> Interval | None:
    """Wilson's interval of a rate at any level; from value and n where it has no items."""
    if not metric.items:
        if metric.value is None or metric.n < 1:
            return None
        return wilson(metric.value * metric.n, metric.n, level)
    keys = sorted(metric.items)
    return rate_interval(_values(metric, keys), _codes(metric, keys), level)


def mean_interval_of(metric: Metric, level: float) -> Interval | None:
    """Bootstrap interval of a (weighted) mean at any level; None with fewer than two units."""
    if metric.n < 2 or not metric.items:
        return None
    keys = sorted(metric.items)
    totals = _totals(metric, keys, _codes(metric, keys))
    found = bootstrap_totals(totals, lambda sums: sums[..., 0] / sums[..., 1], level=level)
    # The mean of equal items is another sum there, whose last bit may differ.
    value = _mean(metric)
    low, high = (
        value if math.isclose(end, value, rel_tol=1e-12) else end for end in (found.low, found.high)
    )
    return found.model_copy(update={"low": low, "high": high})


def interval_at(metric: Metric, level: float) -> Interval | None:
    """The metric's interval at another level than it was made for.

    None where what the record holds does not suffice: the metric has no interval, or it is
    neither a rate nor a mean over the items it lists, nor made from a standard error.
    """
    interval = metric.interval
    if interval is None or metric.value is None or math.isclose(interval.level, level):
        return interval
    if interval.method.startswith("wilson"):
        return rate_interval_of(metric, level)
    if interval.method == NORMAL:
        bounds = BOUNDS.get(metric.unit, (None, None))
        return normal_interval_at(metric.value, interval, level, bounds)
    return mean_interval_of(metric, level) if _is_mean(metric) else None


def compare(before: Metric | None, after: Metric, level: float = LEVEL) -> Comparison:
    """A metric before and after, paired by item where items pair up.

    0/1 pairs: Tango's score interval and the exact McNemar test. Other pairs: a BCa
    bootstrap over pairs (of the difference of means) and the Wilcoxon signed-rank test.
    Pairs in groups are resampled and tested by group. Without pairs, or where the value is
    not the mean of the items (a median), the interval comes from the two metrics' own.

    Args:
        before: The metric of the untouched model; None where it was not measured.
        after: The metric of the edited model.
        level: Confidence of the difference's interval.
    """
    found = Comparison(
        name=after.name, before=before, after=after, difference=None, difference_interval=None
    )
    if before is None or before.value is None or after.value is None:
        return found
    keys = sorted(before.items.keys() & after.items.keys())
    if not keys:
        return found.model_copy(update=_unpaired(before, after, level))
    x, y = _values(before, keys), _values(after, keys)
    codes = _codes(after if after.groups else before, keys)
    binary = bool(np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all())
    if codes is not None:
        sizes = np.bincount(codes)
        test, p_value = (
            "wilcoxon signed-rank over groups",
            wilcoxon(np.bincount(codes, x) / sizes, np.bincount(codes, y) / sizes),
        )
    elif binary:
        test, p_value = "mcnemar exact", mcnemar(x, y)
    else:
        test, p_value = "wilcoxon signed-rank", wilcoxon(x, y)
    pairs = len(keys) if codes is None else int(codes.max()) + 1
    update = {"n_pairs": pairs, "test": test, "p_value": p_value}
    if not (_is_mean(before) and _is_mean(after)):
        update |= _unpaired(before, after, level)
    elif binary and not before.weights and not after.weights:
        interval: Interval | None = paired_rate_difference(x, y, codes, level)
        update |= {"difference": math.fsum(y - x) / len(keys), "difference_interval": interval}
    else:
        totals = np.hstack([_totals(before, keys, codes), _totals(after, keys, codes)])
        interval = bootstrap_totals(totals, _change, level=level) if pairs > 1 else None
        if interval is not None:
            interval = interval.model_copy(update={"method": "paired bootstrap"})
        difference = float(_change(totals.sum(axis=0)))
        update |= {"difference": difference, "difference_interval": interval}
    return found.model_copy(update=update)


def _change(sums: Floats) -> Floats:
    return sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1]


def _unpaired(before: Metric, after: Metric, level: float) -> dict[str, float | Interval | None]:
    assert before.value is not None
    assert after.value is not None
    old, new = interval_at(before, level), interval_at(after, level)
    interval = None
    if old is not None and new is not None:
        interval = unpaired_difference(before.value, old, after.value, new)
    return {"difference": after.value - before.value, "difference_interval": interval}


def _empty(
    name: str,
    items: Mapping[str, bool | float],
    unit: str,
    direction: Direction,
    groups: Mapping[str, str] | None,
    weights: Mapping[str, float] | None,
    note: str,
) -> Metric:
    """The metric without its value: items checked, units counted, what is not finite noted."""
    for what, given in (("groups", groups), ("weights", weights)):
        if given is not None and items.keys() - given.keys():
            raise UsageError(f"{name}: {what} are missing for some items")
    finite = {key: float(value) for key, value in items.items() if math.isfinite(value)}
    own_weights = {key: float(weights[key]) for key in finite} if weights is not None else {}
    if any(not 0 < weight < math.inf for weight in own_weights.values()):
        raise UsageError(f"{name}: weights must be positive and finite")
    if lost := len(items) - len(finite):
        note = "; ".join(filter(None, (note, f"{lost} of {len(items)} values are not finite")))
    own_groups = {key: groups[key] for key in finite} if groups is not None else {}
    return Metric(
        name=name, value=None, interval=None,
        n=len(set(own_groups.values())) if groups is not None else len(finite),
        unit=unit, direction=direction, items=finite, weights=own_weights, groups=own_groups,
        note=note,
    )  # fmt: skip


def _measurable(metric: Metric, given: Mapping[str, bool | float]) -> bool:
    """There are items, and none was left out for not being finite."""
    return 0 < len(metric.items) == len(given)


def _mean(metric: Metric) -> float:
    if not metric.weights:
        return math.fsum(metric.items.values()) / len(metric.items)
    weighted = (value * metric.weights[key] for key, value in metric.items.items())
    return math.fsum(weighted) / math.fsum(metric.weights.values())


def _is_mean(metric: Metric) -> bool:
    if not metric.items or metric.value is None:
        return False
    scale = max(abs(value) for value in metric.items.values())
    return math.isclose(metric.value, _mean(metric), rel_tol=1e-6, abs_tol=1e-9 * scale)


def _values(metric: Metric, keys: Iterable[str]) -> Floats:
    return np.array([metric.items[key] for key in keys], dtype=np.float64)


def _codes(metric: Metric, keys: Iterable[str]) -> Codes | None:
    """Group of each item as a number from 0; None where every item stands alone."""
    if not metric.groups:
        return None
    _, codes = np.unique([metric.groups[key] for key in keys], return_inverse=True)
    return codes if int(codes.max()) + 1 < len(codes) else None


def _totals(metric: Metric, keys: list[str], codes: Codes | None) -> Floats:
    """Sums of ``w * x`` and ``w`` for each independent unit, ``(units, 2)``."""
    weights = np.array([metric.weights.get(key, 1.0) for key in keys])
    columns = np.stack([_values(metric, keys) * weights, weights], axis=1)
    if codes is None:
        return columns
    return np.stack([np.bincount(codes, column) for column in columns.T], axis=1)
