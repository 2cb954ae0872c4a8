"""Shifts of the last residual stream after which a model goes on with a given word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.errors import UsageError
from safeedit.methods.facts.keys import TokenPosition
from safeedit.methods.residual_shifts import (
    Descent,
    margin_shifts,
    margins,
    residual_shifts,
)
from safeedit.methods.word_tokens import single_tokens
from safeedit.model.handle import ModelHandle
from tests.tiny_models import FAMILIES, tiny_handle

PROMPTS = ("The doctor said that", "The nurse said that", "Who was the prince of")


def states(handle: ModelHandle, texts: tuple[str, ...] = PROMPTS) -> Tensor:
    last = handle.n_layers - 1
    return torch.stack(handle.engine.hidden(handle.engine.encode(texts, "plain"), [last])[last])


@pytest.mark.trains
@pytest.mark.parametrize("family", FAMILIES)
def test_words_become_likely_and_probabilities_are_the_models_own(family: str) -> None:
    handle = tiny_handle(family)
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    found = residual_shifts(handle, states(handle), states(handle), tokens, Descent(steps=8))
    base = handle.engine.next_token_log_probs(handle.engine.encode(PROMPTS, "plain"))
    assert torch.allclose(found.before, base[:, tokens], atol=1e-3)
    assert found.values.shape == (3, 2, handle.d_model)
    assert bool((found.after > found.before + 0.2).all())


@pytest.mark.trains
def test_results_do_not_depend_on_the_company_of_other_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = tiny_handle("llama")
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    hidden = states(handle)
    together = residual_shifts(handle, hidden, hidden, tokens, Descent(steps=5))
    monkeypatch.setattr("safeedit.methods.residual_shifts.CHUNK_LOGITS", 1)
    alone = residual_shifts(handle, hidden, hidden, tokens, Descent(steps=5))
    assert torch.allclose(together.values, alone.values, atol=1e-4)


@pytest.mark.trains
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


@pytest.mark.trains
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
    with pytest.raises(UsageError, match="'Copenhagen' as several tokens") as caught:
        single_tokens(engine, ("he", "Copenhagen"), "plain")
    assert caught.value.field == "pronouns"
    with pytest.raises(UsageError, match="same token"):
        single_tokens(engine, ("he", "he"), "plain")


def _spots(handle: ModelHandle, back: int = 0) -> list[TokenPosition]:
    prompts = handle.engine.encode(PROMPTS, "plain")
    return [TokenPosition(tuple(ids), len(ids) - 1 - back) for ids in prompts]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layer", "back"), [(2, 0), (1, 0), (0, 1)])
def test_least_shifts_make_two_words_equally_likely(family: str, layer: int, back: int) -> None:
    handle = tiny_handle(family)
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    pair = torch.tensor([tokens])
    (site,) = handle.sites("mlp_out", [layer])
    spots = _spots(handle, back)
    found = margin_shifts(handle, site, spots, pair.expand(3, 2), torch.zeros(3).double(), steps=12)
    states = torch.stack(handle.engine.hidden([spot.ids for spot in spots], [2])[2])
    assert torch.allclose(found.before, margins(handle, states, pair), atol=1e-3)
    # Far from the end a random model may hold no such shift near by; none leads away.
    most = 0.05 + (0.1 if not back else 0.6) * float(found.before.abs().mean())
    assert float(found.after.abs().mean()) < most
    assert bool((found.after.abs() <= found.before.abs() + 1e-3).all())

    def add(where: object, activation: Tensor) -> Tensor:
        moved = activation.clone()
        for row, spot in enumerate(spots):
            if row == index:
                moved[0, spot.position] += found.values[row].to(activation.dtype)
        return moved

    for index, spot in enumerate(spots):  # the same by a plain pass of the whole model
        ids = torch.tensor([spot.ids])
        mask = torch.ones_like(ids)
        with handle.intercepted([site], add, "output"), torch.no_grad():
            hidden = handle.forward({"input_ids": ids, "attention_mask": mask})
        logits = handle.logits(hidden[0, -1])[tokens].double()
        assert float(logits[0] - logits[1]) == pytest.approx(float(found.after[index]), abs=1e-3)


def test_they_are_least_and_any_margin_may_be_wanted() -> None:
    handle = tiny_handle("llama")
    tokens = single_tokens(handle.engine, ("he", "she"), "plain")
    pair = torch.tensor([tokens])
    (site,) = handle.sites("mlp_out", [2])
    spots = _spots(handle)
    found = margin_shifts(
        handle, site, spots, pair.expand(3, 2), torch.tensor([1.0, -1.0, 0.5]), steps=8
    )
    assert torch.allclose(found.after, torch.tensor([1.0, -1.0, 0.5]).double(), atol=1e-3)
    states = torch.stack(handle.engine.hidden([spot.ids for spot in spots], [2])[2])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(3, handle.d_model, generator=generator)
        other *= (
            0.95 * found.values.float().norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
        )
        near = found.values.float() * 0.95 + 0.1 * other
        near *= (
            0.97 * found.values.float().norm(dim=1, keepdim=True) / near.norm(dim=1, keepdim=True)
        )
        reached = (margins(handle, states + near, pair) - found.before) / (
            found.after - found.before
        )
        assert float(reached.max()) < 1, "a shorter shift does not get there"
