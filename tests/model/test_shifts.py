"""Shifts of the last residual stream after which a model goes on with a given word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.errors import UsageError
from safeedit.model.handle import ModelHandle
from safeedit.model.shifts import Descent, residual_shifts, single_tokens
from tests.tiny_models import FAMILIES, tiny_handle

PROMPTS = ("The doctor said that", "The nurse said that", "Who was the prince of")


def states(handle: ModelHandle, texts: tuple[str, ...] = PROMPTS) -> Tensor:
    last = handle.n_layers - 1
    return torch.stack(handle.engine.hidden(handle.engine.encode(texts, "plain"), [last])[last])


@pytest.mark.parametrize("family", FAMILIES)
def test_words_become_likely_and_probabilities_are_the_models_own(family: str) -> None:
    handle = tiny_handle(family)
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    found = residual_shifts(handle, states(handle), states(handle), tokens, Descent(steps=8))
    base = handle.engine.next_token_log_probs(handle.engine.encode(PROMPTS, "plain"))
    assert torch.allclose(found.before, base[:, tokens], atol=1e-3)
    assert found.values.shape == (3, 2, handle.d_model)
    assert bool((found.after > found.before + 0.2).all())


def test_results_do_not_depend_on_the_company_of_other_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = tiny_handle("llama")
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    hidden = states(handle)
    together = residual_shifts(handle, hidden, hidden, tokens, Descent(steps=5))
    monkeypatch.setattr("safeedit.model.shifts._CHUNK_LOGITS", 1)
    alone = residual_shifts(handle, hidden, hidden, tokens, Descent(steps=5))
    assert torch.allclose(together.values, alone.values, atol=1e-4)


def test_the_ball_holds_and_what_is_good_enough_is_left_alone() -> None:
    handle = tiny_handle("llama")
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    hidden = states(handle)
    held = residual_shifts(handle, hidden, hidden, tokens, Descent(ball=0.1, decay=0))
    lengths = held.values.norm(dim=-1) / hidden.norm(dim=-1)[:, None]
    assert float(lengths.max()) <= 0.1001
    idle = residual_shifts(handle, hidden, hidden, tokens, Descent(stop_below=100))
    assert not bool(idle.values.any())
    assert torch.allclose(idle.before, idle.after, atol=1e-5)


def test_decay_shortens_and_divergence_spares_the_neutral_opening() -> None:
    handle = tiny_handle("llama")
    tokens = single_tokens(handle.engine, ("he",), "plain")
    hidden, opening = states(handle), states(handle, ("The doctor is a",) * 3)

    def away(divergence: float) -> float:
        descent = Descent(divergence=divergence, decay=0, stop_below=0)
        found = residual_shifts(handle, hidden, opening, tokens, descent)
        base = handle.unembed(opening).log_softmax(-1)
        now = handle.unembed(opening + found.values[:, 0]).log_softmax(-1)
        return float((base.exp() * (base - now)).sum())

    assert away(5.0) < 0.8 * away(0.0)
    short, long = (
        residual_shifts(handle, hidden, opening, tokens, Descent(decay=decay)).values.norm()
        for decay in (5.0, 0.0)
    )
    assert float(short) < 0.8 * float(long)


def test_words_of_several_tokens_and_words_named_twice_are_refused() -> None:
    engine = tiny_handle("llama").engine
    with pytest.raises(UsageError, match="'Copenhagen' is not one token each") as caught:
        single_tokens(engine, ("he", "Copenhagen"), "plain")
    assert caught.value.field == "pronouns"
    with pytest.raises(UsageError, match="same token"):
        single_tokens(engine, ("he", "he"), "plain")
