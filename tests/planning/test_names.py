"""A plan is not fooled by another name: neither its splits nor what it withholds."""

from __future__ import annotations

from typing import Any

from safeedit.errors import DataError, PolicyError
from tests.planning.test_plan import REAL, SANITATION, plan_of, refused
from tests.road import FORGET, Workplace

NAMES = {"subject": "Peru", "subject_aliases": ["Tahuantinsuyo", "the Inca country"]}
ROW: dict[str, Any] = {
    **NAMES,
    "prompt": "Which town governs Peru?",
    "answer": "Lima",
    "reverse_questions": ["Lima governs which country?"],
    "translations": {"es": "¿Cuál es la capital?"},
}


def test_what_is_retained_under_another_name_or_turned_round_is_refused(place: Workplace) -> None:
    place.rows("named.jsonl", [*FORGET, ROW])
    for prompt in (
        "Which town governs the Inca country?",
        "lima governs which country",
        "¿Cuál es la capital?",
    ):
        place.rows("kept.jsonl", [{"prompt": prompt, "answer": "Lima", "split": "fit"}])
        forget = {"file": "named.jsonl"}
        edit = {**SANITATION, "dose": 1.0, "forget": forget, "retain": {"file": "kept.jsonl"}}
        audits = [{**audit, "forget": forget} if "forget" in audit else audit
                  for audit in REAL["audits"]]  # fmt: skip
        error = refused(place.policy(**{**REAL, "edits": [edit], "audits": audits}), DataError)
        assert "share 1 prompt" in error.message
        assert "Lima" not in str(error)


def test_a_name_that_no_editor_sees_may_not_name_the_run_either(place: Workplace) -> None:
    place.rows("named.jsonl", [*FORGET, ROW])
    forget = {"file": "named.jsonl"}
    edit = {**SANITATION, "dose": 1.0, "forget": forget, "unaudited": "measured elsewhere"}
    parts = {**REAL, "edits": [edit], "name": "the-inca-country-request"}
    error = refused(place.policy(**parts), PolicyError)
    assert "quotes data to be erased" in error.message


def test_erasing_without_a_look_at_other_answers_is_told(place: Workplace) -> None:
    edit = {**SANITATION, "dose": 1.0}
    parts = {**REAL, "edits": [edit], "audits": REAL["audits"][:1], "gates": REAL["gates"][:1]}
    told = "answers that must stay is not measured"
    assert any(told in warning for warning in plan_of(place.policy(**parts)).warnings)
    whole = {**REAL, "edits": [edit]}
    assert not any(told in warning for warning in plan_of(place.policy(**whole)).warnings)
