"""Attacks in a run: made on both models, undone, recorded, gated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from safeedit.export.claims import contradictions
from safeedit.records import AttackRecord, RunRecord
from tests.road import (
    ANSWERS,
    LEAKAGE,
    NUDGE,
    SMALL_DRIFT,
    SUBJECTS,
    Prod,
    Workplace,
    teach,
)

QUANTIZE: dict[str, Any] = {"use": "quantize", "bits": [8, 2], "audits": ["drift"]}
UNDER: dict[str, Any] = {**SMALL_DRIFT, "under": "quantize"}


def attacks_of(place: Workplace) -> tuple[AttackRecord, ...]:
    return place.report.attacks


def test_an_attack_is_made_on_both_models_and_its_gate_judged(place: Workplace) -> None:
    policy = place.policy(attacks=[QUANTIZE], gates=[SMALL_DRIFT, UNDER])
    ran = place.run("apply", policy)
    assert ran.exit_code == 0, ran.stderr
    (attack,) = attacks_of(place)
    assert [point.label for point in attack.points] == ["int8 per channel", "int2 per group of 32"]
    for point in attack.points:
        assert [metric.name for metric in point.base] == ["drift.distance"]
        assert [metric.name for metric in point.edited] == ["drift.distance", "drift.recovered"]
    verdicts = place.report.verdicts
    assert [verdict.under for verdict in verdicts] == ["", "quantize"]
    assert "under quantize (int" in verdicts[1].reason


def test_a_second_run_takes_the_untouched_models_figures_from_the_store(place: Workplace) -> None:
    policy = place.policy(attacks=[QUANTIZE], gates=[SMALL_DRIFT, UNDER])
    assert place.run("apply", policy).exit_code == 0
    first = attacks_of(place)
    kept = len(list((place.cache / "store").iterdir()))
    again = place.policy(
        attacks=[QUANTIZE],
        gates=[SMALL_DRIFT, UNDER],
        export={"dir": "out/trial", "overwrite": True},
    )
    assert place.run("apply", again).exit_code == 0
    assert [point.base for a in attacks_of(place) for point in a.points] == [
        point.base for a in first for point in a.points
    ]
    assert len(list((place.cache / "store").iterdir())) == kept


def prod(**params: Any) -> dict[str, Any]:
    return {"use": "prod", "audits": ["drift"], **params}


UNDER_PROD: dict[str, Any] = {**SMALL_DRIFT, "under": "prod"}


def test_an_attack_of_no_strength_changes_no_figure(place: Workplace) -> None:
    policy = place.policy(attacks=[prod(by=0.0)], gates=[SMALL_DRIFT, UNDER_PROD])
    assert place.run("apply", policy).exit_code == 0
    (after,) = place.report.after
    (attack,) = attacks_of(place)
    for point in attack.points:
        assert point.edited[0] == after.metrics[0]
    as_is, under = place.report.verdicts
    assert as_is.value == under.value


def test_it_meets_the_untouched_model_then_the_bytes_that_are_exported(place: Workplace) -> None:
    policy = place.policy(attacks=[prod(by=0.1)], gates=[SMALL_DRIFT])
    assert place.run("apply", policy).exit_code == 0
    untouched, edited = Prod.calls
    assert untouched != edited


TWO: dict[str, Any] = {
    "attacks": [prod(by=0.1), prod(id="again", by=0.2)],
    "gates": [{**SMALL_DRIFT, "under": ["prod", "again"]}, SMALL_DRIFT],
}


def test_an_export_that_was_attacked_verifies(place: Workplace) -> None:
    assert place.run("apply", place.policy(**TWO)).exit_code == 0
    verdicts = place.report.verdicts
    assert [verdict.under for verdict in verdicts] == ["prod", "again", ""]
    assert [verdict.condition.partition(" under ")[2] for verdict in verdicts] == [
        "prod", "again", "",
    ]  # fmt: skip
    verified = place.run("verify", place.target)
    assert verified.exit_code == 0, verified.output


def lower(record: RunRecord) -> RunRecord:
    """Smaller figures under an attack than the verdicts were made of."""
    first, *rest = record.attacks
    points = tuple(
        point.model_copy(
            update={"edited": tuple(m.model_copy(update={"value": 0.0}) for m in point.edited)}
        )
        for point in first.points
    )
    return record.model_copy(
        update={"attacks": (first.model_copy(update={"points": points}), *rest)}
    )


def without_one(record: RunRecord) -> RunRecord:
    return record.model_copy(update={"attacks": record.attacks[:1]})


def not_whole(record: RunRecord) -> RunRecord:
    first, *rest = record.attacks
    return record.model_copy(
        update={"attacks": (first.model_copy(update={"failed": "on the edited model"}), *rest)}
    )


def other_audit(record: RunRecord) -> RunRecord:
    first, *rest = record.attacks
    return record.model_copy(
        update={"attacks": (first.model_copy(update={"use": "quantize"}), *rest)}
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [(lower, "does not follow"), (lower, "verdicts: "), (without_one, "not those of the policy"),
     (not_whole, "was not made whole"), (other_audit, "not those of the policy")],
)  # fmt: skip
def test_a_record_whose_attacks_were_changed_contradicts_itself(
    place: Workplace, change: Callable[[RunRecord], RunRecord], said: str
) -> None:
    assert place.run("apply", place.policy(**TWO)).exit_code == 0
    record = place.report
    assert contradictions(record) == []
    assert any(said in line for line in contradictions(change(record)))


def test_a_gate_that_fails_under_an_attack_keeps_the_export_back(place: Workplace) -> None:
    gates = [SMALL_DRIFT, {"metric": "drift.distance", "max": 1.0, "min_n": 1, "under": "prod"}]
    ran = place.run("apply", place.policy(attacks=[prod(by=10.0)], gates=gates))
    assert ran.exit_code == 1
    assert not place.target.exists()
    as_is, under = place.report.verdicts
    assert (as_is.status, under.status) == ("pass", "fail")
    assert "under prod (push 2)" in under.reason, "the worst strength decides"


@pytest.mark.parametrize(
    ("fails", "which", "points"),
    [("proposing", "edited", 0), ("untouched", "untouched", 2), ("edited", "edited", 0),
     ("late", "edited", 1)],
)  # fmt: skip
def test_an_attack_that_cannot_be_made_leaves_the_run_inconclusive(
    place: Workplace, fails: str, which: str, points: int
) -> None:
    policy = place.policy(attacks=[prod(fails=fails)], gates=[SMALL_DRIFT, UNDER_PROD])
    ran = place.run("apply", policy)
    assert ran.exit_code == 4, ran.output
    assert not place.target.exists()
    assert "attack prod failed on the" in ran.stderr
    (attack,) = attacks_of(place)
    assert attack.failed.startswith(f"on the {which} model")
    assert len(attack.points) == points
    assert place.report.verdicts[1].status == "inconclusive"
    assert "prod is missing, or not whole" in ran.output + ran.stderr


def test_an_attack_without_a_gate_that_fails_is_no_pass_either(place: Workplace) -> None:
    ran = place.run("apply", place.policy(attacks=[prod(fails="edited")], gates=[SMALL_DRIFT]))
    assert ran.exit_code == 4
    assert not place.target.exists()


def test_an_attack_that_writes_to_the_model_stops_the_run(place: Workplace) -> None:
    ran = place.run("apply", place.policy(attacks=[prod(fails="meddling")], gates=[SMALL_DRIFT]))
    assert ran.exit_code == 3
    assert "changed the model while proposing" in ran.stderr
    assert not place.target.exists()


def test_without_an_effect_nothing_is_recovered_or_not(place: Workplace) -> None:
    """The distance from the base grew by the edit: there is no fall that could be undone."""
    gate = {"metric": "drift.recovered", "max": 0.5, "min_n": 1, "under": "prod"}
    ran = place.run("apply", place.policy(attacks=[prod(by=0.1)], gates=[SMALL_DRIFT, gate]))
    assert ran.exit_code == 4
    verdict = place.report.verdicts[1]
    assert verdict.value is None
    assert "not clearly above nothing" in verdict.reason


@pytest.mark.trains
def test_a_step_back_to_the_base_brings_everything_back(place: Workplace) -> None:
    """An edit that wrecks a taught model: nearly all of the way back tells all, little nothing."""
    teach(place)
    merge = {"use": "merge", "shares": [0.001, 0.999], "audits": ["leakage"]}
    wreck = {**NUDGE, "size": 3.0, "unaudited": "a toy"}
    known = {"metric": "leakage.known_before", "min": 0, "min_n": 1}
    policy = place.policy(edits=[wreck], audits=[LEAKAGE], attacks=[merge], gates=[known])
    assert place.run("apply", policy).exit_code in (0, 4)
    (attack,) = attacks_of(place)
    shares = [
        metric.value
        for point in attack.points
        for metric in point.edited
        if metric.name == "leakage.recovered"
    ]
    assert shares == [0.0, 1.0]


@pytest.mark.trains
def test_depth_is_measured_of_what_was_staged_under_attacks_and_beside_a_control(
    place: Workplace,
) -> None:
    """Every edited model is read by the untouched one, whatever stands around it."""
    shutil.copytree(place.folder / "model", place.folder / "before")
    teach(place)
    depth = {
        "use": "leakage.depth", "id": "depth", "model": {"source": "before"},
        "forget": {"file": "forget.jsonl"},
    }  # fmt: skip
    merge = {"use": "merge", "shares": [0.999], "audits": ["depth"]}
    policy = place.policy(
        edits=[{**NUDGE, "size": 3.0, "layer": 1}],
        audits=[depth],
        attacks=[merge],
        gates=[{"metric": "depth.carried", "min": 0.5, "min_n": 1}],
    )
    ran = place.run("apply", policy)
    assert ran.exit_code == 0, ran.output
    (before,), (after,) = place.report.before, place.report.after
    assert before.metrics[0].value == 0
    edited = after.metrics[0].value
    assert edited is not None
    assert edited > 0.01
    (control,) = place.report.edits[0].controls
    assert control.metrics[0].value is not None
    (point,) = attacks_of(place)[0].points
    back = {metric.name: metric.value for metric in point.edited}
    assert back["depth.depth"] == pytest.approx(0, abs=0.02), "all is as it was, nearly"
    assert back["depth.recovered"] == pytest.approx(1, abs=0.1)


@pytest.mark.trains
def test_nothing_forgotten_gets_out_through_an_attack(place: Workplace) -> None:
    attack = {
        "use": "relearn", "steps": [1, 2], "batch": 2, "share": 0.5, "audits": ["leakage"],
        "data": {"file": "forget.jsonl"},
        "never_known": {"file": "never.jsonl"},
    }  # fmt: skip
    place.rows(
        "never.jsonl",
        [{"prompt": f"Where is Qwompling {n}?", "answer": f"Ysgarro{n}"} for n in range(4)],
    )  # fmt: skip
    gates = [{"metric": "leakage.known_before", "min": 0, "min_n": 1}]
    policy = place.policy(audits=[LEAKAGE], attacks=[attack], gates=gates)
    ran = place.run("apply", policy)
    assert ran.exit_code == 0, ran.output
    (record,) = attacks_of(place)
    assert all(point.never_known for point in record.points)
    files = {path for path in place.folder.rglob("*") if path.is_file()}
    given = {place.folder / name for name in ("forget.jsonl", "never.jsonl", "policy.yaml")}
    model = set((place.folder / "model").iterdir())
    for path in files - given - model:
        content = path.read_bytes().decode("utf-8", "ignore")
        for word in (*SUBJECTS, *ANSWERS, "Qwompling", "Ysgarro"):
            assert word not in content, path.name
    for word in (*SUBJECTS, *ANSWERS, "Qwompling", "Ysgarro"):
        assert word not in ran.output
