"""States in another model's place: one's own change nothing, the last block's are the answer."""

from __future__ import annotations

import pytest
import torch

from safeedit.methods.state_patching import Recited, answering_states, log_probs_with
from safeedit.model.handle import ModelHandle
from tests.tiny_models import FAMILIES, N_LAYERS, tiny_handle

every_family = pytest.mark.parametrize("family", FAMILIES)


def recited(model: ModelHandle) -> list[Recited]:
    """Two texts of different lengths, so that one is padded."""
    engine = model.engine
    prompts = engine.encode(["The capital of France is", "Who was late"], "plain")
    answers = engine.continuations(["Paris, or Rome", "she"], "plain")
    return [Recited(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def told(model: ModelHandle, texts: list[Recited]) -> torch.Tensor:
    scores = model.engine.score([t.prompt for t in texts], [t.answer for t in texts])
    return torch.tensor([score.total / len(score.log_probs) for score in scores])


@every_family
def test_ones_own_states_change_nothing(family: str) -> None:
    model = tiny_handle(family)
    texts = recited(model)
    found = log_probs_with(model, texts, answering_states(model, texts))
    assert found.shape == (2, 1 + N_LAYERS)
    whole = told(model, texts).double()
    assert torch.allclose(found, whole[:, None].expand_as(found), atol=1e-4)


@every_family
def test_states_of_another_model_change_what_is_said_at_every_layer(family: str) -> None:
    model, other = tiny_handle(family), tiny_handle(family, seed=9)
    texts = recited(model)
    found = log_probs_with(model, texts, answering_states(other, texts))
    assert bool(((found[:, 1:] - found[:, :1]).abs() > 1e-5).all())


def test_above_the_last_block_nothing_but_the_head_is_left_of_the_host(llama: ModelHandle) -> None:
    """With norm and head in common, the source's last states say what the source says."""
    other = tiny_handle("llama", seed=9)
    with torch.no_grad():
        llama.final_norm.load_state_dict(other.final_norm.state_dict())
        llama.head.load_state_dict(other.head.state_dict())
    texts = recited(llama)
    found = log_probs_with(llama, texts, answering_states(other, texts))
    assert torch.allclose(found[:, -1], told(other, texts).double(), atol=1e-4)
    assert not torch.allclose(found[:, 1], told(other, texts).double(), atol=1e-4)
