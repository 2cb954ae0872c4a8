"""Intervals hold what they promise: known values, theorems, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from safeedit.errors import UsageError
from safeedit.records import Interval
from safeedit.statistics import intervals
from safeedit.statistics.intervals import (
    bootstrap,
    bootstrap_totals,
    effective_size,
    mcnemar,
    normal_interval,
    normal_interval_at,
    paired_rate_difference,
    rate_interval,
    unpaired_difference,
    wilcoxon,
    wilson,
)

levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


@given(n=st.integers(1, 3000), share=st.floats(0, 1), level=levels)
def test_wilson_agrees_with_scipy(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    found = wilson(successes, n, level)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


@given(n=st.floats(0.5, 1e4), share=st.floats(0, 1), level=levels)
def test_wilson_stays_in_the_unit_interval_and_contains_the_rate(
    n: int, share: float, level: float
) -> None:
    found = wilson(share * n, n, level)
    assert 0 <= found.low <= share + 1e-12
    assert share - 1e-12 <= found.high <= 1


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_is_symmetric_in_successes_and_failures(n: int, share: float) -> None:
    successes = round(share * n)
    found, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_no_success_in_twenty_still_allows_a_sixth() -> None:
    found = wilson(0, 20)
    assert found.low == 0
    assert found.high == pytest.approx(0.1611, abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_what_is_no_rate_is_refused(successes: float, n: float) -> None:
    with pytest.raises(UsageError, match="no rate"):
        wilson(successes, n)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_outside_0_and_1_is_refused(level: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        wilson(1, 5, level)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), min_size=1, max_size=12)
)
def test_an_effective_size_lies_between_one_piece_and_no_correlation(
    clusters: list[list[float]],
) -> None:
    values = np.concatenate([np.array(cluster) for cluster in clusters])
    groups = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    sizes = np.array([len(cluster) for cluster in clusters], dtype=float)
    found = effective_size(values, groups, (0.0, 1.0))
    assert sizes.sum() ** 2 / (sizes**2).sum() - 1e-9 <= found <= len(values) + 1e-9


def test_phrasings_that_all_agree_count_as_one_item_each() -> None:
    groups = np.repeat(np.arange(20), 6)
    found = rate_interval(np.zeros(120), groups)
    assert found.high == pytest.approx(wilson(0, 20).high, abs=1e-9)
    assert found.method == "wilson over groups"


def test_phrasings_that_vary_freely_count_nearly_in_full() -> None:
    values = np.tile([0.0, 1.0], 600)
    size = effective_size(values, np.repeat(np.arange(200), 6), (0.0, 1.0))
    assert size > 1000


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_intervals_over_groups_cover_where_item_intervals_do_not(correlation: float) -> None:
    generator = np.random.default_rng(1)
    rate, k, size, runs = 0.2, 30, 6, 400
    groups = np.repeat(np.arange(k), size)
    covered = covered_by_items = 0
    for _ in range(runs):
        if correlation:
            scale = (1 - correlation) / correlation
            rates = generator.beta(rate * scale, (1 - rate) * scale, k)
        else:
            rates = np.full(k, rate)
        values = (generator.random(k * size) < rates[groups]).astype(float)
        found, by_items = rate_interval(values, groups), rate_interval(values)
        covered += found.low <= rate <= found.high
        covered_by_items += by_items.low <= rate <= by_items.high
    assert covered / runs > 0.93
    if correlation > 0.3:
        assert covered_by_items / runs < 0.85


def test_tangos_interval_of_no_change_is_z_squared_over_n_plus_z_squared() -> None:
    same = np.array([1.0] * 5 + [0.0] * 5)
    found = paired_rate_difference(same, same)
    z2 = stats.norm.ppf(0.975) ** 2
    assert found.high == pytest.approx(z2 / (10 + z2), abs=1e-9)
    assert found.low == pytest.approx(-found.high, abs=1e-9)


def _tango_statistic(b: int, c: int, n: int, difference: float) -> float:
    """Tango's z by maximising the likelihood numerically: independent of our closed form."""
    grid = np.linspace(max(0, -difference), min(1, 1 - difference) / 2 + 0.5, 200_001)
    gains, losses = grid + difference, grid
    rest = 1 - gains - losses
    fine = (gains > 0) & (losses > 0) & (rest > 0)
    likelihood = (
        b * np.log(gains[fine]) + c * np.log(losses[fine]) + (n - b - c) * np.log(rest[fine])
    )
    q = losses[fine][likelihood.argmax()]
    return abs(b - c - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 2, 44), (1, 12, 50), (3, 3, 20)])
