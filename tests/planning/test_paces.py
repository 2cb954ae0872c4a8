"""How long work takes here, learnt from finished runs; what is expected of the next."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from safeedit.planning.paces import FILE, KEPT, Paces
from safeedit.planning.road import PlannedStage, apply_road
from tests.road import ANSWERS, NUDGE, REAL, SUBJECTS, Workplace

BEFORE = PlannedStage(
    "audit before", "before", 1e6, {"leakage": 4e9, "perplexity": 1e9}, when="before"
)
AFTER = PlannedStage("audit after", "after", 1e6, {"leakage": 4e9, "perplexity": 1e9}, "after")
FIT = PlannedStage("edit a: fit", "fit sanitation", 5e9)


def paces(cache: Path, machine: str = "here") -> Paces:
    return Paces(cache, machine, "float32")


def learnt(cache: Path, *runs: float) -> Paces:
    """After runs whose first audit took so many seconds, 3 in 4 of them for leakage."""
    for seconds in runs:
        found = paces(cache)
        found.learn(BEFORE, seconds, {"leakage": seconds * 0.75, "perplexity": seconds * 0.125})
        found.keep()
    return paces(cache)


def test_the_same_work_is_expected_to_take_what_it_took(tmp_path: Path) -> None:
    assert learnt(tmp_path, 80.0).seconds(BEFORE) == pytest.approx(80.0)


def test_twice_the_data_is_expected_to_take_twice_as_long(tmp_path: Path) -> None:
    twice = PlannedStage("audit before", "before", 0.0, {"leakage": 8e9}, when="before")
    assert learnt(tmp_path, 80.0).seconds(twice) == pytest.approx(2 * 60.0)


def test_the_median_of_the_last_runs_counts(tmp_path: Path) -> None:
    assert learnt(tmp_path, 80.0, 800.0, 90.0).seconds(BEFORE) == pytest.approx(90.0)
    for _ in range(KEPT):
        found = learnt(tmp_path, 40.0)
    assert found.seconds(BEFORE) == pytest.approx(40.0)


def test_work_that_is_new_here_is_expected_to_go_as_work_like_it(tmp_path: Path) -> None:
    found = learnt(tmp_path, 80.0)
    assert found.pace("audit leakage, before")[1] == "runs here"
    assert found.pace("audit leakage, after") == (60.0 / 4e9, "like runs here")
    assert found.pace("audit locality, after")[1] == "like runs here"
    assert found.pace("fit sanitation")[1] == "arithmetic"
    assert 0 < found.seconds(AFTER) < float("inf")
    assert found.seconds(FIT) > 0


def test_another_machine_and_another_dtype_learn_by_themselves(tmp_path: Path) -> None:
    learnt(tmp_path, 80.0)
    elsewhere = paces(tmp_path, "elsewhere")
    assert elsewhere.pace("audit leakage, before")[1] == "arithmetic"
    elsewhere.learn(BEFORE, 8.0, {})
    elsewhere.keep()
    assert paces(tmp_path).seconds(BEFORE) == pytest.approx(80.0)


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"here": 3}', '{"here": {"before": "x", "open": [-1, null, "x", NaN]}}'],
)
def test_a_file_that_makes_no_sense_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert paces(tmp_path).known == {}
    assert learnt(tmp_path, 80.0).seconds(BEFORE) == pytest.approx(80.0)


def test_a_cache_that_can_not_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    found = paces(tmp_path / "cache")
    found.learn(BEFORE, 8.0, {})
    found.keep()


# Of whole runs --------------------------------------------------------------------------


def estimates(place: Workplace, policy: Path) -> dict[str, object]:
    result = place.run("plan", policy, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)["estimates"]
    return found


def test_a_plan_expects_of_a_run_what_the_last_one_took(place: Workplace) -> None:
    policy = place.policy(edits=[{**NUDGE, "dose": "auto"}])
    first = estimates(place, policy)
    assert first["basis"] == "arithmetic"
    assert place.run("apply", policy).exit_code == 0
    stages = place.report.resources.stages
    second = estimates(place, policy)
    assert second["basis"] == "runs here"
    assert isinstance(second["stages"], dict)
    for name, seconds in second["stages"].items():
        if name != "judge":  # which is over only when the record is made
            assert seconds == pytest.approx(stages[name], abs=0.01), name
    assert "by what the same work took on this machine" in place.run("plan", policy).stdout


def test_what_earlier_runs_had_done_teaches_nothing(place: Workplace) -> None:
    policy = place.policy(export=None)
    assert place.run("apply", policy).exit_code == 0
    first = json.loads((place.cache / FILE).read_text())
    assert place.run("apply", policy).exit_code == 0
    second = json.loads((place.cache / FILE).read_text())
    ((before, after),) = zip(first.values(), second.values(), strict=True)
    assert len(after["open"]) == 2
    assert before["before"] == after["before"]
    assert before["fit nudge"] == after["fit nudge"]


def test_what_is_kept_is_private_and_holds_no_data(place: Workplace) -> None:
    assert place.run("apply", place.policy()).exit_code == 0
    path = place.cache / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert not [word for word in (*SUBJECTS, *ANSWERS) if word in text]


def test_every_stage_that_a_run_goes_through_is_in_its_road(place: Workplace) -> None:
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import load_policy

    plan = make_plan(load_policy(place.policy(**REAL)))
    names = [stage.name for stage in apply_road(plan)]
    assert names[:3] == ["open model", "audit before", "edit sanitation: fit"]
    dose = next(stage for stage in apply_road(plan) if stage.name == "edit sanitation: dose")
    assert dose.audits.keys() == {"leakage", "locality", "perplexity"}
    assert all(amount > 0 for stage in apply_road(plan) for amount in stage.kinds().values())
