"""The share of an effect that an attack undoes, in cases whose answer is known."""

from __future__ import annotations

import pytest

from safeedit.records import Direction, Metric
from safeedit.statistics.metrics import rate_metric
from safeedit.statistics.recovery import DESTROYED, NO_EFFECT, recovery


def told(*values: float, direction: Direction = "lower", pairs: bool = False) -> Metric:
    items = {f"item {number}": value for number, value in enumerate(values)}
    groups = {name: f"group {int(name.split()[1]) // 2}" for name in items} if pairs else None
    return rate_metric("leakage.extraction_rate", items, "rate", direction, groups=groups)


ALL, NONE = [1.0] * 20, [0.0] * 20
HALF = [1.0] * 10 + [0.0] * 10


def found(before: list[float], base: list[float], after: list[float], under: list[float]) -> Metric:
    return recovery("leakage", told(*before), told(*base), told(*after), told(*under))


def test_nothing_half_and_all_of_what_an_edit_took_comes_back() -> None:
    values = [found(ALL, ALL, NONE, under).value for under in (NONE, HALF, ALL)]
    assert values == [0.0, 0.5, 1.0]
    assert found(ALL, ALL, NONE, HALF).name == "leakage.recovered"


def test_it_is_measured_against_what_the_base_still_tells_under_the_attack() -> None:
    # The attack takes half of the base's own answers: 5 of the 10 left came back.
    assert found(ALL, HALF, NONE, [1.0] * 5 + [0.0] * 15).value == pytest.approx(0.5)


def test_where_nothing_was_taken_nothing_is_said_to_come_back_or_not() -> None:
    for under in (NONE, ALL):
        metric = found(ALL, ALL, ALL, under)
        assert metric.value is None
        assert metric.note == NO_EFFECT


def test_where_the_attack_destroys_the_base_as_well_nothing_is_said() -> None:
    metric = found(ALL, NONE, NONE, NONE)
    assert metric.value is None
    assert metric.note == DESTROYED


def test_an_effect_on_one_item_of_many_is_not_enough_to_speak_of_shares() -> None:
    assert found([1.0, *NONE[1:]], [1.0, *NONE[1:]], NONE, NONE).value is None


def test_nothing_back_of_twenty_is_compatible_with_more_than_nothing() -> None:
    interval = found(ALL, ALL, NONE, NONE).interval
    assert interval is not None
    assert interval.low == pytest.approx(0.0, abs=1e-12)
    assert interval.high == pytest.approx(0.161, abs=0.001)  # Wilson, 0 of 20


def test_items_of_one_group_count_once() -> None:
    single = recovery("a", told(*ALL), told(*ALL), told(*NONE), told(*NONE))
    metrics = [told(*values, pairs=True) for values in (ALL, ALL, NONE, NONE)]
    grouped = recovery("a", *metrics)
    assert (single.n, grouped.n) == (20, 10)
    assert single.interval is not None
    assert grouped.interval is not None
    assert grouped.interval.high > single.interval.high


def test_of_a_metric_of_which_more_is_better_the_sign_is_turned() -> None:
    refusals = [told(*values, direction="higher") for values in (NONE, NONE, ALL, HALF)]
    assert recovery("leakage", *refusals).value == pytest.approx(0.5)


def test_only_items_that_all_four_have_count() -> None:
    rest = told(*HALF[:10])  # the attack used the last ten itself
    metric = recovery("leakage", told(*ALL), rest, told(*NONE), rest)
    assert (metric.value, metric.n) == (1.0, 10)


@pytest.mark.parametrize("missing", range(3))
def test_without_a_figure_there_is_no_share(missing: int) -> None:
    metrics: list[Metric | None] = [told(*ALL), told(*ALL), told(*NONE)]
    metrics[missing] = None
    metric = recovery("leakage", metrics[0], metrics[1], metrics[2], told(*HALF))
    assert (metric.value, metric.n) == (None, 0)
    assert metric.note
