"""Sentences to complete: open wordings as they are, questions that fit a pattern turned round."""

from __future__ import annotations

import pytest

from safeedit.text.cloze import sentence_made, sentences_given


def test_wordings_that_end_where_the_answer_begins_are_sentences() -> None:
    wordings = (
        "What is the capital of Norway?",
        "Complete the sentence: The capital of Norway is",
        "The capital of Norway is",
        "Name the capital of Norway.",
        "Please finish this text: Norway's capital, as everybody knows, is",
        "Oslo: the capital of",
    )
    assert sentences_given(wordings) == [
        "The capital of Norway is",
        "Norway's capital, as everybody knows, is",
        "Oslo: the capital of",
    ]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("What is the capital of Norway?", "The capital of Norway is"),
        ("Which city is the capital of Norway?", "The capital of Norway is"),
        ("Norway is a country on which continent?", "Norway is a country on the continent of"),
        ("The biggest city of Norway is called what?", "The biggest city of Norway is called"),
        ("Where does Mara Quill live?", "Mara Quill lives in"),
        ("Where was Ada Quill born?", "Ada Quill was born in"),
        ("Where is Mara Quill now?", "Mara Quill is in"),
        ("What is the river there called?", "The river there is"),
        ("Who wrote the play?", None),
        ("Name the capital of Norway.", None),
        ("", None),
    ],
)
def test_a_question_becomes_the_sentence_that_states_it(
    question: str, sentence: str | None
) -> None:
    assert sentence_made(question) == sentence
