"""Audits made by other processes: the same record, whoever makes them, and whoever is lost."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from safeedit.errors import EngineError
from safeedit.records import RunRecord
from safeedit.running.engines import cluster
from safeedit.running.engines.pool import MOST_LOST, Pool, WorkerLostError
from safeedit.running.engines.worker import Evaluation, Opened, Outcome, Parcel, Worker
from tests import road
from tests.road import DRIFT, NUDGE, Drift, Workplace

GATE: dict[str, Any] = {"metric": "drift.distance", "max": 1.0e9, "min_n": 1}
AUTO = {**NUDGE, "dose": "auto", "targets": [{**GATE, "max": 0.3}]}
SIX = [{**DRIFT, "id": f"drift{number}", "needless": number} for number in range(5)]
POLICY: dict[str, Any] = {"edits": [AUTO], "audits": [DRIFT, *SIX], "gates": [GATE]}


def figures(record: RunRecord) -> Any:
    """All that a run found, less what tells when, where and how fast."""
    left = {"run_id", "started", "resources", "environment", "policy", "policy_digest", "warnings"}
    found = record.model_dump(mode="json", exclude=left | {"export"})

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "cached")}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    return timeless(found)


def record_of(place: Workplace, *options: object, **parts: Any) -> RunRecord:
    policy = place.policy(**{**POLICY, "export": None, **parts})
    result = place.run("apply", policy, "--json", "--fresh", *options)
    assert result.exit_code == 0, result.stderr
    return RunRecord.model_validate_json(result.stdout)


# Without processes: workers in this one, which can be made to end ------------------------


class InProcess:
    """A worker of this process."""

    def __init__(self, ends: int = 0, opened: Opened | None = None, **outcome: Any) -> None:
        self.left, self.opened, self.outcome = ends, opened or Opened("base"), outcome
        self.given: list[str] = []
        self.stopped = False

    def open(self) -> Future[Opened]:
        return done(self.opened)

    def evaluate(self, asked: Evaluation, base: Parcel | None) -> Future[Outcome]:
        self.given.append(asked.audit + ("+" if base is not None else ""))
        if self.left:
            self.left -= 1
            return done(WorkerLostError())
        return done(Outcome(None, asked.audit))

    def stop(self) -> None:
        self.stopped = True


def done(value: Any) -> Future[Any]:
    found: Future[Any] = Future()
    found.set_exception(value) if isinstance(value, Exception) else found.set_result(value)
    return found


def parcel(key: str) -> Parcel:
    return Parcel(key, "{}", b"", 0.0)


def asked(*audits: str, base: str = "") -> dict[str, Evaluation]:
    return {name: Evaluation(name, "test", base=base) for name in audits}


def test_a_lost_worker_is_replaced_and_its_evaluation_repeated() -> None:
    hands: list[InProcess] = []
    said: list[str] = []

    def hire(number: int) -> InProcess:
        hands.append(InProcess(ends=1 if not hands else 0))
        return hands[-1]

    found = dict(Pool(hire, 2, "base", said.append).run(asked("a", "b", "c"), parcel))
    assert {name: outcome.failed for name, outcome in found.items()} == {n: n for n in "abc"}
    assert len(hands) == 3
    assert hands[0].stopped
    assert said == ["worker 0 was lost at audit a: another repeats it"]


def test_what_every_worker_is_lost_at_is_left_to_the_run() -> None:
    said: list[str] = []
    pool = Pool(lambda number: InProcess(ends=1), 1, "base", said.append)
    assert dict(pool.run(asked("a"), parcel)) == {}
    assert len(said) == MOST_LOST
    assert said[-1] == "worker 0 was lost at audit a: the run makes it itself"


def test_what_an_evaluation_is_held_against_is_sent_to_each_worker_once() -> None:
    hands = [InProcess(), InProcess()]
    pool = Pool(hands.__getitem__, 2, "base", print)
    list(pool.run(asked(*"abcdef", base="key"), parcel))
    given = [*hands[0].given, *hands[1].given]
    assert len(given) == 6
    assert sum(name.endswith("+") for name in given) == 2


@pytest.mark.parametrize(
    ("opened", "told"),
    [
        (Opened(error="no such folder"), "can't open the model: no such folder"),
        (Opened("another"), "another model than the run"),
    ],
)
def test_a_worker_without_the_model_is_a_clear_error(opened: Opened, told: str) -> None:
    pool = Pool(lambda number: InProcess(opened=opened), 1, "base", print)
    with pytest.raises(EngineError, match=told) as raised:
        list(pool.run(asked("a"), parcel))
    assert raised.value.remedy


def test_a_worker_says_of_an_error_no_more_than_type_and_place(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker.__new__(Worker)
    worker.order = None  # type: ignore[assignment]
    failed = worker.evaluate(Evaluation("a", "test"), None)
    assert failed.made is None
    assert failed.failed.startswith("AttributeError at worker.py:")


# Ray -----------------------------------------------------------------------------------


def test_ray_that_is_not_installed_is_a_clear_error(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    found = place.run("apply", place.policy(), "--engine", "ray")
    assert found.exit_code == 3
    assert "safeedit[ray]" in found.stderr


def test_an_address_that_nobody_answers_at_is_a_clear_error(place: Workplace) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    policy = place.policy(engine={"use": "ray", "address": f"127.0.0.1:{port}"})
    found = place.run("apply", policy)
    assert found.exit_code == 3
    assert f"nobody answers at the Ray address 127.0.0.1:{port}" in found.stderr
    assert not place.target.exists()
    wrong = place.run("apply", place.policy(engine={"use": "ray", "address": "somewhere"}))
    assert "HOST:PORT" in wrong.stderr


def test_engines_that_are_none_are_refused_while_validating(place: Workplace) -> None:
    vllm = place.run("validate", place.policy(engine="vllm"))
    assert vllm.exit_code == 2
    assert "engine" in vllm.stderr
    local = place.run("validate", place.policy(engine={"use": "local", "address": "a:1"}))
    assert "address is for ray only" in local.stderr


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose first finder among the workers ends at once."""
    trap = tmp_path / "trap"
    monkeypatch.setenv("SAFEEDIT_TEST_TRAP", str(trap))
    trap.touch()
    return trap


class Trapped(Drift):
    """Ends the worker that first comes to it."""

    def audit(self, *arguments: Any) -> Any:
        trap = Path(os.environ.get("SAFEEDIT_TEST_TRAP", "nowhere"))
        if trap.exists() and os.environ.get("SAFEEDIT_TEST_RUN") != str(os.getpid()):
            trap.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().audit(*arguments)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_two_workers_give_the_record_of_one_process_though_one_is_killed(
    place: Workplace, killed: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    monkeypatch.setitem(road.AUDITORS, "drift", Trapped)
    monkeypatch.setenv("SAFEEDIT_TEST_RUN", str(os.getpid()))
    alone = record_of(place)
    assert len(Drift.calls) > 10
    Drift.calls.clear()
    together = record_of(place, "--engine", engine, "--workers", 2, export={"dir": "out/trial"})
    assert Drift.calls == [], "the run itself has measured nothing"
    assert not killed.exists(), "a worker was killed"
    assert sum("was lost at audit" in text for text in together.warnings) == 1
    assert not any("not used" in text for text in together.warnings)
    assert figures(together) == figures(alone)
    assert place.run("verify", place.target).exit_code == 0
