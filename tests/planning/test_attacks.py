"""Attacks in a policy: what is refused while planning, where, and with what remedy."""

from __future__ import annotations

from typing import Any

import pytest

from safeedit.auditors.leakage.askings import ASKINGS
from safeedit.data.splitting import normalise_prompt
from safeedit.errors import DataError, PolicyError, SafeeditError
from safeedit.planning.attacks import headline_of
from safeedit.planning.plan import Plan
from safeedit.planning.resolution import make_plan
from safeedit.policy import load_policy
from tests.road import DRIFT, FORGET, LEAKAGE, NUDGE, SMALL_DRIFT, Workplace

FORGOTTEN: dict[str, Any] = {"file": "forget.jsonl"}
RELEARN: dict[str, Any] = {"use": "relearn", "steps": [2], "batch": 2, "audits": ["leakage"]}
KNOWN: dict[str, Any] = {"metric": "leakage.known_before", "min": 0, "min_n": 1}
LEAKS: dict[str, Any] = {"metric": "leakage.extraction_rate", "max": 1, "min_n": 1}


def planned(place: Workplace, **parts: Any) -> Plan:
    given = {"audits": [LEAKAGE], "gates": [KNOWN], "export": None, **parts}
    return make_plan(load_policy(place.policy(**given)))


def told(place: Workplace, **parts: Any) -> SafeeditError:
    """What planning says of a policy that it refuses."""
    given = {"audits": [LEAKAGE, DRIFT], "gates": [KNOWN], "export": None, **parts}
    path = place.policy(**given)
    with pytest.raises((PolicyError, DataError)) as caught:
        make_plan(load_policy(path))
    return caught.value


@pytest.mark.parametrize(
    ("attack", "field", "message"),
    [
        ({"use": "quantise", "audits": ["drift"]}, "use", "there is no attack called 'quantise'"),
        ({"use": "quantize", "audits": ["drifd"]}, "audits[0]", "an audit that is not there"),
        ({"use": "quantize", "audits": []}, "audits", "names no audit"),
        ({"use": "quantize"}, "audits", "is required"),
        ({"use": "quantize", "audits": ["drift", "drift"]}, "audits", "names an audit twice"),
        ({"use": "quantize", "audits": ["drift"], "bits": [1]}, "bits[0]", "greater than or equal"),
        ({"use": "quantize", "audits": ["drift"], "bits": [17]}, "bits[0]", "less than or equal"),
        ({"use": "quantize", "audits": ["drift"], "bits": []}, "", "no strength to try"),
        ({"use": "quantize", "audits": ["drift"], "share": 0.5}, "share", "no data"),
        ({"use": "quantize", "audits": ["drift"], "seeds": 3}, "seeds", "nothing at random"),
        ({"use": "quantize", "audits": ["drift"], "step": 3}, "step", "unknown key"),
        ({"use": "quantize", "audits": ["drift"], "askings": "all"}, "askings", "in more than one"),
        ({"use": "quantize", "audits": ["leakage"], "askings": "some"}, "askings", "'all'"),
        ({**RELEARN, "data": {"file": "near.jsonl"}, "steps": [0]}, "steps[0]", "greater than"),
        (RELEARN, "", "data is missing"),
        ({**RELEARN, "data": {"file": "near.jsonl"}, "steps": []}, "", "no strength to try"),
        ({"use": "prune", "audits": ["drift"], "shares": []}, "", "no strength to try"),
        ({**RELEARN, "data": FORGOTTEN}, "data", "would be taught 4 items that audit leakage asks"),
        ({**RELEARN, "data": FORGOTTEN, "share": 1.0}, "share", "less than 1"),
        ({**RELEARN, "data": FORGOTTEN, "overlap": "yes"}, "overlap", "'meant'"),
    ],
)
def test_an_attack_that_cannot_work_is_refused_where_it_stands(
    place: Workplace, attack: dict[str, Any], field: str, message: str
) -> None:
    error = told(place, attacks=[attack])
    assert message in error.message
    assert error.field == ("attacks[0]." + field).rstrip(".")
    assert error.line


