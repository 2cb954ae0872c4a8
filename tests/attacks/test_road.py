"""Attacks in a run: made on both models, undone, recorded, gated."""

from __future__ import annotations

from typing import Any

from safeedit.records import AttackRecord
from tests.road import SMALL_DRIFT, Workplace

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
    assert attack.restored
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
    kept = len(list((place.cache / "audits").iterdir()))
    again = place.policy(
        attacks=[QUANTIZE],
        gates=[SMALL_DRIFT, UNDER],
        export={"dir": "out/trial", "overwrite": True},
    )
    assert place.run("apply", again).exit_code == 0
    assert [point.base for a in attacks_of(place) for point in a.points] == [
        point.base for a in first for point in a.points
    ]
    assert len(list((place.cache / "audits").iterdir())) == kept
