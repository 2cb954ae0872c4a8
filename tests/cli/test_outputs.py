"""Where a command may not write is known before it starts: nothing is measured, nothing changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from safeedit.export import places, staging
from tests.road import REAL, Drift, Workplace, make_workplace, register


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = make_workplace(tmp_path_factory.mktemp("exported"))
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        assert place.run("apply", place.policy(export={"dir": "out/old"})).exit_code == 0
    return place


@pytest.fixture
def place(exported: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """With a model, an export of it under ``out/old``, and a policy for ``out/trial``."""
    register(monkeypatch)
    monkeypatch.chdir(exported.folder)
    exported.policy()
    return exported


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "cache" not in path.parts
    }


COMMANDS: dict[str, list[str]] = {
    "apply": ["apply", "policy.yaml", "--report"],
    "audit": ["audit", "policy.yaml", "--report"],
    "plan": ["plan", "policy.yaml", "-o"],
    "compare": ["compare", "policy.yaml", "--editors", "sanitation", "--out"],
    "canary make": ["canary", "make", "--out"],
    "canary plant": ["canary", "plant", "--model", "model", "--out"],
    "remedi train": ["remedi", "train", "--model", "model", "--out"],
    "ledger key": ["ledger", "key", "--out"],
    "init": ["init"],
    "revert": ["revert", "out/old"],
}


@pytest.mark.parametrize("where", ["model/new", "out/old/new", "out/old/evidence/new", "link/new"])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_no_command_writes_into_a_checkpoint(place: Workplace, command: str, where: str) -> None:
    link = place.folder / "link"
    if not link.is_symlink():
        link.symlink_to(place.folder / "model")
    place.policy(**(REAL if command == "compare" else {}))
    before = snapshot(place.folder)
    result = place.run(*COMMANDS[command], where)
    assert result.exit_code == 2, result.stderr
    assert "would be written into" in result.stderr
    assert "remedy: choose a place outside it" in result.stderr
    assert Drift.calls == []
    assert snapshot(place.folder) == before


def test_trace_writes_into_no_checkpoint(place: Workplace) -> None:
    place.policy(
        edits=[{"use": "rome", "facts": {"file": "forget.jsonl"}, "layers": [0], "steps": 1}]
    )
    before = snapshot(place.folder)
    result = place.run("trace", "policy.yaml", "--out", "model/new")
    assert result.exit_code == 2, result.stderr
    assert snapshot(place.folder) == before


@pytest.mark.parametrize("where", ["out/trial", "out/trial/evidence", "OUT/../out/Trial", "model"])
def test_a_report_goes_neither_into_the_export_to_be_made_nor_into_its_model(
    place: Workplace, where: str
) -> None:
    before = snapshot(place.folder)
    result = place.run("apply", "policy.yaml", "--report", where)
    assert result.exit_code == 2
    assert "--report: the report would be written into" in result.stderr
    assert Drift.calls == []
    assert snapshot(place.folder) == before


def test_a_report_beside_the_export_is_written(place: Workplace) -> None:
    result = place.run("apply", "policy.yaml", "--report", "out/reports")
    assert result.exit_code == 0, result.stderr
    assert (place.folder / "out" / "reports" / "report.json").exists()


def test_a_report_of_another_version_of_safeedit_is_one_of_ours(
    place: Workplace, tmp_path: Path
) -> None:
    older = {"schema_version": 0, "run_id": "20240101T000000-0", "policy_digest": "0", "was": 1}
    (tmp_path / "report.json").write_text(json.dumps(older))
    result = place.run("audit", "policy.yaml", "--report", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "was" not in json.loads((tmp_path / "report.json").read_text())


def test_a_report_replaces_no_file_that_is_not_a_report(place: Workplace, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("my own notes")
    result = place.run("audit", "policy.yaml", "--report", tmp_path)
    assert result.exit_code == 2
    assert "a report.md here that is no report of safeedit" in result.stderr
    assert (tmp_path / "report.md").read_text() == "my own notes"


@pytest.mark.parametrize("name", ["policy.yaml", "forget.jsonl", "model/config.json"])
def test_a_plan_replaces_no_file_that_is_no_plan(place: Workplace, name: str) -> None:
    before = snapshot(place.folder)
    result = place.run("plan", "policy.yaml", "-o", name)
    assert result.exit_code == 2
    assert snapshot(place.folder) == before
    assert place.run("plan", "policy.yaml", "-o", "plan.json").exit_code == 0
    assert place.run("plan", "policy.yaml", "-o", "plan.json").exit_code == 0  # a plan may be


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("out/a\0b", "NUL"),
        ("~nobody-of-that-name/x", "no home folder"),
        ("out/" + "n" * 256, "256 bytes"),
        ("out/" + "n" * 240, "240 bytes"),
        ("model/edited", "would be written into"),
        ("out/old/edited", "would be written into"),
        ("link/edited", "would be written into"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "plan", "apply"])
def test_an_export_that_could_never_be_is_refused_at_its_line_of_the_policy(
    place: Workplace, command: str, written: str, problem: str
) -> None:
    link = place.folder / "link"
    if not link.is_symlink():
        link.symlink_to(place.folder / "model")
    path = place.policy(export={"dir": written, "overwrite": True})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "dir:" in text)
    before = snapshot(place.folder)
    result = place.run(command, "policy.yaml")
    assert result.exit_code == 2
    assert problem in result.stderr
    assert f"policy.yaml:{line}" in result.stderr
    assert "remedy:" in result.stderr
    assert Drift.calls == []
    assert snapshot(place.folder) == before


@pytest.mark.parametrize(
    ("source", "problem"),
    [("model", "did not export"), ("out/old", "the model that it is made from")],
)
def test_an_export_does_not_take_the_place_of_its_own_model(
    place: Workplace, source: str, problem: str
) -> None:
    place.policy(model={"source": source}, export={"dir": source, "overwrite": True})
    before = snapshot(place.folder)
    result = place.run("apply", "policy.yaml")
    assert result.exit_code in (2, 3)
    assert problem in result.stderr
    assert Drift.calls == []
    assert snapshot(place.folder) == before


def test_a_disk_without_room_for_the_export_is_refused_before_any_work(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda path: 1000)
    place.policy(export={"dir": "out/roomy"})
    result = place.run("apply", "policy.yaml")
    assert result.exit_code == 3
    assert "are free" in result.stderr
    assert "remedy: free some space" in result.stderr
    assert Drift.calls == []
    assert "are free" in place.run("validate", "policy.yaml").stderr  # only told


def test_a_mount_point_is_refused_before_any_work(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = place.folder / "volume"
    volume.mkdir(exist_ok=True)
    monkeypatch.setattr(staging, "mounts", lambda: {str(volume)})
    place.policy(export={"dir": "volume", "overwrite": True})
    result = place.run("apply", "policy.yaml")
    assert result.exit_code == 3
    assert "mount point" in result.stderr
    assert "remedy: name a folder inside it" in result.stderr
    assert Drift.calls == []


def test_an_export_left_aside_by_a_dead_run_is_back_once_the_next_is_planned(
    place: Workplace,
) -> None:
    old = place.folder / "out" / "old"
    old.rename(old.with_name(".old.replaced-0123abcd"))
    place.policy(export={"dir": "out/old"})
    result = place.run("apply", "policy.yaml")
    assert result.exit_code == 3
    assert "the export's folder exists" in result.stderr  # before an edit that would be in vain
    assert Drift.calls == []
    assert old.is_dir()
