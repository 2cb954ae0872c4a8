"""What a gate can tell is said while planning, at the number of items at hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safeedit.planning.plan import Plan
from safeedit.planning.resolution import make_plan
from safeedit.policy import load_policy
from safeedit.statistics.intervals import wilson
from tests.road import LEAKAGE, LOCALITY, REAL, Workplace

pytestmark = pytest.mark.usefixtures("toys")


def planned(place: Workplace, n: int, gate: dict[str, Any]) -> Plan:
    """With ``n`` different test items beside those to be erased."""
    rows = [
        {"prompt": f"What is the height of mountain {k}?", "answer": f"{k} feet", "split": split}
        for k, split in enumerate(["validation"] * 3 + ["test"] * n)
    ]
    place.rows("near.jsonl", rows)
    gates = [{"metric": "leakage.extraction_rate", "max": 0.5}, gate]
    parts = {**REAL, "audits": [LEAKAGE, LOCALITY], "gates": gates}
    return make_plan(load_policy(place.policy(**parts)))


def told(plan: Plan, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_it_says_how_many_items_there_are_and_what_one_weighs(place: Workplace) -> None:
    plan = planned(place, 50, {"metric": "locality.near_over_refusal", "max": 0.1})
    interval = wilson(5, 50)
    half = (interval.high - interval.low) / 2
    assert plan.summary()["gates"][1]["power"] == (
        "at most 50 independent items, of which one is 0.02; the half width of a 95 % interval is "
        f"about {half:.2g}"
    )


def test_items_that_tell_the_same_count_once(place: Workplace) -> None:
    gate = {"metric": "locality.near_over_refusal", "max": 0.1}
    planned(place, 12, gate)
    again = [
        {"prompt": f"What is the height of MOUNTAIN {k}", "answer": f"{k} feet", "split": "test"}
        for k in range(3, 9)
    ]
    text = (place.folder / "near.jsonl").read_text(encoding="utf-8")
    place.text("near.jsonl", text + "".join(json.dumps(row) + "\n" for row in again))
    plan = make_plan(load_policy(place.folder / "policy.yaml"))
    assert "at most 12 independent items" in plan.summary()["gates"][1]["power"]


@pytest.mark.parametrize(("n", "warned"), [(30, True), (40, False)])
def test_a_gate_that_no_outcome_can_meet_at_its_confidence_is_warned_of(
    place: Workplace, n: int, warned: bool
) -> None:
    # None of 30 is compatible with up to .114, none of 40 with up to .088.
    gate = {"metric": "locality.near_over_refusal", "max": 0.1, "confidence": 0.95}
    plan = planned(place, n, gate)
    assert told(plan, "can't pass: with at most 30 items the interval of 0 ends at 0.11") is warned
    assert told(plan, "give it some 35 items") is warned


def test_the_same_of_a_share_that_must_be_high(place: Workplace) -> None:
    gate = {"metric": "locality.near_accuracy_kept", "min": 0.95, "confidence": 0.95}
    assert told(planned(place, 40, gate), "the interval of 1 ends at 0.91")
    assert not told(planned(place, 100, gate), "can't pass")


@pytest.mark.parametrize(("n", "warned"), [(80, True), (400, False)])
def test_a_change_that_a_few_items_decide_is_warned_of(
    place: Workplace, n: int, warned: bool
) -> None:
    gate = {"metric": "locality.near_over_refusal", "max_increase": 0.02}
    plan = planned(place, n, gate)
    assert told(plan, f"is decided by few items: of at most {n} it allows 1,") is warned


def test_what_must_change_a_lot_and_what_is_no_share_is_not_warned_of(place: Workplace) -> None:
    for gate in (
        {"metric": "leakage.extraction_rate", "min_decrease": 0.3},
        {"metric": "leakage.extraction_rate", "min_decrease": "30%"},
        {"metric": "locality.near_f1", "min": 0.99},
    ):
        plan = planned(place, 12, gate)
        assert not told(plan, "few items")
        assert not told(plan, "can't pass")
    assert plan.summary()["gates"][1]["power"] == ""


def test_plan_shows_it(place: Workplace) -> None:
    planned(place, 50, {"metric": "locality.near_over_refusal", "max": 0.1})
    result = place.run("plan", place.folder / "policy.yaml")
    assert result.exit_code == 0, result.stderr
    assert "    at most 50 independent items, of which one is 0.02; the half width" in result.stdout
    listed = json.loads(place.run("plan", place.folder / "policy.yaml", "--json").stdout)["gates"]
    assert {"metric", "condition", "power"} == set(listed[0])
