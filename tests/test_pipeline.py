"""A pipeline step that a compliance team would sign, from the plan to the revert.

plan, apply (killed twice, resumed), sign, verify by our code and by that of the standard, change a
byte of each kind of file, report in every format and hold it against its public schema, revert.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from model_signing import verifying

from safeedit.export.manifest import (
    BOM,
    CARD,
    CLAIMS,
    DELTA,
    MANIFEST,
    RECORD,
    SIGNATURE,
    UNDO,
)
from safeedit.export.staging import Staging
from safeedit.model.digest import digest_of
from safeedit.model.headers import read_headers
from safeedit.model.stored import stored_digests
from tests.export.killing import in_child
from tests.report.schemas import VALIDATORS
from tests.road import Drift, Nudge, Workplace, make_workplace, register

FORMATS = ("terminal", "html", "md", "junit", "sarif", "comment", "annotations", "card", "bom")
KINDS = (
    *("model.safetensors", "config.json", "tokenizer.json", CARD, SIGNATURE, CLAIMS),
    *(MANIFEST, RECORD, BOM, UNDO, DELTA.format(id="nudge")),
    *("evidence/report.html", "evidence/report.md", "evidence/junit.xml", "evidence/report.sarif"),
)
"""A file of each kind that an export has."""


def killed_at(place: Workplace, step: str) -> int:
    """Exit code of a run that dies, as by ``kill -9``, where it would take the step."""

    def work() -> int:
        setattr(Staging, step, lambda self: os._exit(99))
        return place.run(
            "apply", place.folder / "plan.json", "--sign", place.folder / "key"
        ).exit_code

    return in_child(work)


def weights(folder: Path) -> str:
    return digest_of(stored_digests(read_headers(folder)))


def test_a_pipeline_from_the_plan_to_the_revert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    place = make_workplace(tmp_path / "place")
    policy = place.policy(export={"dir": "out/trial", "private": "vault"})
    plan, key, public = (place.folder / name for name in ("plan.json", "key", "key.pub"))
    assert place.run("plan", policy, "-o", plan).exit_code == 0
    assert place.run("keygen", key).exit_code == 0

    # Killed when the edit was measured, and again when all was written and signed.
    for step in ("__enter__", "promote"):
        assert killed_at(place, step) == 99
        assert not place.target.exists()
    assert place.unfinished() != []
    Nudge.calls.clear()
    Drift.calls.clear()
    result = place.run("apply", plan, "--sign", key)
    assert result.exit_code == 0, result.stderr
    assert (Nudge.calls, Drift.calls) == ([], [])  # nothing is made or measured twice
    assert place.unfinished() == []

    assert place.run("verify", place.target, "--key", public).exit_code == 0
    standard = verifying.Config().use_elliptic_key_verifier(public_key=public)
    standard.verify(place.target, place.target / SIGNATURE)

    for kind in FORMATS:
        shown = place.run("report", place.target, "--format", kind)
        assert shown.exit_code == 0, shown.stderr
        assert shown.stdout.strip()
        if kind in VALIDATORS:
            VALIDATORS[kind](shown.stdout)
    assert (
        "place/policy.yaml" in place.run("report", place.target, "--format", "annotations").stdout
    )

    (vault,) = (place.folder / "vault").iterdir()
    back = place.run("revert", place.target, place.folder / "back", "--private", vault)
    assert back.exit_code == 0, back.stderr
    assert weights(place.folder / "back") == weights(place.folder / "model")

    whole = Path(shutil.copytree(place.target, tmp_path / "whole"))
    shutil.copytree(vault, whole, dirs_exist_ok=True)
    assert place.run("verify", whole, "--key", public).exit_code == 0
    for name in KINDS:
        copy = Path(shutil.copytree(whole, tmp_path / "copy"))
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        found = place.run("verify", copy, "--key", public)
        assert (found.exit_code, found.stdout.startswith(name)) == (1, True), found.stdout
        shutil.rmtree(copy)


def test_a_run_in_a_github_action_says_there_what_failed_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("# Before\n")
    place = make_workplace(tmp_path / "place")
    policy = place.policy(gates=[{"metric": "drift.distance", "max": 0, "min_n": 1}])
    line = 1 + policy.read_text().splitlines().index("gates:") + 1
    result = place.run("apply", policy, "--json")
    assert result.exit_code == 1
    assert f"::error file=place/policy.yaml,line={line},title=" in result.stderr
    assert "::error" not in result.stdout
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("# Before\n<!-- safeedit: trial -->")
    assert "drift.distance" in summary
    assert place.run("report", place.folder / "out/trial.report", "--format", "bom").exit_code == 2
