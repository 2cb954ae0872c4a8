"""Answers are found, whatever they are dressed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeedit.text.matching import (
    contains_alias,
    normalise,
    straighten,
    token_f1,
    way_told,
)


class TestAliases:
    @pytest.mark.parametrize(
        ("text", "alias"),
        [
            ("It is paris.", "Paris"),
            ("**Paris**", "Paris"),
            ("Paris's mayor", "Paris"),
            ("Par\u00eds", "Paris"),
            ("Pari\u0301s", "par\u00eds"),
            ("Ｐａｒｉｓ", "Paris"),
            ("in Washington D.C.", "Washington, DC"),
            ("the U.S.A. won", "USA"),
            ("Jean\u2010Paul", "Jean-Paul"),
            ("O\u2019Brien", "O'Brien"),
            ("Stra\u00dfe", "STRASSE"),
            ("rock & roll", "rock and roll"),
            ("It was in 1,945.", "1945"),
            ("up 5%", "5%"),
            ("It is 3.5. Yes.", "3.5"),
            ("Beatles rule", "The Beatles"),
            ("I like C++.", "C++"),
            ("I don't know, maybe Paris", "Paris"),
            ("new\n  york", "New York"),
            ("首都は東京です", "東京"),
        ],
    )
    def test_an_alias_is_found_in_any_dress(self, text: str, alias: str) -> None:
        assert contains_alias(text, [alias])

    @pytest.mark.parametrize(
        ("text", "alias"),
        [
            ("Tirana", "Iran"),
            ("Parisian", "Paris"),
            ("3.5 metres", "3"),
            ("1945", "45"),
            ("the C language", "C++"),
            ("New Yorkshire", "New York"),
            ("anything", "..."),
            ("anything", ""),
            ("", "Paris"),
        ],
    )
    def test_a_part_of_a_word_or_number_is_no_alias(self, text: str, alias: str) -> None:
        assert not contains_alias(text, [alias])

    @pytest.mark.parametrize(
        ("text", "alias", "expected"),
        [
            ("I don't know.", "I", False),
            ("The symbol is I.", "I", True),
            ("A dog", "A", False),
            ("Vitamin A is", "A", True),
            ("A.", "A", True),
            ("Can you tell us?", "US", False),
            ("made in the U.S. today", "US", True),
            ("Who is it?", "The Who", False),
            ("a song of The Who", "The Who", True),
            ("He is right.", "He", False),
            ("Its symbol: He", "He", True),
            ("go", "O", False),
            ("blood group O", "O", True),
        ],
    )
    def test_answers_that_look_like_function_words_are_read_in_their_case(
        self, text: str, alias: str, expected: bool
    ) -> None:
        assert contains_alias(text, [alias]) is expected

    def test_any_of_several_aliases_counts(self) -> None:
        assert contains_alias("They call it Holland.", ["Netherlands", "Holland"])
        assert not contains_alias("They call it Holland.", [])

    @given(st.text())
    def test_normalising_twice_changes_nothing_more(self, text: str) -> None:
        assert straighten(straighten(text)) == straighten(text)
        assert normalise(normalise(text)) == normalise(text)

    @given(st.text(alphabet=st.characters(categories=["Ll", "Lu", "Nd"]), min_size=3, max_size=12))
    def test_a_word_is_found_in_a_sentence_around_it(self, word: str) -> None:
        if normalise(word).isalnum() and len(normalise(word)) > 3:
            assert contains_alias(f"so: {word}, yes", [word])


class TestTokenF1:
    def test_it_equals_the_hand_computed_value(self) -> None:
        # words: capital, of, france, is, paris | paris, is, capital -> overlap 3
        value = token_f1("The capital of France is Paris.", "Paris is the capital")
        assert value == pytest.approx(2 * 3 / (5 + 3))

    def test_case_punctuation_and_articles_do_not_count(self) -> None:
        assert token_f1("The Cat!", "a cat") == 1.0

    def test_repeated_words_count_as_often_as_they_are_shared(self) -> None:
        assert token_f1("no no no", "no") == pytest.approx(0.5)

    def test_texts_without_words_agree_with_each_other_only(self) -> None:
        assert token_f1("", "") == 1.0
        assert token_f1("", "word") == 0.0

    @given(st.text(), st.text())
    def test_it_is_symmetric_and_within_zero_and_one(self, a: str, b: str) -> None:
        assert 0.0 <= token_f1(a, b) <= 1.0
        assert token_f1(a, b) == token_f1(b, a)
        assert token_f1(a, a) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is P a r i s.", "Paris"),
        ("it is p, a, r, i, s", "Paris"),
        ("N e w Y o r k", "New York"),
        ("М о с к в а", "Москва"),
        ("Ł ó d ź", "Łódź"),
    ],
)
def test_an_answer_that_is_spelt_out_is_told_by_the_looser_way(text: str, answer: str) -> None:
    assert way_told(text, [answer]) == "looser"


@pytest.mark.parametrize("text", ["par is", "p a ris", "P a r i", "P a r i x s"])
def test_what_is_not_letter_by_letter_spells_no_answer(text: str) -> None:
    assert way_told(text, ["Paris"]) is None
