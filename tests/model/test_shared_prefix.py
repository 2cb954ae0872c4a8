"""What only some prompts of a call share is run once too, and answers stay what they were."""

from __future__ import annotations

from typing import Any

import pytest

from safeedit.model.handle import ModelHandle
from safeedit.model.shared_prefix import SharedPrefix
from tests.model.test_engine import MODELS, expected_greedy, label, token_rows
from tests.tiny_models import tiny_handle

CHAT = token_rows(5, 3, 9, shared=40, seed=1)
SHOTS = [[*CHAT[0][:40], *row] for row in token_rows(4, 2, 8, shared=60, seed=2)]
PLAIN = token_rows(4, 2, 8, seed=3)
PROMPTS = [p for rows in zip(CHAT, SHOTS, PLAIN, strict=False) for p in rows]


@pytest.fixture(params=MODELS, ids=label)
def handle(request: pytest.FixtureRequest) -> ModelHandle:
    family, options = request.param
    return tiny_handle(family, **options)


def test_answers_are_those_of_each_prompt_alone(handle: ModelHandle) -> None:
    answers = handle.engine.generate(PROMPTS, max_new_tokens=6, stop_ids=[])

    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        assert answer == expected_greedy(handle, prompt, 6)


def test_what_some_share_beyond_what_others_do_is_theirs() -> None:
    handle = tiny_handle("llama")
    lengths = [found.length for found in SharedPrefix.of_each(handle, PROMPTS)]
    assert lengths == [40, 100, 0] * 4

    assert [found.length for found in SharedPrefix.of_each(handle, CHAT)] == [40] * 5
    assert [found.length for found in SharedPrefix.of_each(handle, PLAIN)] == [0] * 4
    assert SharedPrefix.of_each(handle, []) == []


def test_it_is_run_once() -> None:
    handle = tiny_handle("llama")
    tokens: list[int] = []

    def count(module: Any, args: tuple[Any, ...]) -> None:
        tokens.append(args[0].numel())

    handle.embedding.register_forward_pre_hook(count)
    handle.engine.generate(PROMPTS, max_new_tokens=1, stop_ids=[])

    own = [len(p) - s for p, s in zip(PROMPTS, [40, 100, 0] * 4, strict=True)]
    padding = 4 * 12
    assert sum(tokens) <= 40 + 60 + sum(own) + padding


def test_two_prompts_that_share_little_are_not_worth_a_pass() -> None:
    handle = tiny_handle("llama")
    rows = [*token_rows(2, 3, 4, shared=30, seed=4), *PLAIN]
    assert {found.length for found in SharedPrefix.of_each(handle, rows)} == {0}