def test_tangos_bounds_are_where_the_score_reaches_z(gained: int, lost: int, n: int) -> None:
    before = np.array([0.0] * gained + [1.0] * lost + [0.0] * (n - gained - lost))
    after = np.array([1.0] * gained + [0.0] * lost + [0.0] * (n - gained - lost))
    found = paired_rate_difference(before, after)
    for bound in (found.low, found.high):
        assert _tango_statistic(gained, lost, n, bound) == pytest.approx(1.95996, abs=2e-3)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.booleans(),
)
def test_a_paired_difference_lies_in_its_interval_and_turns_with_its_sign(
    pairs: list[tuple[bool, bool]], grouped: bool
) -> None:
    before, after = np.array(pairs, dtype=float).T
    groups = np.arange(len(pairs)) // 3 if grouped else None
    found = paired_rate_difference(before, after, groups)
    difference = float((after - before).mean())
    assert -1 <= found.low <= difference + 1e-9
    assert difference - 1e-9 <= found.high <= 1
    turned = paired_rate_difference(after, before, groups)
    assert turned.low == pytest.approx(-found.high, abs=1e-7)


def test_a_paired_rate_difference_covers() -> None:
    generator = np.random.default_rng(2)
    runs, n = 1000, 40
    kinds = generator.choice(4, size=(runs, n), p=[0.5, 0.15, 0.05, 0.3])
    covered = 0
    for row in kinds:
        found = paired_rate_difference(np.isin(row, (2, 3)) * 1.0, np.isin(row, (1, 3)) * 1.0)
        covered += found.low <= 0.10 <= found.high
    assert 0.93 < covered / runs < 0.98


def test_the_difference_of_independent_rates_is_newcombes() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 873, table II (a): 56/70 - 48/80, method 10.
    before, after = wilson(48, 80), wilson(56, 70)
    found = unpaired_difference(48 / 80, before, 56 / 70, after)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_the_bootstrap_of_a_mean_agrees_with_scipys_bca() -> None:
    values = np.random.default_rng(0).lognormal(size=60)
    totals = np.stack([values, np.ones_like(values)], axis=1)
    found = bootstrap_totals(totals, _mean, resamples=20_000)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, rel=0.02)
    assert found.high == pytest.approx(expected.high, rel=0.02)


def test_the_bootstrap_of_a_biased_statistic_is_corrected_as_scipys_bca() -> None:
    values = np.random.default_rng(1).exponential(size=15)
    found = bootstrap(lambda x: np.std(x, axis=-1), values, resamples=20_000)
    expected = stats.bootstrap(
        (values,), np.std, n_resamples=20_000, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, rel=0.03)
    assert found.high == pytest.approx(expected.high, rel=0.03)


def test_any_statistic_may_be_resampled_and_agrees_with_the_special_case() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    totals = np.stack([values, np.ones_like(values)], axis=1)
    direct = bootstrap(lambda x: x.mean(axis=-1), values, seed=4)
    special = bootstrap_totals(totals, _mean, seed=4)
    # The estimate is one draw of resampled rows in both, so they agree to rounding.
    assert direct.low == pytest.approx(special.low, rel=1e-9)
    assert direct.high == pytest.approx(special.high, rel=1e-9)


def test_a_bootstrap_in_pieces_has_as_many_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = np.stack([np.arange(40.0), np.ones(40)], axis=1)
    pieces: list[int] = []

    def statistic(sums: np.ndarray) -> np.ndarray:
        pieces.append(len(sums) if sums.ndim == 2 else 1)
        return _mean(sums)

    whole = bootstrap_totals(totals, statistic, resamples=501)
    assert 501 in pieces
    pieces.clear()
    monkeypatch.setattr(intervals, "CHUNK", 1000)
    assert bootstrap_totals(totals, statistic, resamples=501) == whole
    assert pieces[:-2] == [12] * 41 + [9], "then those for the estimate and without each unit"


