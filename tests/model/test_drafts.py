"""Answers that are foreknown, rightly or not, are those that are written without a draft.

In float32, token for token. Drafts are right, wrong at the first, a middle or the last token,
shorter, longer, empty; of several the one that fits goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeedit.errors import AuditError, UsageError
from safeedit.model.engine import Along, Engine, Sampling
from safeedit.model.handle import ModelHandle
from tests.model.test_engine import MODELS, label, token_rows
from tests.tiny_models import MAX_POSITIONS, VOCAB_SIZE, tiny_handle

LENGTH = 13


def other(token: int) -> int:
    return (token + 7) % VOCAB_SIZE


def wrong_at(answer: list[int], place: int) -> list[int]:
    return [other(t) if i == place % len(answer) else t for i, t in enumerate(answer)]


DRAFTS: dict[str, Callable[[list[int]], list[list[int]]]] = {
    "right": lambda answer: [answer],
    "wrong at the first": lambda answer: [wrong_at(answer, 0)],
    "wrong in the middle": lambda answer: [wrong_at(answer, 6)],
    "wrong after the first look": lambda answer: [wrong_at(answer, 4)],
    "wrong at the last": lambda answer: [wrong_at(answer, -1)],
    "shorter": lambda answer: [answer[:5]],
    "longer": lambda answer: [[*answer, 9, 8, 7]],
    "empty": lambda answer: [[]],
    "none": lambda answer: [],
    "a second goes on": lambda answer: [wrong_at(answer, 5), wrong_at(answer, 0), answer],
    "all of these": lambda answer: [[], answer[:3], wrong_at(answer, 8), [*answer, 9]],
}


@pytest.fixture(params=MODELS, ids=label)
def handle(request: pytest.FixtureRequest) -> ModelHandle:
    family, options = request.param
    return tiny_handle(family, **options)


def written(handle: ModelHandle, prompts: list[list[int]], stop: list[int]) -> list[list[int]]:
    found = handle.engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=stop)
    return [answer for (answer,) in found]


@pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared prefix"])
def test_drafts_change_no_answer(handle: ModelHandle, shared: int) -> None:
    prompts = token_rows(6, 1, 20, shared=shared)
    whole = written(handle, prompts, [])
    for stop in ([], [whole[0][4], whole[1][8], whole[2][0]]):
        expected = written(handle, prompts, stop)
        for name, make in DRAFTS.items():
            found = handle.engine.generate(
                prompts,
                max_new_tokens=LENGTH,
                stop_ids=stop,
                drafts=[make(answer) for answer in whole],
            )
            assert [answer for (answer,) in found] == expected, name


def test_each_prompt_may_have_a_draft_of_another_kind(handle: ModelHandle) -> None:
    prompts = token_rows(len(DRAFTS), 1, 20)
    expected = written(handle, prompts, [])
    drafts = [make(a) for make, a in zip(DRAFTS.values(), expected, strict=True)]

    for engine in (handle.engine, Engine(handle, max_batch_tokens=90)):
        found = engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=[], drafts=drafts)
        assert [answer for (answer,) in found] == expected


@pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared prefix"])
def test_distributions_are_read_along_drafts_whatever_is_answered(
    handle: ModelHandle, shared: int
) -> None:
    prompts = token_rows(6, 1, 20, shared=shared)
    whole = written(handle, prompts, [])
    told = [wrong_at(whole[0], 2), whole[1], whole[2][:3], [7], wrong_at(whole[4], 0)]
    continuations = {i: [*answer, 0][:6] for i, answer in enumerate(told)}  # none to the last
    along = Along(continuations, lambda prompt, log_probs: log_probs)

    found = handle.engine.generate(
        prompts,
        max_new_tokens=LENGTH,
        stop_ids=[],
        drafts=[*([answer] for answer in told), [whole[5]]],
        along=along,
    )

    assert [answer for (answer,) in found] == whole
    expected = dict(
        handle.engine.distributions(
            prompts[:5], list(continuations.values()), lambda index, positions, rows: rows
        )
    )
    assert sorted(along.found) == sorted(expected)
    for prompt, rows in expected.items():
        torch.testing.assert_close(along.found[prompt], rows, atol=1e-4, rtol=0)


def passes(handle: ModelHandle, run: Callable[[], Any]) -> list[tuple[int, ...]]:
    """Shapes of what the model is given while it runs."""
    shapes: list[tuple[int, ...]] = []
    forward = handle.model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    handle.model.forward = watch  # type: ignore[method-assign]
    try:
        run()
    finally:
        handle.model.forward = forward  # type: ignore[method-assign]
    return shapes


def test_what_a_draft_gets_right_is_not_written_token_by_token() -> None:
    handle = tiny_handle("llama")
    prompts = token_rows(5, 6, 6)
    answers = written(handle, prompts, [])

    def run(drafts: list[list[list[int]]] | None) -> list[tuple[int, ...]]:
        return passes(
            handle,
            lambda: handle.engine.generate(
                prompts, max_new_tokens=LENGTH, stop_ids=[], drafts=drafts
            ),
        )

    assert len(run(None)) == LENGTH
    assert run([[answer] for answer in answers]) == [(5, 6 + 4), (5, 1 + 7)]
    one_wrong = run([[wrong_at(a, 12 if i else 1)] for i, a in enumerate(answers)])
    assert one_wrong[:2] == [(5, 6 + 4), (4, 1 + 7)]
    assert one_wrong[2:] == [(1, 1)] * (LENGTH - 2)


def test_prompts_that_wait_take_the_places_of_answers_that_end() -> None:
    handle = tiny_handle("llama")
    prompts = token_rows(12, 6, 6)
    stop = sorted({answer[2] for answer in written(handle, prompts, [])[:6:2]})
    expected = written(handle, prompts, stop)
    assert sum(len(answer) == LENGTH for answer in expected[:6]) > 1
    engine = Engine(handle, max_batch_tokens=6 * (6 + LENGTH))
    found: list[Any] = []

    shapes = passes(
        handle,
        lambda: found.extend(engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=stop)),
    )

    assert [answer for (answer,) in found] == expected
    assert max(rows for rows, _ in shapes) == 6
    begun = [number for number, (_, width) in enumerate(shapes) if width == 6]
    assert begun[0] == 0
    assert begun[1] < LENGTH - 1  # before the first answers have come to their ends


def test_answers_that_memory_ran_out_of_are_finished_in_smaller_batches() -> None:
    handle = tiny_handle("llama")
    prompts = token_rows(8, 3, 9)
    expected = written(handle, prompts, [])
    forward = handle.model.forward
    calls: list[int] = []

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"].shape[0])
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    handle.model.forward = sometimes  # type: ignore[method-assign]
    engine = Engine(handle)
    found = engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=[])

    assert [answer for (answer,) in found] == expected
    assert max(calls[5:]) <= 4
    drawn: dict[str, Any] = {"sampling": Sampling(), "samples": 2, "max_new_tokens": LENGTH}
    calls.clear()
    assert engine.generate(prompts, **drawn) == tiny_handle("llama").engine.generate(
        prompts, **drawn
    )


def test_one_answer_too_large_for_memory_is_named_by_index() -> None:
    handle = tiny_handle("llama")

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle.model.forward = no_memory  # type: ignore[method-assign]
    with pytest.raises(AuditError, match="prompt 0 alone does not fit"):
        handle.engine.generate([[5, 6], [7]], max_new_tokens=3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_drafts_end_where_the_context_does(family: str) -> None:
    handle = tiny_handle(family)
    prompts = [*token_rows(1, MAX_POSITIONS - 6, MAX_POSITIONS - 6), [5, 6], [9] * MAX_POSITIONS]
    expected = handle.engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=[])
    drafts = [[[*answer, 5, 6, 7, 8]] for (answer,) in expected]
    assert [len(answer) for (answer,) in expected] == [6, LENGTH, 0]

    found = handle.engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=[], drafts=drafts)

    assert found == expected


def test_sampled_answers_pass_drafts_over() -> None:
    handle = tiny_handle("llama")
    prompts = token_rows(3, 2, 9)
    options: dict[str, Any] = {"max_new_tokens": 8, "sampling": Sampling(), "samples": 2}

    plain = handle.engine.generate(prompts, **options)
    assert handle.engine.generate(prompts, **options, drafts=[[[1, 2]]] * 3) == plain


def test_a_sampled_answer_that_has_ended_may_wait_for_others_that_began_later() -> None:
    handle = tiny_handle("llama")
    prompts = token_rows(12, 6, 6)
    stop = list(range(0, VOCAB_SIZE, 8))  # about every eighth token drawn ends an answer
    options: dict[str, Any] = {
        "max_new_tokens": LENGTH, "stop_ids": stop, "sampling": Sampling(), "samples": 3,
    }  # fmt: skip
    at_once = Engine(handle, max_batch_tokens=36 * (6 + LENGTH)).generate(prompts, **options)
    few = Engine(handle, max_batch_tokens=6 * (6 + LENGTH)).generate(prompts, **options)
    assert few == at_once
    lengths = {len(answer) for some in at_once for answer in some}
    assert LENGTH in lengths
    assert len(lengths) > 4, "they end at different places"


def test_where_rounding_is_coarse_drafts_are_passed_over() -> None:
    handle = tiny_handle("llama", torch.bfloat16)
    prompts = token_rows(4, 6, 6)
    answers = written(handle, prompts, [])

    def run() -> None:
        drafts = [[answer] for answer in answers]
        found = handle.engine.generate(prompts, max_new_tokens=LENGTH, stop_ids=[], drafts=drafts)
        assert [answer for (answer,) in found] == answers

    assert len(passes(handle, run)) == LENGTH


def test_drafts_and_prompts_must_be_equally_many() -> None:
    with pytest.raises(UsageError, match="equally many"):
        tiny_handle("llama").engine.generate([[5]], max_new_tokens=3, drafts=[])
