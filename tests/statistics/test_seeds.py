"""Verdicts of several seeds folded into one, and figures spread over seeds."""

from __future__ import annotations

import pytest

from safeedit.policy import GateSpec
from safeedit.records import Comparison, Metric, Verdict
from safeedit.statistics.metrics import mean_metric, rate_metric
from safeedit.statistics.seeds import Spread, mean_of, over_seeds
from safeedit.statistics.verdicts import judge, unsure


def rate(hits: int, of: int = 40) -> Metric:
    items = {f"item {number}": number < hits for number in range(of)}
    return rate_metric("leakage.rate", items, "rate", "lower")


def alone(metric: Metric) -> Comparison:
    return Comparison(
        name=metric.name, before=None, after=metric, difference=None, difference_interval=None
    )


def gate(**more: object) -> GateSpec:
    return GateSpec.model_validate({"metric": "leakage.rate", "max": 0.2, **more})


def verdicts(asked: GateSpec, *hits: int) -> dict[int, Verdict]:
    return {seed: judge(asked, alone(rate(count))) for seed, count in enumerate(hits)}


def test_one_seed_is_left_as_it_is() -> None:
    asked = gate()
    (verdict,) = verdicts(asked, 3).values()
    assert over_seeds(asked, {0: verdict}) == verdict


def test_the_worst_is_the_farthest_beyond_its_bound() -> None:
    asked = gate()
    found = over_seeds(asked, verdicts(asked, 3, 6, 1))
    assert (found.status, found.value) == ("pass", 0.15)
    assert "with seed 1, the worst of 3" in found.reason
    assert over_seeds(asked, verdicts(asked, 3, 12, 1)).status == "fail"
    least = GateSpec.model_validate({"metric": "leakage.rate", "min": 0.1})
    found = over_seeds(least, verdicts(least, 3, 6, 2))
    assert (found.status, found.value) == ("fail", 0.05)


def test_an_inconclusive_seed_is_worse_than_one_that_passes_and_better_than_one_that_fails() -> (
    None
):
    asked = gate()
    unmeasured = judge(asked, None)
    passing, failing = verdicts(asked, 3, 30).values()
    assert over_seeds(asked, {0: passing, 1: unmeasured}).status == "inconclusive"
    assert over_seeds(asked, {0: passing, 1: unmeasured, 2: failing}).status == "fail"


def test_the_mean_may_pass_where_one_seed_fails() -> None:
    asked = gate(over_seeds="mean")
    found = over_seeds(asked, verdicts(asked, 3, 12, 6))
    assert (found.status, found.value) == ("pass", pytest.approx(0.175))
    assert [each.status for each in found.by_seed] == ["pass", "fail", "pass"]
    assert over_seeds(asked, verdicts(asked, 3, 12, 12)).status == "fail"


def test_the_mean_does_not_stand_in_for_the_checkpoint_itself() -> None:
    asked = gate(over_seeds="mean")
    found = over_seeds(asked, verdicts(asked, 12, 1, 1))
    assert (found.status, found.value) == ("fail", 0.3)
    assert "which the checkpoint is of" in found.reason


def test_there_is_no_mean_of_what_one_seed_lacks() -> None:
    asked = gate(over_seeds="mean")
    passing, other = verdicts(asked, 3, 4).values()
    assert over_seeds(asked, {0: passing, 1: judge(asked, None)}).status == "inconclusive"
    assert over_seeds(asked, {0: passing, 1: unsure(other, "x")}).status == "inconclusive"


def test_at_a_confidence_the_mean_of_the_intervals_is_held_against_the_bound() -> None:
    asked = gate(max=0.4, over_seeds="mean", confidence=0.95)
    found = over_seeds(asked, verdicts(asked, 4, 10))
    own = [judge(asked, alone(rate(hits))) for hits in (4, 10)]
    assert [each.status for each in own] == ["pass", "inconclusive"]
    assert found.status == "pass"
    assert found.interval is not None
    ends = [each.interval.high for each in own if each.interval is not None]
    assert found.interval.high == pytest.approx(sum(ends) / 2)
    assert over_seeds(asked, verdicts(asked, 4, 20)).status == "inconclusive"
    # The same by a value that nothing but another rule has made inconclusive.
    assert over_seeds(asked, {0: own[0], 1: unsure(own[1], "x")}).status == "inconclusive"


def test_what_the_checkpoint_gave_is_still_told() -> None:
    asked = gate()
    each = verdicts(asked, 3, 12)
    found = over_seeds(asked, each)
    assert found.of_checkpoint.status == each[0].status
    assert found.of_checkpoint.value == each[0].value
    assert each[0].of_checkpoint == each[0]


def test_a_spread_leaves_out_what_has_no_value() -> None:
    spread = Spread((1.0, None, 3.0))
    assert (spread.mean, spread.least, spread.greatest) == (2.0, 1.0, 3.0)
    assert spread.deviation == pytest.approx(2**0.5)
    assert Spread((None,)).mean is None
    assert Spread((1.0,)).deviation is None


def test_the_mean_of_a_metric_keeps_no_items() -> None:
    metrics = [
        mean_metric("a.b", {f"item {n}": float(n + shift) for n in range(8)}, "nats", "lower")
        for shift in (0, 2)
    ]
    found = mean_of(metrics)
    assert found.value == pytest.approx(4.5)
    assert found.items == {}
    assert found.interval is not None
    assert mean_of(metrics[:1]) == metrics[0]
