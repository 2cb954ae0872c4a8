"""Who is on the Pareto front, and who may be."""

from __future__ import annotations

import itertools

import pytest

from safeedit.workflows.comparison.standings import Standings
from tests.workflows.comparison.examples import LOCALITY, SUCCESS, metric, places, row, standings


def test_a_row_that_nothing_beats_is_on_the_front() -> None:
    assert places(row("none", 1.0, 1.0), row("a", 0.0, 0.9), row("b", 0.5, 0.95)) == {
        "none": "front", "a": "front", "b": "front",
    }  # fmt: skip


def test_a_row_beaten_clear_of_its_interval_is_behind() -> None:
    found = places(row("a", 0.0, 0.9), row("b", 0.5, 0.9), row("c", 0.0, 0.5))
    assert found == {"a": "front", "b": "behind", "c": "behind"}


def test_a_row_beaten_within_the_intervals_overlaps() -> None:
    found = places(row("a", 0.0, 0.9), row("b", 0.08, 0.85))
    assert found == {"a": "front", "b": "overlaps"}
    found = places(row("a", 0.0, 0.9, 0.01), row("b", 0.08, 0.85, 0.01))
    assert found["b"] == "behind"
    found = places(row("a", 0.0, 0.9, None), row("b", 0.08, 0.85, None))
    assert found["b"] == "behind", "without intervals, values decide"


def test_one_clear_winner_is_enough_to_be_behind() -> None:
    found = places(row("a", 0.0, 0.9), row("near", 0.02, 0.82), row("c", 0.06, 0.81))
    assert found["c"] == "overlaps"
    more = places(row("a", 0.0, 0.9), row("near", 0.02, 0.82), row("c", 0.06, 0.79))
    assert more["c"] == "behind"


def test_equals_are_on_the_front_together() -> None:
    assert set(places(row("a", 0.1, 0.9), row("b", 0.1, 0.9)).values()) == {"front"}


def test_directions_are_those_of_the_metrics() -> None:
    upward = SUCCESS.model_copy(update={"direction": "higher"})
    rows = row("a", 0.0, 0.9), row("b", 0.5, 0.9)
    assert places(*rows)["b"] == "behind"
    assert places(*rows, success=upward) == {"a": "behind", "b": "front"}


def test_a_row_without_a_value_or_with_an_error_has_no_place() -> None:
    failed = row("c", None, None, error="it failed").model_copy(update={"metrics": {}})
    found = places(row("a", 0.5, 0.5), row("b", None, 1.0), failed)
    assert found == {"a": "front", "b": "", "c": ""}


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_comparing_all_pairs_gives(seed: int) -> None:
    drawn = [((seed * 37 + 11 * i) % 17 / 17, (seed * 53 + 29 * i) % 13 / 13) for i in range(9)]
    found = places(*(row(str(i), *point) for i, point in enumerate(drawn)))
    for i, (s, k) in enumerate(drawn):
        others = itertools.chain(drawn[:i], drawn[i + 1 :])
        beaten = any(a <= s and b >= k and (a, b) != (s, k) for a, b in others)
        assert (found[str(i)] == "front") == (not beaten)


def test_standings_survive_the_disk() -> None:
    found = standings(row("none", 1.0, 1.0, kind="none"), row("a", 0.1, 0.9, warning="beware"))
    assert Standings.model_validate_json(found.model_dump_json()) == found
    assert metric(LOCALITY, 0.5, None).interval is None
