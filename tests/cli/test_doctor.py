"""``safeedit doctor`` finds what keeps a run from working, and fetches nothing."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from safeedit.workflows import diagnosis
from tests.road import Workplace


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("doctor went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def found(place: Workplace, *arguments: object, code: int = 0) -> dict[str, dict[str, str]]:
    result = place.run("doctor", *arguments, "--json")
    assert result.exit_code == code, result.output
    told = json.loads(result.stdout)
    assert told["ok"] is (code == 0)
    return {each["what"]: each for each in told["found"]}


def test_a_machine_that_has_all_it_needs(place: Workplace) -> None:
    seen = found(place, place.policy())
    for what in ("safeedit", "packages", "processor", "memory", "cache", "digest key", "policy"):
        assert seen[what]["state"] == "ok", what
    assert seen["cache"]["said"].startswith(str(place.cache))
    assert seen["builtin:smollm2-135m-instruct"]["state"] == "optional"
    assert seen["memory for it"]["said"].startswith("a run takes about ")
    told = place.run("doctor").stdout
    assert "ok        digest key: there, and no weak one\n" in told


def test_what_is_wrong_with_a_policy_is_said_with_its_place(place: Workplace) -> None:
    policy = place.policy(edits=[{"use": "nudgge"}])
    seen = found(place, policy, code=3)
    assert seen["policy"]["state"] == "missing"
    assert f"{policy}:" in seen["policy"]["said"]
    assert "edits[0].use" in seen["policy"]["said"]
    assert "keyed_neurons" in seen["policy"]["remedy"]


def test_a_model_that_does_not_fit_is_warned_of(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=1_000_000))
    assert found(place, place.policy())["memory for it"]["state"] == "warning"


def test_a_weak_key_and_a_cache_that_can_not_be_written_are_missing(place: Workplace) -> None:
    place.cache.mkdir()
    (place.cache / "digest.key").write_text("weak")
    (place.cache / "digest.key").chmod(0o600)
    seen = found(place, code=3)
    assert "the key of the digests" in seen["cache"]["said"]
    (place.cache / "digest.key").unlink()
    place.cache.rmdir()
    place.cache.write_text("a file where the folder should be")
    assert found(place, code=3)["cache"]["state"] == "missing"


def test_a_full_disk_and_what_is_not_installed_are_said(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "free_bytes", lambda path: 10_000_000)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        diagnosis, "find_spec", lambda name: None if name == "profanity_check" else real(name)
    )
    seen = found(place)
    assert seen["cache"]["state"] == "warning"
    assert "safeedit cache prune" in seen["cache"]["remedy"]
    assert seen["extra profanity"]["state"] == "optional"
    assert seen["extra profanity"]["remedy"] == "pip install 'safeedit[profanity]'"


def test_debugging_that_may_quote_data_is_warned_of(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEEDIT_DEBUG", "1")
    seen = diagnosis.examine(lambda: _made(place.cache), lambda folder: b"")
    (symptom,) = (each for each in seen if each.what == "SAFEEDIT_DEBUG")
    assert symptom.state == "warning"


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
