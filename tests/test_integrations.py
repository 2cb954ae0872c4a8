"""Steps to take away: they parse, name what is there, and their scripts do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.road import PERPLEXITY, Workplace, make_workplace

ROOT = Path(__file__).parents[1]
INTEGRATIONS = ROOT / "integrations"


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INTEGRATIONS / "github/action.yml").read_text())
    return found


def step(action: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in action["runs"]["steps"] if s.get("id") == name)
    return found


def test_the_action_declares_every_input_that_it_uses_and_uses_every_one(
    action: dict[str, Any],
) -> None:
    text = (INTEGRATIONS / "github/action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    ids = {each.get("id") for each in action["runs"]["steps"]}
    assert set(re.findall(r"steps\.([\w-]+)\.", text)) <= ids
    for each in action["runs"]["steps"]:
        assert ("uses" in each) != ("shell" in each)


def test_scripts_take_inputs_from_the_environment_alone(action: dict[str, Any]) -> None:
    for each in action["runs"]["steps"]:
        assert "${{" not in each.get("run", ""), "an input would be run as code"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("pipeline"))


def run(script: str, place: Workplace, **variables: str) -> tuple[int, str, dict[str, str]]:
    """A step's script, as a runner runs it, with safeedit on its path."""
    tools = place.folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "safeedit").write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "cli.py"} "$@"\n')
    (tools / "safeedit").chmod(0o755)
    if not (tools / "python").exists():
        (tools / "python").symlink_to(sys.executable)
    output = place.folder / "output"
    output.write_text("")
    environment = {
        **os.environ, **variables, "GITHUB_OUTPUT": str(output), "SAFEEDIT_CACHE": str(place.cache),
        "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        cwd=place.folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return done.returncode, done.stdout + done.stderr, said


@pytest.mark.parametrize(("bound", "code", "verdict"), [(1.0e9, "0", "pass"), (1.0, "1", "fail")])
def test_the_step_runs_a_policy_and_tells_its_exit_code(
    action: dict[str, Any], place: Workplace, bound: float, code: str, verdict: str
) -> None:
    gate = {"metric": "perplexity.perplexity", "max": bound, "min_n": 1}
    policy = place.policy(edits=None, audits=[PERPLEXITY], gates=[gate], export=None)
    report = f"report-{verdict}"
    status, text, said = run(
        step(action, "run")["run"], place,
        POLICY=policy.name, COMMAND="audit", ARGUMENTS="--fresh -q", REPORT=report,
    )  # fmt: skip
    assert status == 0, text  # the last step judges, after the report is kept
    assert said == {"exit-code": code, "verdict": verdict}
    names = {path.name for path in (place.folder / report).iterdir()}
    assert {"report.json", "report.html", "report.md", "junit.xml", "events.jsonl"} <= names
    last = (place.folder / report / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["exit_code"] == int(code)


def test_a_command_that_is_none_of_the_two_is_refused(
    action: dict[str, Any], place: Workplace
) -> None:
    status, text, _ = run(
        step(action, "run")["run"], place,
        POLICY="policy.yaml", COMMAND="cache prune", ARGUMENTS="", REPORT="report",
    )  # fmt: skip
    assert status == 2
    assert "::error::" in text


@pytest.mark.parametrize(
    ("code", "inconclusive", "status"),
    [("0", "fail", 0), ("1", "fail", 1), ("2", "warn", 2), ("3", "warn", 3), ("4", "fail", 4),
     ("4", "warn", 0)],
)  # fmt: skip
def test_the_last_step_fails_unless_all_gates_passed(
    action: dict[str, Any], place: Workplace, code: str, inconclusive: str, status: int
) -> None:
    script = step(action, "judge")["run"]
    found, text, _ = run(script, place, CODE=code, INCONCLUSIVE=inconclusive)
    assert found == status
    assert ("::error::" in text) == (status != 0)


def test_the_gitlab_job_keeps_the_report_whatever_the_verdict() -> None:
    job = yaml.safe_load((INTEGRATIONS / "gitlab/safeedit.yml").read_text())[".safeedit"]
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"]["junit"] == "safeedit-report/junit.xml"
    assert job["variables"]["SAFEEDIT_CACHE"].endswith(job["cache"]["paths"][0])
    for line in (*job["before_script"], *job["script"]):
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_the_image_copies_what_is_there_and_all_that_the_package_needs() -> None:
    text = (INTEGRATIONS / "container/Containerfile").read_text()
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "README.md", "LICENSE", "safeedit", "datasets", "policies"} <= set(
        copied
    )
    assert re.search(r"^USER safeedit$", text, re.MULTILINE)
