"""The likeliest tokens found by way of bfloat16 are those of every logit in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from safeedit.errors import AuditError
from safeedit.model import likeliest
from safeedit.model.handle import ModelHandle
from safeedit.model.likeliest import LikeliestTokens
from tests.tiny_models import tiny_handle


@pytest.fixture
def handle() -> ModelHandle:
    return tiny_handle("llama")


def expected(handle: ModelHandle, hidden: torch.Tensor) -> torch.Tensor:
    return functional.linear(hidden, handle.head.weight).argmax(-1)


@torch.no_grad()
def test_random_states_have_their_tokens(handle: ModelHandle) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 100.0):
        hidden = scale * torch.randn(300, handle.d_model, generator=generator)
        assert torch.equal(LikeliestTokens(handle)(hidden), expected(handle, hidden))


@torch.no_grad()
def test_tokens_that_bfloat16_can_not_tell_apart_are_told_apart(handle: ModelHandle) -> None:
    weight = handle.head.weight
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(200, handle.d_model, generator=generator)
    # Half of the vocabulary is the other half, moved by less than bfloat16 sees.
    half = len(weight) // 2
    noise = 1e-3 * torch.randn(half, handle.d_model, generator=generator)
    weight[half : 2 * half] = weight[:half] * (1 + noise)
    rough = functional.linear(hidden.bfloat16(), weight.bfloat16()).argmax(-1)
    exact = expected(handle, hidden)
    assert not torch.equal(rough, exact)  # else this shows nothing

    assert torch.equal(LikeliestTokens(handle)(hidden), exact)


@torch.no_grad()
def test_of_equal_logits_the_first_token_is_taken(handle: ModelHandle) -> None:
    weight = handle.head.weight
    weight[300] = weight[100] = weight[200] = 3 * weight[7]
    hidden = weight[7][None].clone()
    assert LikeliestTokens(handle)(hidden).tolist() == [100]


@torch.no_grad()
def test_where_all_are_alike_all_are_computed(handle: ModelHandle) -> None:
    weight = handle.head.weight
    weight.copy_(weight[:1] + 1e-4 * weight)
    hidden = torch.randn(20, handle.d_model, generator=torch.Generator().manual_seed(2))
    assert torch.equal(LikeliestTokens(handle)(hidden), expected(handle, hidden))


def test_states_that_are_no_numbers_are_an_error(handle: ModelHandle) -> None:
    hidden = torch.full((2, handle.d_model), float("nan"))
    with pytest.raises(AuditError, match="not finite"):
        LikeliestTokens(handle)(hidden)


def test_it_is_for_heads_in_float32_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(likeliest, "multiplies_in_bfloat16", lambda able=able: able)
        assert LikeliestTokens.suit(tiny_handle("llama")) == able
        assert not LikeliestTokens.suit(tiny_handle("llama", torch.bfloat16))
        assert not LikeliestTokens.suit(tiny_handle("gptj"))  # its head has a bias
