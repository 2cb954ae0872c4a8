"""What a run has finished is not done again, and nothing else is believed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.cache import write_atomically
from safeedit.observing import Figures
from safeedit.records import RunRecord
from safeedit.running.clock import Clock
from safeedit.running.store import Finding, Kind, Store
from safeedit.workflows.verification import verify
from tests.road import (
    DRIFT,
    NEAR,
    NUDGE,
    SMALL_DRIFT,
    Drift,
    Nudge,
    Prod,
    Workplace,
    change_code,
    make_workplace,
    register,
)
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("toys")

LONG: dict[str, Any] = {
    "edits": [
        {
            **NUDGE, "use": "compared", "dose": "auto", "control": 1,
            "targets": [{"metric": "drift.distance", "max": 0.01}],  # which no dose meets
        },
        {**NUDGE, "id": "second", "dose": 0.5, "control": 1},
    ],
    "attacks": [{"use": "prod", "by": 0.01, "audits": ["drift"]}],
    "gates": [SMALL_DRIFT, {**SMALL_DRIFT, "under": "prod"}],
}  # fmt: skip
"""Every kind of work: base and edited audits, two edits, doses, controls, an attack."""


def work() -> dict[str, int]:
    """What the toys have done since they were registered, or this was last asked."""
    found = {
        "base audits": sum(base for _, base in Drift.calls),
        "edited audits": sum(not base for _, base in Drift.calls),
        "fits": Nudge.calls.count("fit"),
        "doses": len(Nudge.calls) - Nudge.calls.count("fit"),
        "attacks": len(Prod.calls),
    }
    for calls in (Drift.calls, Nudge.calls, Prod.calls):
        calls.clear()
    return found


NOTHING = dict.fromkeys(work(), 0)


def again(place: Workplace, policy: Path, *options: str) -> dict[str, int]:
    """What a run takes that exports anew."""
    shutil.rmtree(place.target, ignore_errors=True)
    work()
    result = place.run("apply", policy, *options)
    assert result.exit_code == 0, result.stderr
    return work()


def figures(record: RunRecord) -> object:
    """All of a record that may not hang on when, or in how many goes, it was made."""
    return _timeless(
        record.model_dump(
            mode="json",
            exclude={"run_id", "started", "resources", "export"},
        )
    )


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "cached")}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def weights(place: Workplace) -> bytes:
    return (place.target / "model.safetensors").read_bytes()


def test_a_second_run_repeats_nothing_and_gives_the_same(place: Workplace) -> None:
    policy = place.policy(**LONG)
    first = again(place, policy)
    # The base on both splits; three doses; a random change and what the first editor brings; the
    # gates so far; the second edit's random change; what is exported; both under two strengths.
    # Changes: at three doses, with a control each; at one.
    assert first == {
        "base audits": 2, "edited audits": 3 + 2 + 1 + 1 + 1 + 2 + 2, "fits": 2, "doses": 3 + 3 + 1,
        "attacks": 2,
    }  # fmt: skip
    report, content = place.report, weights(place)
    assert again(place, policy) == NOTHING
    assert figures(place.report) == figures(report)
    assert weights(place) == content
    assert all(audit.cached for audit in (*place.report.before, *place.report.after))
    assert verify(place.target) == []


class Killed(BaseException):
    """As a process that is no more."""


STAGES = (
    "open model", "audit before", "attack prod: untouched model",
    "edit compared: fit", "edit compared: dose", "edit compared: control",
    "edit compared: gates so far",
    "edit second: fit", "edit second: dose", "edit second: control",
    "stage", "reload", "audit after", "attack prod: edited model",
)  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A run that nothing stopped."""

    key: bytes
    work: dict[str, int]
    record: RunRecord
    weights: bytes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        place = make_workplace(tmp_path_factory.mktemp("whole"))
        done = again(place, place.policy(**LONG))
        key = (place.cache / "digest.key").read_bytes()
        return Whole(key, done, place.report, weights(place))


@pytest.mark.parametrize("last", STAGES)
def test_a_run_that_is_stopped_after_any_stage_goes_on_where_it_was(
    place: Workplace, whole: Whole, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    assert tuple(whole.record.resources.stages) == STAGES
    write_atomically(_made(place.cache) / "digest.key", whole.key, 0o600)
    real = Clock.stage

    @contextmanager
    def stage(self: Clock, name: str) -> Iterator[Figures]:
        with real(self, name) as figures:
            yield figures
        if name == last:
            raise Killed

    work()
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "stage", stage)
        with pytest.raises(Killed):
            raise _escaped(place, place.policy(**LONG))
    begun = work()
    assert not place.target.exists()
    finished = again(place, place.policy(**LONG))
    assert {kind: begun[kind] + finished[kind] for kind in begun} == whole.work
    assert figures(place.report) == figures(whole.record)
    assert weights(place) == whole.weights


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _escaped(place: Workplace, policy: Path) -> BaseException:
    """What ended a run that no handler could stop."""
    try:
        result = place.run("apply", policy)
    except Killed as killed:
        return killed
    assert result.exception is not None, result.stderr
    return result.exception


