"""``safeedit attack``: a checkpoint from somebody else, attacked with a policy's data."""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch

from safeedit.model.sources import open_model
from safeedit.records import RunRecord
from tests.road import SMALL_DRIFT, Workplace

PROD: dict[str, Any] = {"use": "prod", "by": 0.1, "audits": ["drift"]}
GATE: dict[str, Any] = {"metric": "drift.distance", "max": 1.0e9, "min_n": 1, "under": "prod"}


def edited(place: Workplace) -> str:
    """A copy of the model in which one matrix is another."""
    folder = place.folder / "theirs"
    shutil.copytree(place.folder / "model", folder)
    handle = open_model(str(folder), device="cpu")
    with torch.no_grad():
        handle.stored("model.layers.1.mlp.down_proj.weight").add_(0.01)
    handle.model.save_pretrained(folder)
    return str(folder)


def test_it_attacks_both_models_and_exports_nothing(place: Workplace) -> None:
    policy, theirs = place.policy(attacks=[PROD], gates=[SMALL_DRIFT, GATE]), edited(place)
    reports = place.folder / "reports"
    ran = place.run("attack", theirs, "--policy", policy, "--report", reports, "--json")
    assert ran.exit_code == 0, ran.stderr
    record = RunRecord.model_validate(json.loads(ran.stdout))
    assert record.command == "attack"
    assert not record.edits
    assert record.export is None
    assert record.model.source == theirs
    assert record.compared_with is not None
    assert record.compared_with.digest != record.model.digest
    (attack,) = record.attacks
    assert all(point.base and point.edited for point in attack.points)
    (drift,) = [c for c in record.comparisons if c.name == "drift.distance"]
    assert drift.before is not None
    assert (drift.before.value, drift.after.value) != (0.0, 0.0)
    assert not place.target.exists()
    assert (reports / "report.json").exists()


def test_a_gate_that_fails_under_an_attack_gives_1(place: Workplace) -> None:
    policy = place.policy(attacks=[PROD], gates=[{**GATE, "max": 0.0}])
    ran = place.run(
        "attack", edited(place), "--policy", policy, "--report", place.folder / "reports"
    )
    assert ran.exit_code == 1


def test_a_policy_without_attacks_is_refused(place: Workplace) -> None:
    ran = place.run("attack", place.folder / "model", "--policy", place.policy())
    assert ran.exit_code == 2
    assert "the policy has no attacks" in ran.stderr


def test_a_checkpoint_that_is_not_there_is_refused(place: Workplace) -> None:
    policy = place.policy(attacks=[PROD], gates=[SMALL_DRIFT, GATE])
    ran = place.run("attack", place.folder / "nowhere", "--policy", policy)
    assert ran.exit_code in (2, 3)
    assert "nowhere" in ran.stderr


def test_audit_leaves_attacks_and_gates_under_them_aside(place: Workplace) -> None:
    policy = place.policy(attacks=[PROD], gates=[SMALL_DRIFT, GATE])
    ran = place.run("audit", policy, "--report", place.folder / "reports", "--json")
    assert ran.exit_code == 0, ran.stderr
    record = RunRecord.model_validate(json.loads(ran.stdout))
    assert not record.attacks
    assert [verdict.under for verdict in record.verdicts] == [""]
