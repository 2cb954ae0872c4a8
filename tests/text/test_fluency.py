"""Figures of fluency, by hand."""

from __future__ import annotations

import pytest

from safeedit.text.fluency import distinct, is_empty, n_gram_entropy, repetition, tokens


def test_tokens_are_words_and_marks() -> None:
    assert tokens("Don't STOP, now!!") == ["don't", "stop", ",", "now", "!", "!"]
    assert tokens(" \n") == []


def test_distinct_pools_the_texts() -> None:
    assert distinct(["a b a b"], 1) == 0.5
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a b", "A b"], 2) == 0.5
    assert distinct(["a b", "c d"], 2) == 1.0
    assert distinct(["a", ""], 2) == distinct([], 1) == 0.0


def test_repetition_is_of_runs_within_a_text() -> None:
    assert repetition("no no no no no no") == pytest.approx(2 / 3)  # one of three runs is new
    assert repetition("one two three four five six") == 0.0
    assert repetition("too short") == repetition("") == 0.0
    assert repetition("a b a b", n=2) == pytest.approx(1 / 3)


def test_entropy_is_that_of_pairs_and_runs_of_three() -> None:
    # Three pairs, two runs of three, all different: log2(3) and log2(2) bits.
    assert n_gram_entropy("a b c d") == pytest.approx((2 / 3 * 1.584963 + 4 / 3 * 1) / 2)
    assert n_gram_entropy("a a a a a") == 0.0
    assert n_gram_entropy("a b") == n_gram_entropy("") == 0.0
    assert n_gram_entropy("a b c d e f g") > n_gram_entropy("a b c a b c a")


def test_marks_alone_are_empty() -> None:
    assert is_empty("")
    assert is_empty(" \n")
    assert is_empty("!?..")
    assert not is_empty("7")
    assert not is_empty("né")