def test_what_a_run_measures_twice_is_no_work_of_earlier_runs(place: Workplace) -> None:
    twice = [DRIFT, {**DRIFT, "id": "again"}]
    policy = place.policy(audits=twice)
    assert again(place, policy)["base audits"] == 1
    assert place.report.resources.spared_seconds == 0
    again(place, policy)
    assert place.report.resources.spared_seconds > 0


def test_a_strength_nobody_asked_for_yet_is_asked_of_the_editor(place: Workplace) -> None:
    def edit(dose: float) -> dict[str, Any]:
        return {"edits": [{**NUDGE, "dose": dose}]}

    assert again(place, place.policy(**edit(1.0)))["fits"] == 1
    one = again(place, place.policy(**edit(2.0)))
    assert (one["fits"], one["doses"], one["base audits"]) == (1, 1, 0)
    assert again(place, place.policy(**edit(1.0))) == NOTHING
    assert place.report.edits[0].notes == {"offered": 3}


def test_fresh_believes_nothing_that_is_there_and_keeps_what_it_finds(place: Workplace) -> None:
    policy = place.policy(**LONG)
    first = again(place, policy)
    kept = {path.name for path in (place.cache / "store").iterdir()}
    assert again(place, policy, "--fresh") == first
    assert {path.name for path in (place.cache / "store").iterdir()} == kept
    assert again(place, policy) == NOTHING


def test_what_a_stage_warned_of_is_said_again(place: Workplace) -> None:
    policy = place.policy(attacks=[{"use": "prod", "audits": ["drift"]}], gates=[SMALL_DRIFT])
    again(place, policy)
    said = place.report.warnings
    again(place, policy)
    assert place.report.warnings == said


def base_calls(place: Workplace, policy: Path) -> int:
    """How often a run measures the untouched model anew."""
    found = again(place, policy)["base audits"]
    cached = [audit.cached for audit in place.report.before]
    assert cached == [not found] * len(cached)
    return found