def test_a_bootstrap_over_groups_is_wider_than_over_items() -> None:
    generator = np.random.default_rng(6)
    groups = np.repeat(np.arange(15), 8)
    values = generator.normal(size=15)[groups] + 0.1 * generator.normal(size=120)

    def median(x: np.ndarray) -> np.ndarray:
        return np.median(x, axis=-1)

    grouped, single = bootstrap(median, values, groups=groups), bootstrap(median, values)
    assert grouped.high - grouped.low > 1.5 * (single.high - single.low)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    st.sampled_from(["bca", "percentile"]),
)
def test_a_bootstrap_interval_contains_the_estimate_and_stays_within_the_data(
    values: list[float], method: intervals.Method
) -> None:
    totals = np.stack([np.array(values), np.ones(len(values))], axis=1)
    found = bootstrap_totals(totals, _mean, resamples=200, method=method)
    estimate = math.fsum(values) / len(values)
    slack = 1e-9 * max(map(abs, values), default=0)
    assert min(values) - slack <= found.low <= estimate + slack
    assert estimate - slack <= found.high <= max(values) + slack


def test_a_bootstrap_is_seeded() -> None:
    totals = np.stack([np.random.default_rng(0).normal(size=30), np.ones(30)], axis=1)
    assert bootstrap_totals(totals, _mean, seed=1) == bootstrap_totals(totals, _mean, seed=1)
    assert bootstrap_totals(totals, _mean, seed=1) != bootstrap_totals(totals, _mean, seed=2)


def test_a_bootstrap_of_one_unit_is_refused() -> None:
    with pytest.raises(UsageError, match="two independent units"):
        bootstrap_totals(np.ones((1, 2)), _mean)
    with pytest.raises(UsageError, match="two independent units"):
        bootstrap(np.mean, np.ones(4), groups=np.zeros(4, dtype=np.intp))


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test_of_those_that_changed(gained: int, lost: int) -> None:
    before = np.array([0.0] * gained + [1.0] * lost + [1.0] * 7)
    after = np.array([1.0] * gained + [0.0] * lost + [1.0] * 7)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(before, after) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_sees_a_shift_and_says_one_where_nothing_moved() -> None:
    before = np.random.default_rng(0).normal(size=30)
    assert wilcoxon(before, before) == 1.0
    assert wilcoxon(before, before + 0.5) < 1e-4
    assert wilcoxon(np.zeros(3), np.array([0.0, 0.0, 1.0])) == 1.0


def test_an_interval_names_its_level_and_method() -> None:
    found = wilson(3, 10, 0.9)
    assert isinstance(found, Interval)
    assert (found.level, found.method) == (0.9, "wilson")


def test_an_interval_from_a_standard_error_ends_at_the_bounds_of_its_unit() -> None:
    found = normal_interval(0.5, 0.1)
    assert (found.level, found.method) == (0.95, "normal, from a standard error")
    assert (found.low, found.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert normal_interval(0.9, 0.1, bounds=(0, 1)).high == 1
    assert normal_interval(1.2, 0.5, bounds=(1, None)).low == 1
    wider = normal_interval(0.5, 0.1, 0.99)
    assert wider.low < found.low < found.high < wider.high


@pytest.mark.parametrize("value", [0.5, 0.9, 0.05])
def test_an_interval_from_a_standard_error_is_known_at_another_level(value: float) -> None:
    cut = normal_interval(value, 0.1, bounds=(0, 1))
    assert normal_interval_at(value, cut, 0.8, (0, 1)) == normal_interval(
        value, 0.1, 0.8, (0, 1)
    ).model_copy(update={"low": pytest.approx(max(0, value - 0.12816), abs=1e-4),
                         "high": pytest.approx(min(1, value + 0.12816), abs=1e-4)})  # fmt: skip


def test_an_interval_cut_at_both_ends_stays_as_wide_as_it_is() -> None:
    cut = normal_interval(0.5, 0.4, bounds=(0, 1))
    assert (cut.low, cut.high) == (0, 1)
    other = normal_interval_at(0.5, cut, 0.8, (0, 1))
    assert (other.low, other.high, other.level) == (0, 1, 0.8)
