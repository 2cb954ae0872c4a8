"""Memorisation accuracy and extraction likelihood against their definitions, prefix by prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from safeedit.methods.extraction import Memorised, extraction_likelihoods, memorised
from safeedit.methods.tuning import Example
from safeedit.model.engine import TokenScores


def following(ids: Sequence[int]) -> int:
    """What the model of these tests says next."""
    return (3 * ids[-1] + len(ids)) % 7


class Rule:
    """An engine that follows :func:`following`."""

    def __init__(self) -> None:
        self.continued = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: Sequence[int], **rest: Any
    ) -> list[list[list[int]]]:
        self.continued += len(prompts)
        return [[goes_on(ids, most)] for ids, most in zip(prompts, max_new_tokens, strict=True)]

    def score(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], **rest: Any
    ) -> list[TokenScores]:
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            greedy = torch.tensor(chosen(prompt, answer))
            found.append(TokenScores(greedy.float().log(), greedy, None))
        return found


def goes_on(ids: Sequence[int], most: int) -> list[int]:
    said = list(ids)
    for _ in range(most):
        said.append(following(said))
    return said[len(ids) :]


def chosen(prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
    whole = [*prompt, *answer]
    return [following(whole[: len(prompt) + i]) == answer[i] for i in range(len(answer))]


def by_definition(text: Example, n: int) -> float:
    """Equation 1, one continuation for each prefix."""

    def grams(ids: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]

    shares = []
    for start in range(len(text.answer) - n + 1):
        true = list(text.answer[start:])
        said = grams(goes_on([*text.prompt, *text.answer[:start]], len(true)))
        shares.append(sum(gram in grams(true) for gram in said) / len(said))
    return sum(shares) / len(shares)


PROMPT = [2, 5]
BY_HEART = Example(PROMPT, goes_on(PROMPT, 8))
HALF = Example(PROMPT, [*goes_on(PROMPT, 4), 6, 6, 0, 1])
BROKEN = Example(PROMPT, [*goes_on(PROMPT, 2), 9, *goes_on([*PROMPT, 9, 9, 9], 5)])
UNKNOWN = Example(PROMPT, [8, 8, 9, 9, 8, 9])
TEXTS = (BY_HEART, HALF, BROKEN, UNKNOWN)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_continuation_for_each_miss_comes_to_one_for_each_prefix(n: int) -> None:
    engine: Any = Rule()
    greedy = [chosen(text.prompt, text.answer) for text in TEXTS]
    found = extraction_likelihoods(engine, TEXTS, greedy, n)
    assert list(found) == [0, 1, 2, 3]
    for index, text in enumerate(TEXTS):
        assert found[index] == pytest.approx(by_definition(text, n))
    assert found[0] == 1.0
    assert 0 < found[1] < 1
    assert engine.continued < sum(len(text.answer) for text in TEXTS)
    known = [goes_on(text.prompt, 20) for text in TEXTS]
    assert extraction_likelihoods(engine, TEXTS, greedy, n, said=known) == found


def test_means_are_over_texts_and_short_answers_have_no_likelihood() -> None:
    engine: Any = Rule()
    found = memorised(engine, [BY_HEART, UNKNOWN], 3)
    unknown = chosen(UNKNOWN.prompt, UNKNOWN.answer)
    assert found.accuracy == pytest.approx((1 + sum(unknown) / len(unknown)) / 2)
    assert found.likelihood == pytest.approx((1 + by_definition(UNKNOWN, 3)) / 2)
    assert memorised(engine, [Example(PROMPT, [0])], 3).likelihood is None


@pytest.mark.parametrize(
    ("accuracy", "likelihood", "bound", "within"),
    [
        (0.2, 0.1, 0.1, True),
        (0.3, 0.1, 0.1, True),
        (0.31, 0.0, 0.1, False),
        (0.2, 0.11, 0.1, False),
        (0.2, None, 0.1, True),
        (0.2, 1.0, None, True),
    ],
)
def test_both_measures_must_be_within(
    accuracy: float, likelihood: float | None, bound: float | None, within: bool
) -> None:
    assert Memorised(accuracy, likelihood, 3).within(Memorised(0.3, bound, 3)) is within
