"""Gates decide on what was measured, and say when that is too little."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeedit.policy import GateSpec
from safeedit.policy.gate import MEANINGS
from safeedit.records import (
    Comparison,
    ControlRecord,
    EditRecord,
    Metric,
    Nearness,
    Status,
    Verdict,
)
from safeedit.statistics.metrics import compare, mean_metric, rate_metric
from safeedit.statistics.verdicts import judge, judge_against, overall, verdicts_on

NAME = "leakage.extraction_rate"


def gate(**conditions: Any) -> GateSpec:
    return GateSpec.model_validate({"metric": NAME, **conditions})


def rate(successes: int, n: int) -> Metric:
    return rate_metric(NAME, {str(i): i < successes for i in range(n)}, "rate", "lower")


def mean(*values: float) -> Metric:
    return mean_metric(NAME, {str(i): v for i, v in enumerate(values)}, "nats", "lower")


def status(spec: GateSpec, after: Metric, before: Metric | None = None) -> Status:
    return judge(spec, compare(before, after)).status


@pytest.mark.parametrize(
    ("conditions", "successes", "expected"),
    [
        ({"max": 0.1}, 9, "pass"),
        ({"max": 0.1}, 10, "pass"),
        ({"max": 0.1}, 11, "fail"),
        ({"min": 0.1}, 9, "fail"),
        ({"min": 0.1}, 10, "pass"),
        ({"min": 0.1}, 11, "pass"),
    ],
)
def test_the_point_estimate_decides_and_the_bound_itself_is_inside(
    conditions: dict[str, float], successes: int, expected: Status
) -> None:
    assert status(gate(**conditions), rate(successes, 100)) == expected


@pytest.mark.parametrize(
    ("conditions", "successes", "expected"),
    [
        ({"max": 0.1}, 1, "pass"),
        ({"max": 0.1}, 8, "inconclusive"),
        ({"max": 0.1}, 12, "inconclusive"),
        ({"max": 0.1}, 30, "fail"),
        ({"min": 0.9}, 99, "pass"),
        ({"min": 0.9}, 92, "inconclusive"),
        ({"min": 0.9}, 50, "fail"),
    ],
)
def test_with_confidence_the_whole_interval_decides(
    conditions: dict[str, float], successes: int, expected: Status
) -> None:
    assert status(gate(**conditions, confidence=0.95), rate(successes, 100)) == expected


def test_a_higher_confidence_asks_for_more_evidence() -> None:
    after = rate(3, 100)
    assert after.interval is not None
    assert after.interval.high < 0.09
    assert status(gate(max=0.09, confidence=0.95), after) == "pass"
    assert status(gate(max=0.09, confidence=0.999), after) == "inconclusive"
    assert "0.999 interval" in judge(gate(max=0.09, confidence=0.999), compare(None, after)).reason


def test_no_leak_in_twenty_is_no_proof_of_less_than_two_percent() -> None:
    assert status(gate(max=0.02), rate(0, 20)) == "pass"
    assert status(gate(max=0.02, confidence=0.95), rate(0, 20)) == "inconclusive"
    assert status(gate(max=0.02, confidence=0.95), rate(0, 200)) == "pass"


@pytest.mark.parametrize(
    ("conditions", "before", "after", "expected"),
    [
        ({"max_increase": 0.1}, 50, 60, "pass"),
        ({"max_increase": 0.1}, 50, 61, "fail"),
        ({"max_increase": 0.1}, 50, 10, "pass"),
        ({"max_increase": "20%"}, 50, 60, "pass"),
        ({"max_increase": "20%"}, 50, 61, "fail"),
        ({"max_decrease": 0.1}, 50, 40, "pass"),
        ({"max_decrease": 0.1}, 50, 39, "fail"),
        ({"max_decrease": 0.1}, 50, 90, "pass"),
        ({"max_decrease": "10%"}, 50, 45, "pass"),
        ({"max_decrease": "10%"}, 50, 44, "fail"),
        ({"min_decrease": 0.1}, 50, 40, "pass"),
        ({"min_decrease": 0.1}, 50, 41, "fail"),
        ({"min_decrease": "30%"}, 50, 35, "pass"),
        ({"min_decrease": "30%"}, 50, 90, "fail"),
        ({"min_increase": "30%"}, 50, 65, "pass"),
        ({"min_increase": "30%"}, 50, 64, "fail"),
        ({"max_increase": "5%"}, 0, 0, "inconclusive"),
        ({"max_increase": "5%"}, 0, 1, "inconclusive"),
    ],
)
def test_changes_are_held_against_the_value_before(
    conditions: dict[str, Any], before: int, after: int, expected: Status
) -> None:
    assert status(gate(**conditions), rate(after, 100), rate(before, 100)) == expected


def test_rounding_does_not_put_a_change_on_the_wrong_side_of_its_bound() -> None:
    before, after = (rate(n, 100).model_copy(update={"items": {}}) for n in (70, 80))
    assert compare(before, after).difference == 0.8 - 0.7 > 0.1
    assert status(gate(max_increase=0.1), after, before) == "pass"


def test_a_change_is_judged_at_the_confidence_asked_for() -> None:
    before, after = rate(50, 100), rate(53, 100)
    interval = compare(before, after).difference_interval
    assert interval is not None
    assert interval.high < 0.09
    assert status(gate(max_increase=0.09, confidence=0.95), after, before) == "pass"
    assert status(gate(max_increase=0.09, confidence=0.999), after, before) == "inconclusive"


def test_a_share_of_a_negative_value_is_a_share_of_its_size() -> None:
    before, after = mean(*[-10.0] * 12), mean(*[-9.6] * 12)
    assert status(gate(max_increase="5%"), after, before) == "pass"
    assert status(gate(max_increase="3%"), after, before) == "fail"


def test_with_confidence_a_change_is_judged_by_its_paired_interval() -> None:
    before = mean(*[1.0 + i for i in range(40)])
    after = mean(*[1.05 + i + (i % 3 - 1) * 0.01 for i in range(40)])
    # The spread between items is 200 times the change; pairs see it all the same.
    assert status(gate(max_increase=0.08, confidence=0.95), after, before) == "pass"
    assert status(gate(max_increase=0.05, confidence=0.95), after, before) == "inconclusive"
    assert status(gate(max_increase=0.02, confidence=0.99), after, before) == "fail"
    assert status(gate(max_increase="1%", confidence=0.95), after, before) == "pass"


def test_no_change_in_ten_pairs_is_no_proof_of_no_change() -> None:
    same = rate(5, 10)
    assert status(gate(max_decrease=0.05, confidence=0.95), same, same) == "inconclusive"
    many = rate(500, 1000)
    assert status(gate(max_decrease=0.05, confidence=0.95), many, many) == "pass"


@pytest.mark.parametrize("conditions", [{"max": 0.5}, {"max_increase": 0.5}])
def test_too_few_items_are_inconclusive_whatever_they_say(conditions: dict[str, float]) -> None:
    verdict = judge(gate(**conditions), compare(rate(0, 3), rate(0, 3)))
    assert verdict.status == "inconclusive"
    assert "3 independent items, fewer than the 10" in verdict.reason
    assert status(gate(**conditions, min_n=3), rate(0, 3), rate(0, 3)) == "pass"


def test_many_phrasings_of_three_facts_are_still_three() -> None:
    items = {str(i): False for i in range(60)}
    groups = {key: str(int(key) % 3) for key in items}
    after = rate_metric(NAME, items, "rate", "lower", groups=groups)
    assert status(gate(max=0.5), after) == "inconclusive"


def test_what_was_not_measured_is_inconclusive() -> None:
    skipped = judge(gate(max=0.1), None)
    assert skipped.status == "inconclusive"
    assert "skipped" in skipped.reason
    assert status(gate(max=0.1), rate(0, 0)) == "inconclusive"
    assert status(gate(max=0.1), rate(1, 20).model_copy(update={"value": float("nan")})) == (
        "inconclusive"
    )
    infinite = mean(*[1.0] * 20, float("inf"))
    verdict = judge(gate(max=5.0), compare(None, infinite))
    assert verdict.status == "inconclusive"
    assert "not finite" in verdict.reason


def test_a_change_without_a_before_is_inconclusive() -> None:
    assert status(gate(max_increase=0.1), rate(1, 20)) == "inconclusive"
    assert status(gate(max_increase=0.1), rate(1, 20), rate(0, 0)) == "inconclusive"


def test_confidence_without_an_interval_is_inconclusive() -> None:
    after = rate(0, 20).model_copy(update={"interval": None})
    assert status(gate(max=0.5), after) == "pass"
    assert status(gate(max=0.5, confidence=0.95), after) == "inconclusive"


def test_a_verdict_tells_the_resolved_bound_and_reads_as_a_sentence() -> None:
    verdict = judge(gate(max_increase="10%"), compare(rate(50, 100), rate(56, 100)))
    assert verdict.bound == pytest.approx(0.05)
    assert verdict.bound_on_metric == pytest.approx(0.55)
    assert verdict.value == pytest.approx(0.06)
    assert verdict.condition == "max_increase 10%"
    assert verdict.reason == f"{NAME} changed by +0.06, above the bound 0.05"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(MEANINGS)),
    bound=st.floats(0, 1),
    before=st.integers(0, 30),
    after=st.integers(0, 30),
)
def test_confidence_never_turns_a_verdict_round(
    kind: str, bound: float, before: int, after: int
) -> None:
    comparison = compare(rate(before, 30), rate(after, 30))
    point = judge(gate(**{kind: bound}), comparison).status
    careful = judge(gate(**{kind: bound}, confidence=0.95), comparison).status
    assert point in ("pass", "fail")
    assert careful in (point, "inconclusive")


@settings(max_examples=100, deadline=None)
@given(bound=st.floats(0, 1), easier=st.floats(0, 1), successes=st.integers(0, 30))
def test_an_easier_bound_is_never_judged_worse(bound: float, easier: float, successes: int) -> None:
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    comparison = compare(None, rate(successes, 30))
    low, high = sorted((bound, easier))
    strict = judge(gate(max=low, confidence=0.9), comparison).status
    lax = judge(gate(max=high, confidence=0.9), comparison).status
    assert order[strict] <= order[lax]


def _verdict(found: Status) -> Verdict:
    return judge(gate(max=1), None).model_copy(update={"status": found})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], ("pass", 0)),
        (["pass", "pass"], ("pass", 0)),
        (["pass", "inconclusive"], ("inconclusive", 4)),
        (["inconclusive", "fail", "pass"], ("fail", 1)),
    ],
)
def test_one_failure_fails_and_one_doubt_is_inconclusive(
    found: list[Status], expected: tuple[Status, int]
) -> None:
    assert overall([_verdict(one) for one in found]) == expected


def test_judging_changes_nothing() -> None:
    comparison = compare(rate(3, 20), rate(1, 20))
    copy = Comparison.model_validate_json(comparison.model_dump_json())
    first = judge(gate(max_increase=0.1, confidence=0.9), comparison)
    assert comparison == copy
    assert judge(gate(max_increase=0.1, confidence=0.9), copy) == first


def test_gates_need_no_torch() -> None:
    code = "import sys, safeedit.statistics.verdicts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Against random changes -----------------------------------------------------------------


def edit(identity: str, *controls: tuple[Metric, bool]) -> EditRecord:
    """An edit with controls, whose metrics these are; True for random ones."""
    return EditRecord(
        id=identity, use="toy", params={}, data_digests={}, dose=1.0, dose_mode="fixed",
        dose_curve=(), targets_met=None, changes=(), delta_digest="",
        untouched_verified=0, seconds=0.0,
        controls=tuple(
            ControlRecord(name="random delta", random=drawn, seed=seed, metrics=(metric,))
            for seed, (metric, drawn) in enumerate(controls, 1)
        ),
    )  # fmt: skip


def test_a_gate_against_random_holds_the_edit_beside_the_random_change() -> None:
    asked = gate(min_decrease=0.3, against="random")
    after, base = rate(10, 100), rate(90, 100)
    # The untouched model plays no part: the random change brought the rate to .35 by itself.
    (verdict,) = verdicts_on(
        asked, {NAME: compare(base, after)}, [edit("one", (rate(35, 100), True))], []
    )
    assert verdict.status == "fail"
    assert (verdict.value, verdict.bound) == (pytest.approx(-0.25), pytest.approx(-0.3))
    assert verdict.bound_on_metric == pytest.approx(0.05)
    assert (verdict.against, verdict.under) == ("random", "")
    assert verdict.condition == "min_decrease 0.3 against random"
    assert verdict.reason == (
        f"{NAME} against random delta, seed 1: differs by -0.25, above the bound -0.3"
    )
    assert judge(gate(min_decrease=0.3), compare(base, after)).status == "pass"


def test_the_random_change_that_does_best_is_the_one_to_beat() -> None:
    draws = [(rate(successes, 100), True) for successes in (80, 20, 60)]
    verdict = judge_against(gate(min_decrease=0.3, against="random"), rate(10, 100), [
        edit("one", *draws, (rate(0, 100), False)),  # the last one is the editor's own choice
    ])  # fmt: skip
    assert verdict.status == "fail"
    assert verdict.value == pytest.approx(-0.1)
    assert "seed 2" in verdict.reason


def test_of_several_edits_the_one_that_is_named_lends_its_control() -> None:
    edits = [edit("one", (rate(90, 100), True)), edit("two", (rate(15, 100), True))]
    for named, value in (("one", -0.8), ("two", -0.05)):
        asked = gate(min_decrease=0.3, against=f"random in place of {named}")
        assert judge_against(asked, rate(10, 100), edits).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("controls", "reason"),
    [
        ([], "no random change was made"),
        ([(rate(0, 100), False)], "no random change was made"),
        ([(mean(1.0).model_copy(update={"name": "leakage.other"}), True)], "has no value with the"),
        ([(rate(0, 100), True)], "was 0 with the random delta: 30% of nothing is no bound"),
    ],
)
def test_without_a_random_change_to_compare_with_it_is_inconclusive(
    controls: list[tuple[Metric, bool]], reason: str
) -> None:
    asked = gate(min_decrease="30%", against="random")
    verdict = judge_against(asked, rate(10, 100), [edit("one", *controls)])
    assert verdict.status == "inconclusive"
    assert reason in verdict.reason
    assert judge_against(asked, None, [edit("one", *controls)]).status == "inconclusive"


def test_a_confidence_is_asked_of_the_difference_from_the_random_change() -> None:
    asked = gate(min_decrease=0.1, against="random", confidence=0.95)
    statuses = {
        judge_against(asked, rate(10, 100), [edit("one", (rate(random, 100), True))]).status
        for random in (60, 22, 10)
    }
    assert statuses == {"pass", "inconclusive", "fail"}


# How near -------------------------------------------------------------------------------


def near(spec: GateSpec, after: Metric, before: Metric | None = None) -> Nearness | None:
    return judge(spec, compare(before, after)).nearness


@pytest.mark.parametrize(
    ("spec", "after", "items"),
    [
        (gate(max=0.1), rate(8, 82), 1),  # .0976: with 9 of 82 it is .1098
        (gate(max=0.1), rate(9, 82), 1),  # fails, and passes with 8
        (gate(max=0.1), rate(10, 100), 1),  # on the bound: one more fails
        (gate(max=0.1), rate(8, 100), 3),  # two more are on the bound
        (gate(max=0.1), rate(12, 100), 2),  # two fewer are on it
        (gate(min=0.5), rate(80, 100), 31),
    ],
)
def test_it_says_how_many_items_would_turn_a_rates_verdict(
    spec: GateSpec, after: Metric, items: int
) -> None:
    found = near(spec, after)
    assert found is not None
    assert (found.items, found.of, found.gap) == (items, after.n, None)
    # The word holds: with so many items the verdict is another one, with one fewer it is not.
    held = round((after.value or 0) * after.n)
    passes = status(spec, after) == "pass"
    worse = 1 if spec.meaning.passes == "below" else -1
    turn = worse if passes else -worse
    for count, turned in ((items, True), (items - 1, False)):
        other = status(spec, rate(held + turn * count, after.n))
        assert (other == "pass") is (passes is not turned)


def test_of_a_change_the_items_are_those_that_pair_up() -> None:
    found = near(gate(max_decrease=0.02), rate(80, 82), rate(81, 82))
    assert found == Nearness(items=1, of=82)
    assert found.is_near


def test_no_number_of_items_turns_a_bound_that_none_can_reach() -> None:
    assert near(gate(max=1.0), rate(100, 100)) is None


def test_of_means_and_intervals_it_says_where_the_bound_lies() -> None:
    after = mean(*[1.0, 2.0] * 30)
    assert after.interval is not None
    low, high = after.interval.low, after.interval.high
    within = near(gate(max=1.55), after)
    assert within == Nearness(gap=0.0)
    assert within.is_near
    far = near(gate(max=high + (high - low)), after)
    assert far is not None
    assert far.gap == pytest.approx(1.0)
    assert not far.is_near
    held = near(gate(max=0.5, confidence=0.95), rate(10, 100))
    assert held is not None
    assert held.items is None
    assert (held.gap or 0) > 1


def test_what_was_not_judged_is_near_nothing() -> None:
    assert near(gate(max=0.5), rate(1, 5)) is None
    assert judge(gate(max=0.5), None).nearness is None
