"""One policy with several seeds: what is run, what its gates make of it, what is left to check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeedit.export.manifest import write_manifest
from safeedit.records import RunRecord
from safeedit.workflows.verification import verify
from tests.road import DRIFT, NUDGE, Nudge, Workplace

LAX: dict[str, Any] = {"metric": "drift.distance", "max": 1.0e9, "min_n": 1}


def distances(record: RunRecord) -> list[float]:
    """How far each seed's edit went."""
    return [float(run.after[0].metrics[0].value or 0) for run in record.all_seeds]


def measure(place: Workplace) -> list[float]:
    """Distances of seeds 0, 1, 2, which are all different."""
    found = place.run("apply", place.policy(export=None, gates=[LAX]), "--seeds", 3, "--json")
    assert found.exit_code == 0, found.stderr
    values = distances(RunRecord.model_validate_json(found.stdout))
    assert len(set(values)) == 3
    return values


def gated(place: Workplace, kind: str, bound: float, **more: Any) -> RunRecord:
    """Three seeds held against a bound on the distance."""
    gate = {"metric": "drift.distance", kind: bound, "min_n": 1, **more}
    found = place.run("apply", place.policy(seeds=3, gates=[gate], export=None), "--json")
    record = RunRecord.model_validate_json(found.stdout)
    assert found.exit_code == record.exit_code
    return record


def test_each_seed_is_the_run_that_its_policy_alone_would_be(place: Workplace) -> None:
    found = place.run("apply", place.policy(seeds=2), "--json")
    assert found.exit_code == 0, found.stderr
    together = RunRecord.model_validate_json(found.stdout)
    assert [run.seed for run in together.all_seeds] == [0, 1]
    assert [run.export is None for run in together.all_seeds] == [False, True]
    for run in together.all_seeds:
        alone = place.run("apply", place.policy(seed=run.seed, export=None), "--json", "--fresh")
        own = RunRecord.model_validate_json(alone.stdout)
        assert distances(own) == distances(run.model_copy(update={"other_seeds": ()}))
        assert own.edits[0].delta_digest == run.edits[0].delta_digest
        assert own.policy_digest == (run.policy_digest if run.seed else own.policy_digest)


def test_the_second_time_nothing_is_fitted_again(place: Workplace) -> None:
    policy = place.policy(seeds=2)
    place.run("apply", policy)
    assert Nudge.calls.count("fit") == 2
    first = distances(place.report)
    again = place.policy(seeds=2, export={"dir": "out/trial", "overwrite": True})
    assert place.run("apply", again).exit_code == 0
    assert Nudge.calls.count("fit") == 2
    assert distances(place.report) == first


def test_gates_hold_for_the_worst_seed_or_for_the_mean_and_the_checkpoint(
    place: Workplace,
) -> None:
    measured = measure(place)
    next_to_it, worst = sorted(measured)[1:]
    passing = gated(place, "max", worst * 1.01)
    assert passing.status == "pass"
    (verdict,) = passing.verdicts
    assert verdict.value == pytest.approx(worst)
    assert [each.value for each in verdict.by_seed] == pytest.approx(measured)

    failing = gated(place, "max", (worst + next_to_it) / 2)
    (verdict,) = failing.verdicts
    assert failing.status == "fail"
    assert f"with seed {measured.index(worst)}, the worst of 3" in verdict.reason

    mean, own = sum(measured) / 3, measured[0]
    # On the side of the mean where the checkpoint's own seed is, so that it passes by itself.
    kind, worst = ("min", min(measured)) if own > mean else ("max", max(measured))
    bound = (mean + worst) / 2
    assert gated(place, kind, bound).status == "fail"
    passing = gated(place, kind, bound, over_seeds="mean")
    (verdict,) = passing.verdicts
    assert verdict.status == "pass"
    assert verdict.value == pytest.approx(mean)
    assert verdict.condition.endswith("in the mean over seeds")

    found = gated(place, "max" if own > mean else "min", (mean + own) / 2, over_seeds="mean")
    assert found.status == "fail"
    assert "with seed 0, which the checkpoint is of" in found.verdicts[0].reason


def test_an_audit_that_one_seed_lacks_makes_all_inconclusive(place: Workplace) -> None:
    broken = place.policy(seeds=2, audits=[{**DRIFT, "fails_on": "edited"}], gates=[LAX])
    assert place.run("apply", broken).exit_code == 4
    assert not place.target.exists()


