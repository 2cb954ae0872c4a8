"""Answers whose language inflects nouns are told by their letters, as far as letters tell."""

from __future__ import annotations

import pytest

from safeedit.text.inflection import advice, inflecting, without_forms


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("Москва", "Cyrillic"),
        ("Αθήνα", "Greek"),
        ("서울", "Korean"),
        ("თბილისი", "Georgian"),
        ("Երևան", "Armenian"),
        ("दिल्ली", "Devanagari"),
        ("மதுரை", "Tamil"),
        ("القاهرة", "Arabic"),
        ("Diyarbakır", "Turkish"),
        ("İzmir", "Turkish"),
        ("Łódź", "Polish"),
        ("Győr", "Hungarian"),
    ],
)
def test_letters_tell_languages_that_inflect(answer: str, letters: str) -> None:
    assert inflecting(answer) == letters


@pytest.mark.parametrize(
    "answer", ["Paris", "北京", "東京", "เชียงใหม่", "Helsinki", "Köln", "1945", "", "🦊"]
)
def test_other_letters_tell_nothing(answer: str) -> None:
    assert inflecting(answer) == ""


def test_answers_with_aliases_need_no_advice() -> None:
    assert advice([("Москва", "Москве")]) == ""
    assert advice([("Paris",), ()]) == ""


def test_the_advice_says_how_many_and_what_to_do_and_never_an_answer() -> None:
    spellings = [("Москва",), ("Киев",), ("서울",), ("Paris",), ("Рим", "Риме")]
    assert without_forms(spellings) == {"Cyrillic": 2, "Korean": 1}
    told = advice(spellings)
    assert "3 answers" in told
    assert "2 in Cyrillic letters, 1 in Korean letters" in told
    assert "column 'aliases'" in told
    assert not any(answer in told for each in spellings for answer in each)
