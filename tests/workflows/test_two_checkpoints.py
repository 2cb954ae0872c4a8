"""Two checkpoints together: an edit of some items gives them away, a random change does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.methods.guided_answers import guided_answers
from safeedit.model.sources import open_model
from tests.road import (
    FORGET,
    LEAKAGE,
    LOCALITY,
    NEAR,
    NUDGE,
    Workplace,
    make_workplace,
    register,
    teach,
)
from tests.training import trained

FEW = [{**row, "split": "test"} for row in FORGET]


@pytest.fixture(scope="module")
@trained
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A model that knows what is to be forgotten and what is near, and one that no longer tells
    the former: trained further on other answers to the same questions."""
    made = make_workplace(tmp_path_factory.mktemp("two"))
    made.rows("forget.jsonl", FEW)
    teach(made)
    other = make_workplace(tmp_path_factory.mktemp("edited"))
    model = open_model(str(made.folder / "model"), device="cpu").model
    model.save_pretrained(other.folder / "model")
    changed = [{**row, "answer": "nobody knows", "aliases": []} for row in FORGET]
    teach(other, steps=40, forget=changed)
    (other.folder / "model").rename(made.folder / "edited")
    return made


def measured(place: Workplace, *arguments: object) -> dict[str, Any]:
    policy = place.policy(edits=[NUDGE], audits=[LEAKAGE, LOCALITY], gates=None, export=None)
    result = place.run(
        "attack",
        "two-checkpoints",
        place.folder / "edited",
        "--policy",
        policy,
        "--json",
        *arguments,
    )
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.trains
def test_an_edit_tells_which_items_it_was_about_and_a_random_change_does_not(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(monkeypatch)
    found = measured(place, "--out", tmp_path / "leak.json")
    assert (found["erased"], found["kept"]) == (4, 4)
    values = {metric["name"].partition(".")[2]: metric["value"] for metric in found["metrics"]}
    control = {metric["name"].partition(".")[2]: metric["value"] for metric in found["control"]}
    assert values["answer_auc"] == 1
    assert values["singled_out"] == 1
    assert values["told_by_base"] == 1
    assert values["told_by_edited"] == 0
    assert values["told_by_both"] >= 0.5
    assert control["answer_auc"] < 1
    text = (tmp_path / "leak.json").read_text()
    assert json.loads(text) == found
    for row in FORGET:
        assert row["answer"] not in text
        assert row["subject"] not in text


def test_without_guidance_the_two_say_what_the_base_says(place: Workplace) -> None:
    base = open_model(str(place.folder / "model"), device="cpu")
    edited = open_model(str(place.folder / "edited"), device="cpu")
    prompts = base.engine.encode([row["prompt"] for row in [*FORGET, *NEAR]])
    alone = base.engine.generate(prompts, max_new_tokens=8)
    together = guided_answers(base, edited, prompts, guidance=0, tokens=8)
    assert together == [answers[0] for answers in alone]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["model"], "the two models are the same", 2),
        (["gone"], "gone", 3),
        ([], "Missing argument", 2),
    ],
)
def test_what_can_not_be_compared_is_refused(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str, code: int
) -> None:
    register(monkeypatch)
    policy = place.policy(edits=[NUDGE], audits=[LEAKAGE, LOCALITY], gates=None, export=None)
    models = [str(place.folder / name) for name in arguments]
    result = place.run("attack", "two-checkpoints", *models, "--policy", policy)
    assert (result.exit_code, told in result.stderr) == (code, True), result.stderr


def test_a_policy_without_anything_to_keep_is_refused_with_a_remedy(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    policy = place.policy(edits=[], audits=[LEAKAGE], gates=None, export=None)
    result = place.run("attack", "two-checkpoints", place.folder / "edited", "--policy", policy)
    assert result.exit_code == 2
    assert "0 items to be kept" in result.stderr
    assert "near or far data" in result.stderr
