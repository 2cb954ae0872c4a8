"""Sampling against the definition, spelt out token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.errors import UsageError
from safeedit.model.sampling import Sampling, draw, uniforms


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """What ``draw`` should follow, by brute force."""
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    order = sorted(range(len(logits)), key=lambda token: -float(probabilities[token]))
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(float(probabilities[token]) for token in order)
    kept, reached = torch.zeros(len(logits), dtype=torch.float64), 0.0
    for token in order:
        kept[token] = probabilities[token] / total
        reached += float(kept[token])
        if reached >= sampling.top_p:
            break
    return kept / kept.sum()


def frequencies(logits: Tensor, sampling: Sampling, n: int = 20_000) -> Tensor:
    """Shares of tokens over ``n`` evenly spread numbers: exact up to 1 / n per token."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens = torch.cat([draw(logits.expand(500, -1), sampling, part) for part in u.split(500)])
    return torch.bincount(tokens, minlength=len(logits)).double() / n


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=3.0),
        Sampling(top_p=0.9),
        Sampling(top_p=0.3),
        Sampling(top_p=1e-9),
        Sampling(top_k=5),
        Sampling(top_k=1),
        Sampling(temperature=1.5, top_p=0.8, top_k=20),
    ],
    ids=repr,
)
@pytest.mark.parametrize("vocab", [40, 700])
def test_draws_follow_the_defined_distribution(sampling: Sampling, vocab: int) -> None:
    logits = 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))

    found = frequencies(logits, sampling)

    expected = distribution(logits, sampling)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert bool((found[expected == 0] == 0).all())


def test_a_flat_distribution_is_not_cut_to_the_tokens_looked_at_first() -> None:
    logits = 1e-3 * torch.randn(3000, generator=torch.Generator().manual_seed(0))

    found = frequencies(logits, Sampling(top_p=0.9), n=30_000)

    assert 2650 < int((found > 0).sum()) <= 2720  # 0.9 of 3000, almost all equally likely


def test_the_ends_of_the_unit_interval_give_tokens_that_have_probability() -> None:
    logits = torch.tensor([[-float("inf"), 1.0, 2.0, -float("inf")]] * 2)
    u = torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)

    for sampling in (Sampling(), Sampling(top_p=0.99), Sampling(top_k=3)):
        assert set(draw(logits, sampling, u).tolist()) <= {1, 2}


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(8, 50)

    assert torch.equal(draw(logits, Sampling(temperature=0), torch.rand(8)), logits.argmax(-1))


def test_numbers_depend_on_seed_prompt_and_sample_alone() -> None:
    first = uniforms(1, 2, 3, 8)

    assert torch.equal(first, uniforms(1, 2, 3, 8))
    assert torch.equal(first[:4], uniforms(1, 2, 3, 4))
    others = [uniforms(0, 2, 3, 8), uniforms(1, 0, 3, 8), uniforms(1, 2, 0, 8)]
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}], ids=str
)
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)  # type: ignore[arg-type]
