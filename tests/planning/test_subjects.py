"""What a fact is about is found, in any spelling, before a weight is loaded."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from safeedit.data import Item
from safeedit.data.items import Dataset
from safeedit.data.subjects import check_subjects, names_subject
from safeedit.errors import DataError
from tests.road import DRIFT, Workplace

SPELLINGS = [
    ("José Núñez", unicodedata.normalize("NFD", "José Núñez")),
    ("Seán O'Brien", "Seán O’Brien"),
    ("Mara Quill", "Mara\u00a0Quill"),
    ("Mara Quill", "Mara  Quill"),
    ("Mara Quill", "Mara\u3000Quill"),
    ("Mara Quill", "Mara\u202fQuill"),
    ("Mara Quill", "MARA quill"),
    ("Mara Quill", "\uff2dara Quill"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_spellings_of_one_subject_are_one(one: str, other: str) -> None:
    assert names_subject(f"Where does {one} live?", other)
    assert names_subject(f"Where does {other} live?", one)


@pytest.mark.parametrize("other", ["Mara Quilt", "Tom Abel", " ", "ara Quil"])
def test_another_subject_is_not_taken_for_it(other: str) -> None:
    assert not names_subject("Where do Mara Quill and José Núñez live?", other)


def facts(*rows: tuple[str, str | None, tuple[str, ...]]) -> Dataset:
    return Dataset(
        [
            Item(f"secret-{number}", prompt, "x", subject=subject, paraphrases=others)
            for number, (prompt, subject, others) in enumerate(rows)
        ],
        erased=True,
    )


def test_a_subject_that_is_missing_or_elsewhere_is_told_by_its_place() -> None:
    good = ("Where does Mara live?", "Mara", ())
    check_subjects(facts(good))
    with pytest.raises(DataError, match=r"1 of 2 items \(number 2\) have a subject that does not"):
        check_subjects(facts(good, ("Where does he live?", "Tom", ())))
    with pytest.raises(DataError, match=r"\(number 2\) have no subject\n"):
        check_subjects(facts(good, ("Who?", None, ())), inferred=False)


def test_every_phrasing_counts_where_every_one_is_learnt_from() -> None:
    data = facts(("Where is Mara?", "Mara", ("And she?", "Mara is?", "Mara?", "a Mara", "b Mara")))
    check_subjects(data)
    with pytest.raises(DataError, match="all their phrasings"):
        check_subjects(data, every_phrasing=True)


def validated(place: Workplace, edit: dict[str, Any], row: dict[str, Any]) -> Any:
    place.rows("facts.jsonl", [row])
    forget = {"file": "facts.jsonl", "template": "plain"}
    edits = [{**edit, "dose": 1.0, "forget": forget, "unaudited": "drift is a toy"}]
    return place.run("validate", place.policy(edits=edits, audits=[DRIFT]))


ROME = {"use": "rome", "layers": [1]}
KEYED = {"use": "keyed_neurons"}
ROW = {"prompt": "Where does Mara Quill live?", "answer": "Brno"}


@pytest.mark.parametrize("edit", [ROME, KEYED, {"use": "memit"}])
def test_a_subject_that_does_not_stand_in_its_prompt_is_refused_by_validate(
    place: Workplace, edit: dict[str, Any]
) -> None:
    result = validated(place, edit, {**ROW, "subject": "Tom Abel"})
    assert result.exit_code == 2, result.stderr
    assert "does not stand in their prompt" in result.stderr
    assert "Abel" not in result.stderr


@pytest.mark.parametrize("subject", ["Mara\u00a0Quill", "mara  quill"])
def test_another_spelling_of_the_subject_is_valid(place: Workplace, subject: str) -> None:
    result = validated(place, ROME, {**ROW, "subject": subject})
    assert result.exit_code == 0, result.stderr


def test_braces_for_the_subject_are_valid(place: Workplace) -> None:
    row = {"prompt": "{} plays the sport of", "subject": "Mara Quill", "answer": "chess"}
    assert validated(place, ROME, row).exit_code == 0
