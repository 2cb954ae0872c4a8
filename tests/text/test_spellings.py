"""Spellings made of a name: what a hurried hand writes, the same each time."""

from __future__ import annotations

import pytest

from safeedit.text.spellings import made_names, plain_letters, typos, with_possessive


def forms(name: str, seed: int = 0) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for form, text in made_names(name, seed):
        found.setdefault(form, []).append(text)
    return found


def test_a_person_has_initials_a_surname_and_handles() -> None:
    found = forms("Zoë Van Łęcka")
    assert found["lower case"] == ["zoë van łęcka"]
    assert found["plain letters"] == ["Zoe Van Lecka"]
    assert found["initials"] == ["Z. V. Łęcka", "Z. V. Ł."]
    assert found["surname"] == ["Łęcka"]
    assert found["handle"] == ["zoe.lecka", "zlecka"]


@pytest.mark.parametrize("name", ["Germany", "South Africa", "the Red Sea", "United Bank", "x1 y2"])
def test_what_is_no_persons_name_has_none(name: str) -> None:
    assert not forms(name).keys() & {"initials", "surname", "handle"}


def test_misspelt_names_are_near_the_name_and_their_seeds_own() -> None:
    for name in ("Germany", "Thailand", "Zoë Łęcka", "Αθήνα"):
        for seed in range(20):
            made = typos(name, seed)
            assert made == typos(name, seed)
            assert len(made) == len(set(made) - {name}) == 2
            for text in made:
                assert abs(len(text) - len(name)) <= 1
                assert text[0] == name[0]
    assert len({tuple(typos("Thailand", seed)) for seed in range(20)}) > 10


def test_a_short_name_is_not_misspelt_into_another() -> None:
    assert typos("Bo Li", 0) == typos("中国", 0) == []


def test_no_spelling_is_the_name_itself_or_comes_twice() -> None:
    for name in ("IBM", "bo", "中国", "Mara Quill", "ß"):
        made = [text for _, text in made_names(name, 1)]
        assert len(made) == len({name, *made}) - 1


def test_plain_letters_leave_other_scripts_alone() -> None:
    assert plain_letters("Łódź, Αθήνα, Ёлка, 서울") == "Lodz, Αθήνα, Ёлка, 서울"


@pytest.mark.parametrize(
    ("question", "turned"),
    [
        ("What is the capital of Peru?", "What is Peru's capital?"),
        ("Name the largest city of peru.", "Name peru's largest city."),
        ("What is the mayor of the Peru like?", "What is Peru's mayor like?"),
        ("What is Peru's capital?", None),
        ("Is it the capital of Peruvia?", None),
        ("Who governs Peru?", None),
    ],
)
def test_a_phrase_with_of_becomes_a_possessive(question: str, turned: str | None) -> None:
    assert with_possessive(question, "Peru") == turned


def test_a_name_that_ends_in_s_takes_the_apostrophe_alone() -> None:
    assert with_possessive("What is the capital of Laos?", "Laos") == "What is Laos' capital?"
