"""The trainer stops, goes on and begins again; between its stops the model is as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.delta import LowRank
from safeedit.errors import EditError
from safeedit.methods.training import (
    Checkpoints,
    LearningWeights,
    Loss,
    LowRankAdapters,
    Training,
    WholeTensors,
    less_memory,
)
from safeedit.methods.tuning import Example, answer_states, cross_entropy
from safeedit.model.handle import ModelHandle
from tests.tiny_models import tiny_handle

pytestmark = pytest.mark.trains

EXAMPLE = [Example([5, 6, 7], [8, 9])]


def _losses(model: ModelHandle, bad: list[int]) -> Loss:
    """Of one example; no number at the steps named, once each."""
    taken = iter(range(1000))

    def loss() -> tuple[Tensor, float]:
        total = cross_entropy(model, answer_states(model, EXAMPLE), EXAMPLE)
        if (step := next(taken)) in bad:
            bad.remove(step)
            total = total * torch.nan
        return total, float(total.detach())

    return loss


def _learner(model: ModelHandle, update: str) -> LearningWeights:
    sites = model.sites("mlp_out", [1])
    if update == "lora":
        return LowRankAdapters(model, sites, rank=2, alpha=4.0, seed=0)
    return WholeTensors(model, [site.weight for site in sites])


@pytest.mark.parametrize("update", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_updates_are_what_the_model_was_trained_to_be(update: str, family: str) -> None:
    model = tiny_handle(family)
    before = model.digest(fresh=True)
    learner = _learner(model, update)
    training = Training(learner, lambda: _losses(model, []), learning_rate=0.01)
    training.to(5)
    assert model.digest(fresh=True) == before
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    (name,) = learner.updates()
    changed = learner.learnt()[name](model.oriented(name))
    torch.testing.assert_close(
        changed, model.oriented(name) + learner.updates()[name].change(model.oriented(name))
    )
    assert isinstance(learner.updates()[name], LowRank) == (update == "lora")
    first = training.losses[5]
    training.to(10)
    assert training.losses[10] < first


def test_after_a_divergence_training_begins_again() -> None:
    model = tiny_handle("llama")
    learner, bad = _learner(model, "full"), [3]
    training = Training(learner, lambda: _losses(model, bad), learning_rate=0.01)
    with pytest.raises(EditError, match=r"training diverged after 3 steps at a rate of 0\.01"):
        training.to(5)
    training.to(5)
    straight = _learner(model, "full")
    Training(straight, lambda: _losses(model, []), learning_rate=0.01).to(5)
    (name,) = learner.updates()
    torch.testing.assert_close(learner.updates()[name].parts, straight.updates()[name].parts)


def test_a_guard_ends_training_for_all_later_stops() -> None:
    model = tiny_handle("llama")
    learner = _learner(model, "full")
    training = Training(learner, lambda: _losses(model, []), learning_rate=0.01)
    looked: list[int] = []

    def guard() -> str | None:
        looked.append(len(training.losses))
        return "enough" if len(looked) == 2 else None

    checkpoints = Checkpoints(training, learner, [2, 4, 6], guard)
    (last,) = checkpoints.at(6).values()
    assert checkpoints.ended == "after 4 steps: enough"
    assert sorted(training.losses) == [2, 4]
    (fourth,) = checkpoints.at(4).values()
    torch.testing.assert_close(fourth.parts, last.parts)


def test_blocks_are_as_they_were_after_saving_memory() -> None:
    model = tiny_handle("llama")
    with less_memory(model):
        assert all("forward" in vars(block) for block in model.blocks())
    assert not any("forward" in vars(block) for block in model.blocks())
