"""What does not fit the machine is refused before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from safeedit.planning import memory
from tests.road import Workplace


def with_memory(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    machine = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=total))
    monkeypatch.setattr(memory, "psutil", machine)


def test_a_model_whose_weights_do_not_fit_is_refused(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 100_000)
    for command in ("validate", "plan", "apply"):
        found = place.run(command, place.policy())
        assert found.exit_code == 3
        assert "this machine has 0.0 GB of memory" in found.stderr
    assert not place.target.exists()


def test_every_worker_of_this_machine_needs_a_copy(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 500_000)  # the tiny model takes 195,456 bytes
    assert place.run("validate", place.policy()).exit_code == 0
    found = place.run("validate", place.policy(engine={"use": "local", "workers": 2}))
    assert found.exit_code == 3
    assert "3 copies of the weights" in found.stderr
    assert "fewer workers" in found.stderr


def test_a_peak_that_may_not_fit_is_warned_of(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 500_000)
    found = place.run("validate", place.policy())
    assert "may take 1.0 GB of memory at its peak" in found.stderr
    with_memory(monkeypatch, 10 << 30)
    assert "at its peak" not in place.run("validate", place.policy()).stderr
