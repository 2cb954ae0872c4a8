"""What is remembered of answers: the base's, and the latest; in memory, and never shown."""

from __future__ import annotations

import pytest

from safeedit.errors import UsageError
from safeedit.model.foreknown import ForeknownAnswers
from safeedit.model.handle import ModelHandle
from tests.model.test_drafts import passes
from tests.model.test_engine import token_rows
from tests.tiny_models import tiny_handle


def test_the_first_answer_stays_and_the_latest_come_first() -> None:
    known = ForeknownAnswers()
    for answer in ([1], [2], [3], [2], [1], [4]):
        known.learn([[7, 8]], [answer])
    assert known.drafts([[7, 8], [7]]) == [[(4,), (2,), (1,)], []]
    assert known.drafts([[7, 8], [7]], [[[9]], [[6], []]]) == [
        [(4,), (2,), (1,), [9]],
        [[6], []],
    ]
    with pytest.raises(UsageError, match="equally many"):
        known.drafts([[7]], [])


def test_answers_are_not_shown() -> None:
    known = ForeknownAnswers()
    known.learn([[1234]], [[5678]])
    assert "1234" not in repr(known)
    assert "5678" not in repr(known)


def asked(handle: ModelHandle, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return passes(handle, lambda: handle.engine.generate(prompts, max_new_tokens=9, stop_ids=[]))


def test_within_the_context_answers_are_learnt_and_verified_and_outside_not() -> None:
    handle, known = tiny_handle("llama"), ForeknownAnswers()
    prompts = token_rows(4, 6, 6)

    with handle.engine.foreknowing(known, learn=True):
        assert len(asked(handle, prompts)) == 9
        assert len(asked(handle, prompts)) == 2
    assert len(asked(handle, prompts)) == 9
    other = token_rows(4, 6, 6, seed=5)
    with handle.engine.foreknowing(known, learn=False):
        assert len(asked(handle, prompts)) == 2
        assert len(asked(handle, other)) == 9
        assert len(asked(handle, other)) == 9


def test_the_context_ends_with_an_error_too() -> None:
    handle, known = tiny_handle("llama"), ForeknownAnswers()
    prompts = token_rows(2, 6, 6)
    with pytest.raises(ZeroDivisionError), handle.engine.foreknowing(known, learn=True):
        raise ZeroDivisionError
    asked(handle, prompts)
    assert known.drafts(prompts) == [[], []]
