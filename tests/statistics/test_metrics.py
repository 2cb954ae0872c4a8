"""Metrics count what is independent, and comparisons pair what pairs up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeedit.errors import UsageError
from safeedit.records import Metric
from safeedit.statistics.intervals import normal_interval, wilson
from safeedit.statistics.metrics import (
    compare,
    interval_at,
    mean_metric,
    rate_metric,
    statistic_metric,
)


def _keys(n: int) -> list[str]:
    return [f"{i:04x}" for i in range(n)]


def _rate(values: list[bool] | list[float], groups: dict[str, str] | None = None) -> Metric:
    items = dict(zip(_keys(len(values)), values, strict=True))
    return rate_metric("leakage.extraction_rate", items, "rate", "lower", groups=groups)


def _mean(values: list[float], weights: list[float] | None = None) -> Metric:
    keys = _keys(len(values))
    return mean_metric(
        "perplexity.nats",
        dict(zip(keys, values, strict=True)),
        "nats/token",
        "lower",
        weights=dict(zip(keys, weights, strict=True)) if weights else None,
    )


def test_a_rate_carries_its_share_and_wilsons_interval() -> None:
    metric = _rate([True] * 3 + [False] * 7)
    assert metric.value == 0.3
    assert metric.n == 10
    assert metric.interval == wilson(3, 10)


def test_groups_are_what_is_counted_but_every_item_is_kept() -> None:
    groups = {key: f"fact {i // 6}" for i, key in enumerate(_keys(60))}
    metric = _rate([i < 12 for i in range(60)], groups)
    assert metric.n == 10
    assert len(metric.items) == 60
    assert metric.value == 0.2
    alone = _rate([i < 12 for i in range(60)])
    assert metric.interval is not None
    assert alone.interval is not None
    assert metric.interval.high > alone.interval.high


def test_groups_of_one_change_nothing() -> None:
    values = [True, False, False, True, True]
    assert _rate(values, {key: key for key in _keys(5)}).interval == _rate(values).interval


def test_a_metric_of_nothing_has_no_value() -> None:
    for metric in (_rate([]), _mean([])):
        assert (metric.value, metric.interval, metric.n) == (None, None, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_leaves_the_metric_without_one(bad: float) -> None:
    metric = _mean([1.0, bad, 2.0])
    assert metric.value is None
    assert metric.interval is None
    assert "1 of 3 values are not finite" in metric.note
    assert all(map(math.isfinite, metric.items.values()))
    assert Metric.model_validate_json(metric.model_dump_json()) == metric


def test_a_rate_outside_0_and_1_is_refused() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        _rate([0.5, 1.5])


def test_groups_or_weights_that_miss_an_item_are_refused() -> None:
    with pytest.raises(UsageError, match="groups are missing"):
        _rate([True, False], {"0000": "a"})
    with pytest.raises(UsageError, match="weights must be positive"):
        _mean([1.0, 2.0], [1.0, 0.0])


def test_nats_per_token_weighted_by_tokens_are_a_ratio_of_sums() -> None:
    metric = _mean([2.0, 4.0], [300.0, 100.0])
    assert metric.value == pytest.approx((2 * 300 + 4 * 100) / 400)


def test_a_mean_of_one_item_has_no_interval() -> None:
    assert _mean([1.0]).interval is None


def test_a_median_keeps_its_own_value_and_interval() -> None:
    items = dict(zip(_keys(31), np.random.default_rng(0).exponential(size=31), strict=True))
    metric = statistic_metric(
        "leakage.rank", items, lambda x: np.median(x, axis=-1), "rank", "higher"
    )
    assert metric.value == np.median(list(items.values()))
    assert metric.interval is not None
    assert metric.interval.low < metric.value < metric.interval.high
    # Its level can't be changed from the record: a median is not the mean of its items.
    assert interval_at(metric, 0.99) is None


def test_an_interval_can_be_had_at_another_level() -> None:
    rate, mean = _rate([True] * 3 + [False] * 17), _mean([1.0, 2.0, 4.0, 3.0, 8.0])
    for metric in (rate, mean):
        wider, own = interval_at(metric, 0.99), metric.interval
        assert wider is not None
        assert own is not None
        assert wider.level == 0.99
        assert wider.low < own.low
        assert wider.high > own.high
        assert interval_at(metric, 0.95) == own


def test_a_rate_without_items_still_changes_level_from_its_value_and_n() -> None:
    metric = _rate([True] * 3 + [False] * 17)
    bare = metric.model_copy(update={"items": {}})
    assert interval_at(bare, 0.99) == wilson(3, 20, 0.99)


def test_rates_pair_up_by_item_under_mcnemar() -> None:
    found = compare(
        _rate([True] * 12 + [False] * 8), _rate([False] * 10 + [True] * 2 + [False] * 8)
    )
    assert found.difference == -0.5
    assert found.n_pairs == 20
    assert found.test == "mcnemar exact"
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.difference_interval is not None
    assert found.difference_interval.method == "paired score"
    assert found.difference_interval.high < 0


def test_only_items_of_both_runs_are_paired() -> None:
    before = mean_metric("m", {"a": 1.0, "b": 2.0, "c": 3.0}, "nats", "lower")
    after = mean_metric("m", {"b": 3.0, "c": 5.0, "d": 100.0}, "nats", "lower")
    found = compare(before, after)
    assert found.n_pairs == 2
    assert found.difference == pytest.approx(1.5)


def test_pairs_in_groups_are_counted_and_tested_by_group() -> None:
    groups = {key: f"fact {i // 4}" for i, key in enumerate(_keys(40))}
    before, after = _rate([True] * 40, groups), _rate([i < 4 for i in range(40)], groups)
    found = compare(before, after)
    assert found.n_pairs == 10
    assert found.test == "wilcoxon signed-rank over groups"
    alone = compare(_rate([True] * 40), _rate([i < 4 for i in range(40)]))
    assert found.p_value is not None
    assert alone.p_value is not None
    assert found.p_value > alone.p_value
    assert found.difference_interval is not None
    assert alone.difference_interval is not None
    assert found.difference_interval.low < alone.difference_interval.low


def test_pairing_sees_a_change_that_the_spread_between_items_hides() -> None:
    spread = np.random.default_rng(0).normal(3, 1, size=40)
    before, after = _mean(list(spread)), _mean(list(spread + 0.05))
    found = compare(before, after)
    assert found.test == "wilcoxon signed-rank"
    assert found.difference == pytest.approx(0.05)
    assert found.difference_interval is not None
    assert found.difference_interval.low > 0
    assert found.p_value is not None
    assert found.p_value < 1e-6
    unpaired = compare(
        before.model_copy(update={"items": {}}), after.model_copy(update={"items": {}})
    )
    assert unpaired.n_pairs == 0
    assert unpaired.p_value is None
    assert unpaired.difference_interval is not None
    assert unpaired.difference_interval.low < 0 < unpaired.difference_interval.high


def test_the_difference_of_weighted_means_is_the_difference_of_their_values() -> None:
    before = _mean([2.0, 4.0, 3.0], [300.0, 100.0, 10.0])
    after = _mean([2.5, 4.0, 9.0], [300.0, 100.0, 10.0])
    found = compare(before, after)
    assert before.value is not None
    assert after.value is not None
    assert found.difference == pytest.approx(after.value - before.value)


def test_a_median_is_compared_by_value_though_its_items_are_tested_in_pairs() -> None:
    def rank(shift: float) -> Metric:
        items = {key: float(i**2 + shift) for i, key in enumerate(_keys(21))}
        return statistic_metric("r", items, lambda x: np.median(x, axis=-1), "rank", "higher")

    found = compare(rank(0), rank(7))
    assert found.difference == 7
    assert found.difference_interval is not None
    assert found.difference_interval.method == "unpaired"
    assert found.p_value is not None
    assert found.p_value < 1e-4


def test_without_a_before_there_is_no_difference() -> None:
    after = _rate([True] * 10)
    for before in (None, _rate([])):
        found = compare(before, after)
        assert (found.difference, found.p_value, found.n_pairs) == (None, None, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=25),
    st.booleans(),
    st.booleans(),
)
def test_comparing_is_antisymmetric_and_its_interval_contains_the_difference(
    pairs: list[tuple[float, float]], binary: bool, grouped: bool
) -> None:
    groups = {key: str(i // 2) for i, key in enumerate(_keys(len(pairs)))} if grouped else None
    x = [float(round(a)) if binary else a for a, _ in pairs]
    y = [float(round(b)) if binary else b for _, b in pairs]
    there, back = (
        compare(_rate(x, groups), _rate(y, groups)),
        compare(_rate(y, groups), _rate(x, groups)),
    )
    assert there.difference is not None
    assert back.difference is not None
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
    assert there.p_value == pytest.approx(back.p_value)
    interval = there.difference_interval
    if interval is not None:
        assert interval.low - 1e-9 <= there.difference <= interval.high + 1e-9


def test_a_comparison_does_not_depend_on_the_order_of_items() -> None:
    items = {key: float(i % 7) for i, key in enumerate(_keys(30))}
    turned = dict(reversed(items.items()))
    after = {key: value * 1.1 for key, value in items.items()}
    first = compare(
        mean_metric("m", items, "nats", "lower"), mean_metric("m", after, "nats", "lower")
    )
    second = compare(
        mean_metric("m", turned, "nats", "lower"), mean_metric("m", after, "nats", "lower")
    )
    assert first.difference_interval == second.difference_interval


@pytest.mark.parametrize("n", range(2, 12))
def test_the_mean_of_equal_items_is_in_its_interval(n: int) -> None:
    found = mean_metric(
        "m", dict.fromkeys(map(str, range(n)), 3.3221709004947531), "bits", "higher"
    )
    assert found.interval is not None
    assert found.value is not None
    assert found.interval.low <= found.value <= found.interval.high


def test_a_figure_with_a_standard_error_is_known_at_another_level() -> None:
    made = Metric(
        name="lm_eval.rivers_mcc", value=0.5, interval=normal_interval(0.5, 0.1), n=40,
        unit="score", direction="higher",
    )  # fmt: skip
    found = interval_at(made, 0.8)
    assert found is not None
    assert found == normal_interval(0.5, 0.1, 0.8)
    # Two of them differ as independent figures do.
    after = made.model_copy(update={"value": 0.3, "interval": normal_interval(0.3, 0.1)})
    difference = compare(made, after).difference_interval
    assert difference is not None
    assert difference.low == pytest.approx(-0.2 - 1.96 * 0.1 * math.sqrt(2), abs=1e-3)
