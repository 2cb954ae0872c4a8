"""Statistics of sums: their values, intervals, influences; least squares against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from safeedit.statistics.intervals import Floats
from safeedit.statistics.metrics import compare, mean_metric
from safeedit.statistics.totals import (
    abs_ratio,
    least_squares,
    moments,
    ratio,
    totals_metric,
)

RNG = np.random.default_rng(4)


def mean(sums: Floats) -> Floats:
    found: Floats = sums[..., 1] / sums[..., 0]
    return found


def keys(count: int) -> list[str]:
    return [f"{number:016x}" for number in range(count)]


def test_a_mean_by_sums_is_the_mean() -> None:
    values = RNG.normal(size=40)
    rows = np.stack([np.ones(40), values], axis=1)
    found = totals_metric("m", keys(40), rows, mean, "nats", "lower")
    plain = mean_metric("m", dict(zip(keys(40), values.tolist(), strict=True)), "nats", "lower")
    assert found.value == pytest.approx(plain.value)
    assert found.items == pytest.approx(plain.items, abs=1e-6)
    assert found.interval is not None
    assert plain.interval is not None
    assert found.interval.low == pytest.approx(plain.interval.low)


def test_influences_have_the_value_as_their_mean_and_pair_up() -> None:
    sizes = RNG.integers(1, 9, size=30)
    rows = np.stack([sizes, sizes * RNG.normal(1, 0.2, size=30)], axis=1).astype(float)
    before = totals_metric("m", keys(30), rows, mean, "nats", "lower")
    after = totals_metric("m", keys(30), rows * [1, 1.5], mean, "nats", "lower")
    assert np.mean(list(before.items.values())) == pytest.approx(before.value, abs=1e-9)
    change = compare(before, after)
    assert change.n_pairs == 30
    assert change.difference == pytest.approx(0.5 * (before.value or 0), rel=1e-6)


def test_what_is_not_defined_has_no_value_and_says_why() -> None:
    rows = np.stack([np.zeros(5), np.ones(5)], axis=1)
    found = totals_metric("m", keys(5), rows, mean, "nats", "lower", undefined="nobody came")
    assert (found.value, found.n, found.note) == (None, 0, "nobody came")
    assert totals_metric("m", [], np.zeros((0, 2)), mean, "nats", "lower").value is None


def test_resamples_without_one_side_do_not_spoil_the_interval() -> None:
    rows = np.array([[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]])
    found = totals_metric("m", keys(3), rows, mean, "nats", "lower")
    assert found.interval is not None
    assert found.interval.low == found.interval.high == 0.5


def test_least_squares_are_those_of_numpy() -> None:
    first, second = RNG.normal(size=(2, 200))
    y = 0.3 * first - 0.7 * second + 0.1 + RNG.normal(0, 0.2, size=200)
    fit = least_squares(moments(first, second, y).sum(axis=0))
    design = np.stack([first, second, np.ones(200)], axis=1)
    (a, b, c), residuals, *_ = np.linalg.lstsq(design, y)
    assert [float(fit.first), float(fit.second), float(fit.intercept)] == pytest.approx([a, b, c])
    assert float(fit.r2) == pytest.approx(1 - residuals[0] / ((y - y.mean()) ** 2).sum())


def test_a_variable_that_never_varies_is_left_out() -> None:
    first = RNG.normal(size=50)
    y = 2 * first + 1
    fit = least_squares(moments(first, np.zeros(50), y).sum(axis=0))
    assert [float(fit.first), float(fit.second), float(fit.r2)] == pytest.approx([2, 0, 1])
    fit = least_squares(moments(np.full(50, 0.4), first, y).sum(axis=0))
    assert [float(fit.first), float(fit.second)] == pytest.approx([0, 2])


def test_two_variables_that_vary_as_one_define_nothing() -> None:
    first = RNG.normal(size=50)
    fit = least_squares(moments(first, 2 * first, first).sum(axis=0))
    assert np.isnan(fit.first)


def test_ratios_hold_now_against_before() -> None:
    both = np.array([1.0, -3.0, 1.0, 2.0])
    assert float(ratio(mean)(both)) == -1.5
    assert float(abs_ratio(mean)(both)) == 1.5


def test_the_interval_of_a_slope_covers_the_truth() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first = np.repeat(rng.normal(size=40), 3)
        shared = np.repeat(rng.normal(0, 0.3, size=40), 3)  # sentences of one profession agree
        y = 0.5 * first + shared + rng.normal(0, 0.1, size=120)
        rows = moments(first, np.zeros(120), y).reshape(40, 3, 10).sum(axis=1)
        found = totals_metric("m", keys(40), rows, lambda t: least_squares(t).first, "", "lower")
        assert found.interval is not None
        covered += found.interval.low <= 0.5 <= found.interval.high
    assert covered >= 34