def test_the_same_audit_under_another_id_is_read_from_the_store(place: Workplace) -> None:
    assert base_calls(place, place.policy()) == 1
    gate = {**SMALL_DRIFT, "metric": "other.distance"}
    assert base_calls(place, place.policy(audits=[{**DRIFT, "id": "other"}], gates=[gate])) == 0
    assert [metric.name for metric in place.report.before[0].metrics] == [
        "other.distance", "other.peace",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "what",
    [
        *("parameter", "data", "template", "seed", "weights", "config", "chat template", "code"),
        "kernels",
    ],
)
def test_whatever_makes_an_audit_is_part_of_its_key(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    assert base_calls(place, place.policy()) == 1
    parts: dict[str, Any] = {}
    model = place.folder / "model"
    match what:
        case "parameter":
            parts["audits"] = [{**DRIFT, "needless": 1}]
        case "data":
            place.rows("near.jsonl", [*NEAR, {"prompt": "One more?", "split": "test"}])
        case "template":
            parts["audits"] = [{**DRIFT, "data": {"file": "near.jsonl", "template": "plain"}}]
        case "seed":
            parts["seed"] = 1
        case "weights":
            save_tiny("llama", model, seed=1)  # the same config
        case "config":
            config = json.loads((model / "config.json").read_text())
            config["rms_norm_eps"] = 0.1
            (model / "config.json").write_text(json.dumps(config))
        case "chat template":
            (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        case "code":
            change_code(monkeypatch)
        case "kernels":
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert base_calls(place, place.policy(**parts)) == 1


@pytest.mark.parametrize("what", ["parameter", "data", "seed", "weights"])
def test_whatever_makes_an_edit_is_part_of_its_key(place: Workplace, what: str) -> None:
    assert again(place, place.policy())["fits"] == 1
    parts: dict[str, Any] = {}
    match what:
        case "parameter":
            parts["edits"] = [{**NUDGE, "size": 0.02}]
        case "data":
            text = (place.folder / "retain.jsonl").read_text(encoding="utf-8")
            more = [{"prompt": f"Question {n}?", "answer": "Never"} for n in range(9)]
            place.text("retain.jsonl", text + "".join(json.dumps(row) + "\n" for row in more))
        case "seed":
            parts["seed"] = 1
        case "weights":
            save_tiny("llama", place.folder / "model", seed=1)
    assert again(place, place.policy(**parts))["fits"] == 1


def entry_of(place: Workplace, kind: Kind) -> Path:
    return min((place.cache / "store").glob(f"{kind}-*"))


@pytest.mark.parametrize(
    "damage",
    [
        *("cut record", "cut tensors", "changed tensors", "gone", "nested without end"),
        *("changed figure", "forged seal", "sealed with another key", "another entry"),
        *("a pipe", "a link to itself moved away"),
    ],
)
def test_an_entry_that_is_not_as_written_is_made_anew_and_said(
    place: Workplace, damage: str
) -> None:
    def audited(**parts: Any) -> int:
        """How often a run measures anew that only audits the model."""
        work()
        result = place.run("audit", place.policy(**parts), "--report", place.folder / "told")
        assert result.exit_code == 0, result.stderr
        return work()["base audits"]

    assert audited() == 1

    def said() -> tuple[str, ...]:
        text = (place.folder / "told" / "report.json").read_text(encoding="utf-8")
        return RunRecord.model_validate_json(text).warnings

    assert said() == ()
    (entry,) = (place.cache / "store").iterdir()
    record, tensors = entry / "said.json", entry / "tensors.safetensors"
    match damage:
        case "cut record":
            record.write_bytes(record.read_bytes()[:-10])
        case "cut tensors":
            tensors.write_bytes(tensors.read_bytes()[:-10])
        case "changed tensors":  # still a safetensors file, of other weights
            content = bytearray(tensors.read_bytes())
            content[-1] ^= 0xFF
            tensors.write_bytes(content)
        case "gone":
            tensors.unlink()
        case "nested without end":
            record.write_text("[" * 100_000)
        case "changed figure" | "forged seal":  # what made a leak of the base unseen
            content = json.loads(record.read_text())
            content["said"]["what"]["record"]["metrics"][0]["value"] = 1.0e9
            if damage == "forged seal":
                content["seal"] = hashlib.sha256(record.read_bytes()).hexdigest()
            record.write_text(json.dumps(content))
        case "sealed with another key":
            key = entry.name.removeprefix("audit-")
            theirs = Store(entry.parent, b"another" * 8, print)
            assert theirs.read("audit", key, "it") is None
            ours = Store(entry.parent, (place.cache / "digest.key").read_bytes(), print)
            kept = ours.read("audit", key, "it")
            assert kept is not None
            theirs.write("audit", key, kept, "it")
        case "another entry":  # of the same key of digests, honestly sealed
            audited(seed=5)
            (other,) = (path for path in entry.parent.iterdir() if path != entry)
            shutil.rmtree(entry)
            other.rename(entry)
        case "a pipe":
            record.unlink()
            os.mkfifo(record)
        case "a link to itself moved away":
            record.rename(place.folder / "moved.json")
            record.symlink_to(place.folder / "moved.json")
    assert audited() == 1
    (warning,) = said()
    assert warning.startswith("audit drift: what the cache holds of it is damaged, was changed")
    assert audited() == 0
    assert said() == ()
    assert [path.name for path in (place.cache / "store").iterdir()] == [entry.name]


@pytest.mark.parametrize("kind", ["audit", "edit", "dose", "attack"])
def test_no_kind_of_entry_is_believed_that_was_changed(place: Workplace, kind: Kind) -> None:
    policy = place.policy(**LONG)
    again(place, policy)
    report = place.report
    for entry in (place.cache / "store").glob(f"{kind}-*"):
        file = entry / "said.json"
        content = json.loads(file.read_text())
        content["said"]["what"]["warnings"] = ["all is well"]
        file.write_text(json.dumps(content))
    assert again(place, policy) != NOTHING
    assert figures(place.report) != figures(report), "it is said"
    assert not any("all is well" in text for text in place.report.warnings)
    assert any("it is made anew" in text for text in place.report.warnings)


def test_entries_are_for_their_owner_alone_under_any_umask(place: Workplace) -> None:
    mask = os.umask(0)
    try:
        again(place, place.policy(**LONG))
    finally:
        os.umask(mask)
    entries = list((place.cache / "store").iterdir())
    assert {entry.name.partition("-")[0] for entry in entries} == {
        "audit",
        "edit",
        "dose",
        "attack",
    }
    for entry in entries:
        assert stat.S_IMODE(entry.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in entry.iterdir()} == {0o600}


def test_what_dead_runs_left_in_the_store_is_removed_by_the_next(place: Workplace) -> None:
    store = place.cache / "store"
    left = store / f".audit-{'0' * 64}.0123abcd"
    living = store / f".audit-{'1' * 64}.0123abcd"
    for folder in (left, living):
        folder.mkdir(parents=True)
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert base_calls(place, place.policy()) == 1
    os.close(lock)
    assert not left.exists()
    assert living.exists()


def test_a_store_that_can_not_be_written_is_no_reason_to_stop(place: Workplace) -> None:
    place.cache.mkdir()
    (place.cache / "store").write_text("a file where the folder should be")
    assert base_calls(place, place.policy()) == 1
    assert "audit drift was not kept for later runs" in " ".join(place.report.warnings)


def test_an_entry_that_would_fill_the_disk_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    store = Store(tmp_path / "store", b"k" * 32, said.append)
    usage = shutil.disk_usage(tmp_path)
    entry = Finding({}, {"weights": torch.zeros(1000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=15_000))
    store.write("dose", "0" * 64, entry, "edit nudge")
    assert said == ["edit nudge was not kept for later runs: it takes 0 of the 0 MiB that are free"]
    assert list(store.folder.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    store.write("dose", "0" * 64, entry, "edit nudge")
    assert store.read("dose", "0" * 64, "it") is not None