def test_attacks_hold_for_every_seed(place: Workplace) -> None:
    attack = {"use": "prod", "by": 0.01, "audits": ["drift"]}
    policy = place.policy(seeds=2, attacks=[attack], gates=[{**LAX, "under": "prod"}, LAX])
    found = place.run("apply", policy, "--json")
    assert found.exit_code == 0, found.stderr
    record = RunRecord.model_validate_json(found.stdout)
    assert [len(run.attacks) for run in record.all_seeds] == [1, 1]
    assert [len(verdict.by_seed) for verdict in record.verdicts] == [2, 2]
    text = (place.folder / "out" / "trial.report" / "report.md").read_text()
    assert "drift.distance under prod, push 1" in text
    assert verify(place.target) == []


def test_an_export_is_verified_with_all_of_its_seeds(place: Workplace) -> None:
    place.run("apply", place.policy(seeds=3))
    assert verify(place.target) == []
    path = place.target / "evidence" / "report.json"
    honest = json.loads(path.read_text())

    def told(change: Any) -> str:
        record = json.loads(json.dumps(honest))
        change(record)
        path.write_text(RunRecord.model_validate(record).model_dump_json(indent=2) + "\n")
        write_manifest(place.target)
        return "\n".join(verify(place.target))

    def worse(record: Any) -> None:
        record["other_seeds"][0]["after"][0]["metrics"][0]["value"] = 1e12

    def fewer(record: Any) -> None:
        del record["other_seeds"][1]

    def better(record: Any) -> None:
        record["other_seeds"][1]["verdicts"][0]["value"] = 0.0

    def another(record: Any) -> None:
        record["other_seeds"][0]["policy"]["gates"][0]["max"] = 2e9

    def elsewhere(record: Any) -> None:
        record["other_seeds"][0]["model"]["digest"] = "0" * 64

    assert "seed 1: comparisons: drift.distance does not follow" in told(worse)
    assert "other_seeds: not those of the policy" in told(fewer)
    assert "seed 2: verdicts: drift.distance" in told(better)
    assert "seed 1 was run with another policy" in told(another)
    assert "seed 1 was run on another model" in told(elsewhere)
    assert told(lambda record: None) == ""


def test_every_report_shows_the_spread(place: Workplace) -> None:
    found = place.run("apply", place.policy(seeds=2))
    folder = place.folder / "out" / "trial.report"
    for text in (
        found.stderr,
        (folder / "report.md").read_text(),
        (folder / "report.html").read_text(),
        (place.target / "README.md").read_text(),
    ):
        assert "Over 2 seeds" in text
        assert "drift.distance" in text
        assert "One run with seed" not in text
    assert "Runs with seeds 0 and 1" in found.stderr.replace("\n  ", " ")


def test_a_plan_shows_its_seeds_and_apply_keeps_to_them(place: Workplace, tmp_path: Path) -> None:
    policy, plan = place.policy(), tmp_path / "plan.json"
    shown = place.run("plan", policy, "--seeds", 2, "-o", plan)
    assert "seeds 0, 1: a run with each" in shown.stdout
    assert place.run("apply", plan).exit_code == 0
    assert len(place.report.other_seeds) == 1
    refused = place.run("apply", plan, "--seeds", 3)
    assert refused.exit_code == 2
    assert "plan --seeds" in refused.stderr


def test_bad_numbers_of_seeds_are_refused(place: Workplace) -> None:
    policy = place.policy()
    assert place.run("apply", policy, "--seeds", 0).exit_code == 2
    many = place.run("apply", policy, "--seeds", 21)
    assert many.exit_code == 2
    assert "20 seeds" in many.stderr
    assert place.run("validate", place.policy(seeds=0)).exit_code == 2
    target = place.policy(
        edits=[{**NUDGE, "dose": "auto", "targets": [{**LAX, "over_seeds": "mean"}]}]
    )
    found = place.run("validate", target)
    assert found.exit_code == 2
    assert "has no place in a target" in found.stderr


def test_an_error_with_another_seed_says_with_which(place: Workplace) -> None:
    policy = place.policy(seeds=2, edits=[{**NUDGE, "use": "undecided"}])
    found = place.run("apply", policy)
    assert found.exit_code == 3
    assert "with seed 1: edit undecided: the editor proposed no dose" in found.stderr