def test_data_that_is_not_there_is_named_with_the_place_that_asks_for_it(place: Workplace) -> None:
    error = told(place, attacks=[{**RELEARN, "data": {"file": "none.jsonl"}}])
    assert "there is no such file (asked for at " in error.message
    assert "policy.yaml:" in error.message


@pytest.mark.parametrize(
    ("gate", "field", "message"),
    [
        ({**SMALL_DRIFT, "under": "prune"}, "under", "names an attack that is not there: prune"),
        ({**SMALL_DRIFT, "under": ["quantize", "x"]}, "under", "names an attack that is not there"),
        ({**KNOWN, "under": "quantize"}, "under", "does not repeat that audit"),
        ({"metric": "drift.recovered", "max": 0.1}, "metric", "say which with 'under: ID'"),
        ({"metric": "nothing.recovered", "max": 0.1, "under": "quantize"}, "metric", "not there"),
    ],
)
def test_a_gate_under_an_attack_that_says_nothing_is_refused(
    place: Workplace, gate: dict[str, Any], field: str, message: str
) -> None:
    error = told(place, attacks=[{"use": "quantize", "audits": ["drift"]}], gates=[KNOWN, gate])
    assert message in error.message
    assert error.field == f"gates[1].{field}"
    assert error.line


def test_without_attacks_no_gate_can_be_under_one(place: Workplace) -> None:
    error = told(place, gates=[KNOWN, {**SMALL_DRIFT, "under": "quantize"}])
    assert "the policy has none" in error.message
    assert error.field == "gates[1].under"


def test_an_attack_needs_an_audit_to_repeat(place: Workplace) -> None:
    attack = {"use": "quantize", "audits": ["drift"]}
    error = told(place, audits=[], gates=[], attacks=[attack])
    assert "names an audit that is not there: drift" in error.message


def test_a_target_cannot_stand_under_an_attack(place: Workplace) -> None:
    edit = {**NUDGE, "targets": [{**SMALL_DRIFT, "under": "quantize"}]}
    error = told(place, edits=[edit], attacks=[{"use": "quantize", "audits": ["drift"]}])
    assert error.field == "edits[0].targets[0].under"
    assert "doses are chosen without attacks" in error.message


def test_ids_are_shared_with_edits_and_audits(place: Workplace) -> None:
    error = told(place, attacks=[{"use": "quantize", "id": "drift", "audits": ["drift"]}])
    assert error.field == "attacks[0].id"


def test_a_share_teaches_some_subjects_and_asks_about_the_others(place: Workplace) -> None:
    plan = planned(place, attacks=[{**RELEARN, "data": FORGOTTEN, "share": 0.5}])
    (attack,) = plan.attacks
    (audit,) = attack.audits
    taught = {item.subject for item in attack.data["data"]}
    asked = {item.subject for item in audit.data["forget"]}
    assert len(taught) == len(asked) == attack.left_out == 2
    assert taught | asked == {row["subject"] for row in FORGET}
    assert not taught & asked
    (whole,) = plan.audits
    assert len(whole.data["forget"]) == 4, "without the attack all are asked"
    assert audit.data["forget"].digest != whole.data["forget"].digest
    said = {normalise_prompt(p.text) for p in audit.data["forget"].phrasings("test")}
    assert said < {normalise_prompt(p.text) for p in whole.data["forget"].phrasings("test")}


def test_an_overlap_that_is_meant_leaves_nothing_out(place: Workplace) -> None:
    plan = planned(place, attacks=[{**RELEARN, "data": FORGOTTEN, "overlap": "meant"}])
    (attack,) = plan.attacks
    assert attack.audits[0] is plan.audits[0]
    assert attack.left_out == 0


def test_a_share_of_data_that_no_audit_asks_about_is_warned_of(place: Workplace) -> None:
    attack = {**RELEARN, "data": {"file": "near.jsonl"}, "share": 0.5}
    plan = planned(place, attacks=[attack])
    assert any("only makes that data fewer" in warning for warning in plan.warnings)


