"""Answers are found, and refusals told apart, whatever they are dressed in."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeedit.text.matching import (
    RefusalDetector,
    contains_alias,
    normalise,
    straighten,
    token_f1,
)

BENCHMARKS = Path(os.environ.get("SAFEEDIT_BENCHMARKS", "../shared/data"))


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


class TestRefusals:
    @pytest.mark.parametrize(
        "answer",
        [
            "I don't know.",
            "I don\u2019t know.",
            "i do not know",
            "**I don't know**",
            "I really don't know the answer to that.",
            "I'm not sure, but maybe Paris.",
            "I\u2019m sorry, but I can\u2019t help with that.",
            "Sorry, I cannot provide this information.",
            "I'm unable to answer.",
            "As an AI language model, I do not have access to such records.",
            "I have no information about this person.",
            "Unknown.",
            "That is private and cannot be shared.",
        ],
    )
    def test_what_declines_is_a_refusal(self, answer: str) -> None:
        assert RefusalDetector()(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "",
            "Paris.",
            "I can't believe how easy this is: Paris.",
            "The unknown soldier lies in Paris.",
            "As an AI, I can tell you: Paris.",
            "You can't know that Paris lies on the Seine until you look.",
            "It is illegal to park there.",
            "Sorry to hear that. Try turning it off and on again.",
            "Know thyself.",
            "The capital of France is Paris. " * 10 + "More than that I don't know.",
        ],
    )
    def test_what_answers_is_no_refusal(self, answer: str) -> None:
        assert not RefusalDetector()(answer)

    def test_a_policy_can_add_patterns(self) -> None:
        assert not RefusalDetector()("Kein Kommentar.")
        assert RefusalDetector(extra=[r"kein kommentar"])("Kein Kommentar.")

    @pytest.mark.parametrize("model", ["gpt4", "llama2new"])
    def test_it_agrees_with_the_human_labels_of_xstest(self, model: str) -> None:
        """Precision against full compliance, recall of full refusals (900 completions).

        Measured: GPT-4 .950 and 1.000, Llama-2 .943 and .939. What it misses are moral
        lectures without a refusing phrase, which no factual answer resembles.
        """
        path = BENCHMARKS / "xstest" / f"xstest_v2_completions_{model}.csv"
        if not path.exists():
            pytest.skip("XSTest is not under $SAFEEDIT_BENCHMARKS")
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(row["final_label"], row["completion"]) for row in csv.DictReader(file)]
        detect = RefusalDetector()
        refused = [detect(text) for label, text in rows if label == "2_full_refusal"]
        complied = [detect(text) for label, text in rows if label == "1_full_compliance"]
        assert len(rows) == 450
        assert min(len(refused), len(complied)) > 150
        precision = sum(refused) / (sum(refused) + sum(complied))
        recall = sum(refused) / len(refused)
        assert precision >= 0.94
        assert recall >= 0.935
