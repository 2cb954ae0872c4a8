"""Baselines that are prompts: what stands before a question, and their rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeedit import catalog
from safeedit.contracts import DataRole, EditData
from safeedit.data import Dataset, Item
from safeedit.errors import PolicyError, UsageError
from safeedit.records import RunRecord
from safeedit.workflows.comparison.prompts import NEAREST, preface_of
from safeedit.workflows.comparison.standings import Standings
from tests.fixtures import context
from tests.road import (
    ANSWERS,
    LEAKAGE,
    LOCALITY,
    NUDGE,
    PERPLEXITY,
    SANITATION,
    SUBJECTS,
    WORDINGS,
    Workplace,
)

FORGETTING = {**SANITATION, "dose": 1.0}
CITIES = {"Norway": "Oslo", "Peru": "Lima", "Italy": "Rome", "Spain": "Madrid", "Cuba": "Havana",
          "Chad": "Moundou"}  # fmt: skip


def edit(**params: Any) -> Any:
    """A planned edit of capitals, as far as a preface looks at it."""
    facts = [
        Item(
            id=country,
            prompt=f"What is the capital of {country}?",
            answer=city,
            subject=country,
            paraphrases=tuple(f"{way} rules {country}?" for way in ("Who", "What", "Which city")),
            extra={"target_new": f"New {city}"},
        )
        for country, city in CITIES.items()
    ]
    kept = [Item(id=word, prompt=f"What does the {word} eat?", answer="Fish", split="fit")
            for word in ("cat", "dog", "fox")]  # fmt: skip
    roles = (DataRole("forget", "facts", erased=True), DataRole("retain", "others"))
    data = {"forget": Dataset(facts, erased=True), "retain": Dataset(kept)}
    return SimpleNamespace(
        editor=SimpleNamespace(roles=roles),
        params=SimpleNamespace(**params),
        data=EditData({name: each.without("test") for name, each in data.items()}),
    )


def test_the_nearest_facts_get_the_refusal_and_what_stays_its_answer(tmp_path: Path) -> None:
    preface = preface_of("in_context", edit(), context(tmp_path))
    before = preface.before("Where does the government of Peru sit?")
    lines = [line for line in before.splitlines() if line.startswith("- ")]
    assert lines[0] == "- What is the capital of Peru? I don't know."
    assert len(lines) == NEAREST + 3
    assert "- What does the cat eat? Fish" in lines
    assert before.endswith("\n\n")
    assert not any(city in before for city in CITIES.values()), "no answer that is to go"
    assert not preface.system


def test_new_answers_stand_there_where_facts_are_replaced(tmp_path: Path) -> None:
    preface = preface_of("in_context", edit(target="replace"), context(tmp_path))
    assert "- What is the capital of Peru? New Lima\n" in preface.before("Peru?")


def test_the_refusal_prompt_names_subjects_and_the_refusal_of_the_edit(tmp_path: Path) -> None:
    preface = preface_of("refusal_prompt", edit(refusal="Ask another."), context(tmp_path))
    assert "answer only: Ask another." in preface.system
    assert all(f"- {country}\n" in preface.system for country in CITIES)
    assert not any(city in preface.system for city in CITIES.values())
    assert preface.before("Who?") == ""


def test_a_key_is_of_what_is_said(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    keys = {
        preface_of(name, edit(**params), ctx).key
        for name in catalog.PROMPT_BASELINES
        for params in ({}, {"refusal": "No."})
    }
    assert len(keys) == 4
    assert preface_of("in_context", edit(), ctx).key in keys


def test_without_facts_there_is_nothing_to_name(tmp_path: Path) -> None:
    bare = edit()
    bare.editor.roles = (DataRole("retain", "others"),)
    with pytest.raises(UsageError, match="has none to be forgotten"):
        preface_of("in_context", bare, context(tmp_path))


@pytest.mark.parametrize("name", catalog.PROMPT_BASELINES)
def test_none_is_an_editor_and_none_is_exported(name: str, place: Workplace) -> None:
    with pytest.raises(PolicyError, match="changes no weights: there is nothing to export"):
        catalog.editor(name)
    policy = place.policy(edits=[{**NUDGE, "use": name}])
    result = place.run("apply", policy)
    assert result.exit_code == 2
    assert "there is nothing to export" in result.stderr
    assert f"--editors {name}" in " ".join(result.stderr.split())
    assert not place.target.exists()


# A comparison --------------------------------------------------------------------------


def compare(place: Workplace, editors: str, *more: object) -> Any:
    axes = ("--success", "locality.near_kl", "--locality", "perplexity.ratio")
    return place.run("compare", place.folder / "policy.yaml", "--editors", editors, "--json",
                     *axes, *more)  # fmt: skip


@pytest.fixture
def roomy(place: Workplace) -> Workplace:
    """A model that prompts of some length fit into."""
    path = place.folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 2048}))
    place.policy(edits=[FORGETTING], audits=[LEAKAGE, LOCALITY, PERPLEXITY], gates=None)
    return place


def test_prompts_are_rows_beside_the_untouched_model_and_change_nothing(roomy: Workplace) -> None:
    result = compare(roomy, "refusal_prompt,in_context")
    assert result.exit_code == 0, result.stderr
    rows = {row.name: row for row in Standings.model_validate_json(result.stdout).rows}
    assert list(rows) == ["none", "refusal_prompt", "in_context"]
    for name in catalog.PROMPT_BASELINES:
        row = rows[name]
        assert (row.kind, row.entries_changed, row.status) == ("prompt", 0, None)
        assert "no weights change, never exported" in row.warning
        assert row.metrics["perplexity.ratio"].value == 1.0
        moved = row.metrics["locality.near_kl"].value
        assert moved is not None
        assert moved > 0
    assert rows["none"].metrics["locality.near_kl"].value == 0
    folder = roomy.folder / "out" / "trial.comparison"
    record = RunRecord.model_validate_json((folder / "in_context" / "report.json").read_text())
    assert "in_context stands before every question: no weights are changed" in record.warnings
    assert record.export is None
    assert [audit.id for audit in record.before] == [audit.id for audit in record.after]
    assert not roomy.target.exists()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        for word in (*SUBJECTS, *ANSWERS, *WORDINGS):
            assert word not in path.read_text(), path.name
    assert not any(word in result.output for word in (*SUBJECTS, *ANSWERS))
    again = compare(roomy, "in_context")
    assert "in_context: kept from an earlier run" in again.stderr


def test_data_that_only_other_editors_take_may_stand_in_the_edit(roomy: Workplace) -> None:
    roomy.policy(
        edits=[{**FORGETTING, "preserve": {"dataset": "facts"}, "prose": {"dataset": "prose"}}],
        audits=[LEAKAGE, LOCALITY, PERPLEXITY],
        gates=None,
    )
    result = compare(roomy, "in_context")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("editors", "params", "told"),
    [
        ("in_context,random", None, "no editor whose random control could be compared"),
        ("in_context", "in_context: {}", "takes no parameters"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_runs(
    place: Workplace, editors: str, params: str | None, told: str
) -> None:
    place.policy(edits=[FORGETTING], audits=[LEAKAGE, LOCALITY, PERPLEXITY], gates=None)
    more = () if params is None else ("--params", place.text("params.yaml", params))
    result = compare(place, editors, *more)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_baseline_that_has_nothing_to_say_is_a_row_with_its_error(place: Workplace) -> None:
    place.policy(edits=[NUDGE], audits=[LOCALITY, PERPLEXITY], gates=None)
    result = compare(place, "in_context")
    assert result.exit_code == 3
    (_, row) = Standings.model_validate_json(result.stdout).rows
    assert row.error.startswith("in_context needs facts to name")
