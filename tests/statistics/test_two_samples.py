"""Contrasts are means of their items, and intervals cover what they should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from safeedit.errors import UsageError
from safeedit.statistics.intervals import Floats
from safeedit.statistics.two_samples import (
    Contrast,
    Strata,
    auc,
    auc_interval,
    kolmogorov_smirnov,
    kolmogorov_smirnov_interval,
    mean_difference,
    pooled_ranks,
)

Function = Callable[[Floats, Floats, tuple[Strata, Strata] | None], Contrast]


def _samples(m: int, n: int, shift: float = 0.8, seed: int = 0) -> tuple[Floats, Floats]:
    source = np.random.default_rng(seed)
    return source.normal(shift, 1, m), source.normal(0, 1, n)


def test_the_auc_is_the_share_of_pairs_in_order_ties_half() -> None:
    x, y = np.array([3.0, 1.0, 2.0]), np.array([2.0, 0.0])
    # 3 beats both, 1 beats one, 2 beats one and ties with one.
    assert auc(x, y).value == pytest.approx((2 + 1 + 1.5) / 6)
    x, y = _samples(30, 50)
    wins = stats.mannwhitneyu(x, y).statistic
    assert auc(x, y).value == pytest.approx(wins / 1500)


@pytest.mark.parametrize("function", [auc, mean_difference])
@pytest.mark.parametrize("stratified", [False, True])
def test_items_have_the_value_as_their_mean_and_its_standard_error(
    function: Function, stratified: bool
) -> None:
    def made(seed: int) -> Contrast:
        x, y = _samples(60, 90, seed=seed)
        strata = ([i % 2 for i in range(60)], [i % 3 == 0 for i in range(90)])
        if not stratified:
            return function(x, y, None)
        return function(x + 5 * np.array(strata[0]), y + 5 * np.array(strata[1]), strata)

    found = [made(seed) for seed in range(300)]
    items = np.concatenate([found[0].first, found[0].second])
    assert items.mean() == pytest.approx(found[0].value)
    errors = [np.concatenate([c.first, c.second]).std(ddof=1) / 150**0.5 for c in found]
    assert np.mean(errors) == pytest.approx(np.std([c.value for c in found]), rel=0.12)


def test_delongs_standard_error_is_the_spread_of_the_items() -> None:
    x, y = _samples(25, 40)
    places_x = np.array([(y < value).mean() for value in x])
    places_y = np.array([(x > value).mean() for value in y])
    delong = (places_x.var(ddof=0) / 25 + places_y.var(ddof=0) / 40) ** 0.5
    found = auc(x, y)
    items = np.concatenate([found.first, found.second])
    assert items.std(ddof=0) / 65**0.5 == pytest.approx(delong)


def test_strata_compare_like_with_like() -> None:
    """Two kinds on scales far apart: pooled, most pairs are decided by the kind."""
    x, y = _samples(40, 40, shift=3)
    kinds = [number % 2 for number in range(40)]
    x, y = x + 100 * np.array(kinds), y + 100 * np.array(kinds)
    assert auc(x, y).value < 0.8
    assert auc(x, y, (kinds, kinds)).value > 0.95
    ranks = pooled_ranks(x, y, (kinds, kinds))
    assert kolmogorov_smirnov(x, y)[0].value < 0.6
    assert kolmogorov_smirnov(*ranks)[0].value > 0.8


def test_strata_count_by_their_share_of_the_first_sample() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 10.0]), np.array([0.0, 4.0])
    strata = (["a", "a", "a", "b"], ["a", "b"])
    assert mean_difference(x, y, strata).value == pytest.approx((3 * 2 + 1 * 6) / 4)


def test_one_stratum_leaves_the_kolmogorov_smirnov_test_as_it_is() -> None:
    x, y = _samples(30, 45, shift=0.5)
    direct, p_value = kolmogorov_smirnov(x, y)
    ranked, p_ranked = kolmogorov_smirnov(*pooled_ranks(x, y, ([0] * 30, [0] * 45)))
    expected = stats.ks_2samp(x, y)
    assert (direct.value, p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert (ranked.value, p_ranked) == pytest.approx((direct.value, p_value))
    assert np.concatenate([direct.first, direct.second]).mean() == pytest.approx(direct.value)


@pytest.mark.parametrize("shift", [-0.7, 0.7])
def test_a_greatest_distance_is_positive_either_way(shift: float) -> None:
    assert kolmogorov_smirnov(*_samples(30, 30, shift))[0].value > 0.2


@pytest.mark.parametrize(("true", "m", "n"), [(0.5, 15, 30), (0.8, 15, 30), (0.98, 20, 20)])
def test_the_interval_of_an_auc_covers_it(true: float, m: int, n: int) -> None:
    shift = float(stats.norm.ppf(true)) * 2**0.5
    covered = 0
    for seed in range(300):
        found = auc_interval(auc(*_samples(m, n, shift, seed)).value, m, n)
        covered += found.low <= true <= found.high
    assert covered / 300 > 0.92


def test_an_auc_of_one_from_few_items_is_not_certain() -> None:
    few, many = auc_interval(1.0, 5, 5), auc_interval(1.0, 500, 500)
    assert few.high == many.high == 1
    assert few.low < 0.8 < many.low < 1
    mirrored = auc_interval(0.0, 5, 5)
    assert (mirrored.low, mirrored.high) == pytest.approx((0, 1 - few.low))
    assert auc_interval(0.7, 20, 20, 0.99).low < auc_interval(0.7, 20, 20, 0.9).low


def test_the_interval_of_a_distance_holds_it_and_narrows() -> None:
    wide, narrow = (kolmogorov_smirnov_interval(0.4, n, n) for n in (20, 2000))
    assert wide.low == 0 < narrow.low < 0.4 < narrow.high < wide.high <= 1


def test_what_cannot_be_compared_is_refused() -> None:
    x, y = _samples(4, 4)
    with pytest.raises(UsageError, match="empty"):
        auc(x, y[:0])
    with pytest.raises(UsageError, match="one of the two samples only"):
        mean_difference(x, y, (["a"] * 4, ["a", "a", "a", "b"]))
    with pytest.raises(UsageError, match="no interval"):
        auc_interval(1.2, 4, 4)
    with pytest.raises(UsageError, match="no interval"):
        kolmogorov_smirnov_interval(0.5, 0, 4)
