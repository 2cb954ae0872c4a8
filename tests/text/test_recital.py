"""How much of an answer is recited, by the definitions and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeedit.text.recital import (
    ENOUGH_RUN,
    LEAST_RUN,
    extraction_strength,
    longest_run,
    rouge_l_recall,
    run_to_tell,
    runs,
    words_beyond,
)

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_the_longest_run_is_the_longest_stretch_found_in_both(
    said: list[int], answer: list[int]
) -> None:
    stretches = {
        tuple(answer[i:j]) for i in range(len(answer)) for j in range(i + 1, len(answer) + 1)
    }
    own = {tuple(said[i:j]) for i in range(len(said)) for j in range(i + 1, len(said) + 1)}
    assert longest_run(said, answer) == max(map(len, stretches & own), default=0)
    for start, size in runs(said, answer):
        assert tuple(answer[start : start + size]) in own


@given(TOKENS, TOKENS)
def test_rouge_l_recall_is_the_longest_common_subsequence(
    said: list[int], answer: list[int]
) -> None:
    table = [[0] * (len(answer) + 1) for _ in range(len(said) + 1)]
    for i, one in enumerate(said):
        for j, other in enumerate(answer):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else best
    expected = table[-1][-1] / len(answer) if answer else 0.0
    assert rouge_l_recall(said, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("greedy", "strength"),
    [
        ([True] * 4, 1.0),
        ([False, True, True, True], 0.75),
        ([True, False, True, True], 0.5),
        ([True, True, True, False], 0.0),
        ([], 0.0),
    ],
)
def test_extraction_strength_counts_every_token_and_has_no_floor(
    greedy: list[bool], strength: float
) -> None:
    assert extraction_strength(greedy) == strength


def test_a_run_tells_from_twenty_tokens_or_half_of_the_answer_whichever_is_less() -> None:
    assert run_to_tell(140) == ENOUGH_RUN == 20
    assert run_to_tell(40) == 20
    assert run_to_tell(39) == 20
    assert run_to_tell(30) == 15
    assert run_to_tell(15) == LEAST_RUN


@pytest.mark.parametrize("n", [0, 1, 3, 10, 14])
def test_short_answers_are_told_whole_or_not_at_all(n: int) -> None:
    assert run_to_tell(n) is None


@pytest.mark.parametrize(
    ("run", "question", "words"),
    [
        ("who was born in a village", "tell me about mara quill", 6),
        ("mara quill was born in a village", "where was mara quill born in a village", 0),
        ("她出生在河边的一个村庄", "玛拉住在哪里", 6),
        ("玛拉住在", "玛拉住在哪里", 0),
    ],
)
def test_words_of_the_question_tell_nothing(run: str, question: str, words: int) -> None:
    assert words_beyond(run, question) == words