def test_the_same_fact_asked_in_other_words_is_an_overlap_too(place: Workplace) -> None:
    row = {"prompt": "Say where one finds her.", "subject": FORGET[0]["subject"].upper(),
           "answer": FORGET[0]["answer"]}  # fmt: skip
    place.rows("other.jsonl", [row])
    error = told(place, attacks=[{**RELEARN, "data": {"file": "other.jsonl"}}])
    assert "would be taught 1 item" in error.message


def test_what_is_looked_at_under_an_attack_is_what_gates_ask_and_the_headline(
    place: Workplace,
) -> None:
    gate = {"metric": "leakage.refusal_rate", "min": 0, "min_n": 1, "under": "relearn"}
    attack = {**RELEARN, "data": {"file": "near.jsonl"}}
    plan = planned(place, attacks=[attack], gates=[KNOWN, LEAKS, gate])
    (planned_attack,) = plan.attacks
    looked_at = {"extraction_rate", "extraction_rate_cloze", "refusal_rate"}
    assert planned_attack.wanted == {"leakage": looked_at}
    assert headline_of(plan.audits[0]) == "extraction_rate"
    assert plan.gates_as_is == plan.gates[:2]
    assert plan.summary()["gates"][2]["condition"] == "min 0 under relearn"


def test_an_asking_that_is_unknown_is_named_where_it_stands(place: Workplace) -> None:
    """The parameter takes a word or a list: the fault is the one within what was written."""
    error = told(place, audits=[{**LEAKAGE, "askings": ["plain", "closed"]}])
    assert error.field == "audits[0].askings[1]"
    assert "should be 'prefix', 'few_shot'" in error.message
    assert error.remedy == "did you mean 'cloze'?"


@pytest.mark.parametrize(
    ("askings", "own"),
    [
        (("plain",), {"plain"}),
        ("all", {*ASKINGS}),
    ],
)
def test_an_attack_repeats_every_asking_where_it_is_told_to(
    place: Workplace, askings: Any, own: set[str]
) -> None:
    audit = {**LEAKAGE, "askings": askings}
    attacks = [
        {"use": "quantize", "audits": ["leakage"], "askings": "all"},
        {"use": "quantize", "id": "headline", "audits": ["leakage"]},
    ]
    every, headline = planned(place, audits=[audit], attacks=attacks).attacks
    rates = {f"extraction_rate_{asking}" for asking in {"direct", "worst", *own}}
    assert every.wanted == {"leakage": {"extraction_rate", "items_told", *rates}}
    assert headline.wanted == {"leakage": {"extraction_rate"}}


def test_attacks_cost_time_and_memory_in_the_plan(place: Workplace) -> None:
    attack = {**RELEARN, "data": {"file": "near.jsonl"}}
    without = planned(place).estimates()
    found = planned(place, attacks=[attack]).estimates()
    for name in ("forward_tokens", "training_tokens", "peak_memory_bytes"):
        assert found[name] > without[name]


def test_the_attacks_data_is_in_the_fingerprint_and_under_a_keyed_digest(place: Workplace) -> None:
    attack = {**RELEARN, "data": FORGOTTEN, "share": 0.5}
    path = place.policy(audits=[LEAKAGE], gates=[KNOWN], export=None, attacks=[attack])
    one, other = (make_plan(load_policy(path), key=key) for key in (b"a" * 32, b"b" * 32))
    name = "attack:relearn.data"
    assert one.fingerprint()["data"][name] != other.fingerprint()["data"][name]


def test_no_word_of_the_attacks_data_is_in_the_plan(place: Workplace) -> None:
    attack = {**RELEARN, "data": {**FORGOTTEN, "where": {"subject": "Zyxquand"}},
              "overlap": "meant"}  # fmt: skip
    ran = place.run(
        "plan", place.policy(audits=[LEAKAGE], gates=[KNOWN], export=None, attacks=[attack]),
        "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "Zyxquand" not in ran.output
