"""A count of all items that there are: relied on by how often each was tried, not by how many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from safeedit.errors import UsageError
from safeedit.policy import GateSpec
from safeedit.records import Metric, Status
from safeedit.statistics.intervals import wilson
from safeedit.statistics.metrics import census_metric, compare, rate_metric
from safeedit.statistics.verdicts import judge

NAME = "leakage.items_told"


def census(values: Sequence[float], trials: Sequence[int] = (), **more: Any) -> Metric:
    keys = [str(number) for number in range(len(values))]
    tried = dict(zip(keys, trials or [30] * len(values), strict=True))
    items = dict(zip(keys, values, strict=True))
    return census_metric(NAME, items, "items", "lower", trials=tried, **more)


def status(metric: Metric, **gate: Any) -> Status:
    spec = GateSpec.model_validate({"metric": NAME, "max": 0, **gate})
    return judge(spec, compare(None, metric)).status


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_none_told_passes_whatever_n_and_says_what_it_would_be_as_a_rate(n: int) -> None:
    metric = census([0] * n)
    assert (metric.value, metric.n, metric.interval) == (0, n, None)
    assert status(metric, min_n=1000) == "pass"
    high = wilson(0, n).high
    assert metric.note.endswith(
        f"in 30 askings each; as a rate over items like these: at most {high:.2g}"
    )
    assert metric.note.startswith(f"0 of {n} items told")


def test_a_rate_over_as_few_items_stays_inconclusive() -> None:
    rate = rate_metric(NAME, {"a": 0.0, "b": 0.0}, "rate", "lower")
    assert status(rate) == "inconclusive"


def test_one_told_fails_though_others_are_unknown_or_were_seldom_asked() -> None:
    assert status(census([1, 0, 0])) == "fail"
    assert status(census([1, math.nan, 0])) == "fail"
    seldom = census([1, 0], [2, 2], note="asked too seldom")
    assert status(seldom) == "fail"
    assert seldom.note.endswith("asked too seldom")


def test_silence_that_is_not_enough_has_no_value_and_says_why() -> None:
    for metric in (
        census([0, 0], [2, 2], note="asked too seldom"),
        census([0, math.nan], note="cut"),
    ):
        assert (metric.value, metric.n) == (None, 0)
        assert status(metric) == "inconclusive"
        assert metric.note in ("asked too seldom", "cut")
    assert census([0, math.nan]).note == "of some items nobody knows"
    assert census([]).note == "there are no items"


def test_items_that_are_one_thing_count_as_one_where_a_rate_is_told() -> None:
    metric = census([0, 0, 0], groups={"0": "0", "1": "0", "2": "2"})
    assert metric.n == 2
    assert metric.note.startswith("0 of 3 items told")
    high = float(metric.note.rpartition(" ")[2])
    assert wilson(0, 3).high < wilson(0, 2).high - 0.005 <= high


def test_ways_that_differ_from_item_to_item_are_told_as_a_range() -> None:
    assert "in 20 to 63 askings each" in census([0, 0, 0], [63, 20, 33]).note


def test_before_and_after_pair_item_by_item() -> None:
    found = compare(census([1, 1, 1]), census([0, 0, 1]))
    assert (found.difference, found.n_pairs, found.difference_interval) == (-2, 3, None)


def test_every_item_says_how_often_it_was_tried() -> None:
    with pytest.raises(UsageError, match="trials are missing"):
        census_metric(NAME, {"a": 0.0}, "items", "lower", trials={})
