"""Each unlearning loss against a case worked out by hand, and what theory says of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safeedit.methods import unlearning

HALF, QUARTER = math.log(0.5), math.log(0.25)
NOW = torch.tensor([HALF, QUARTER])


def near(value: Tensor, expected: float) -> None:
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_gradient_ascent_is_the_mean_log_probability() -> None:
    near(unlearning.gradient_ascent(NOW), (HALF + QUARTER) / 2)


def test_weights_are_probabilities_and_take_no_gradient() -> None:
    now = NOW.clone().requires_grad_(True)
    loss = unlearning.weighted_ascent(now, 1.0)
    near(loss, (0.5 * HALF + 0.25 * QUARTER) / 2)
    loss.backward()
    assert now.grad is not None
    torch.testing.assert_close(now.grad, torch.tensor([0.25, 0.125]))


def test_weights_to_the_power_of_nothing_are_gradient_ascent() -> None:
    near(unlearning.weighted_ascent(NOW, 0.0), float(unlearning.gradient_ascent(NOW)))


def test_saturation_and_importance_leave_certain_and_impossible_tokens_alone() -> None:
    near(
        unlearning.saturation_importance(NOW, 2.0),
        (0.25 * 0.5 * HALF + 0.0625 * 0.75 * QUARTER) / 2,
    )
    near(unlearning.saturation_importance(torch.tensor([0.0]), 5.0), 0.0)


def test_negative_preference_of_an_answer_twice_as_likely_as_before() -> None:
    now, base = torch.tensor([-1.0]), torch.tensor([-1.0 - math.log(2)])
    near(unlearning.negative_preference(now, base, 1.0), 2 * math.log(3))


@pytest.mark.parametrize("base", [-3.0, -1.0, -0.2])
def test_negative_preference_becomes_gradient_ascent_as_beta_goes_to_nothing(base: float) -> None:
    now = torch.tensor([-0.7, -2.0], dtype=torch.float64, requires_grad=True)
    loss = unlearning.negative_preference(now, torch.tensor([base, base]).double(), 1e-7)
    near(loss.detach() - 2 / 1e-7 * math.log(2), float((now.detach() - base).mean()))
    loss.backward()
    assert now.grad is not None
    torch.testing.assert_close(now.grad, torch.full((2,), 0.5).double(), rtol=1e-3, atol=0)


def test_negative_preference_lets_go_of_what_is_unlikely_already() -> None:
    def slope(now: float) -> float:
        given = torch.tensor([now], requires_grad=True)
        unlearning.negative_preference(given, torch.tensor([-1.0]), 1.0).backward()
        assert given.grad is not None
        return float(given.grad)

    assert slope(-1.0) == pytest.approx(1.0)
    assert slope(-20.0) < 1e-6


def test_the_simple_form_needs_no_base_and_a_mean() -> None:
    sums, means = unlearning.per_answer(torch.tensor([-1.0, -3.0, -2.0]), [2, 1])
    torch.testing.assert_close(sums, torch.tensor([-4.0, -2.0]))
    torch.testing.assert_close(means, torch.tensor([-2.0, -2.0]))
    sigmoid = 1 / (1 + math.exp(-4.0))  # beta 2, mean loss 2
    near(unlearning.simple_negative_preference(means, 2.0), -math.log(sigmoid))


def test_a_preference_counts_what_is_gained_on_the_base() -> None:
    one = torch.tensor([-2.0])
    loss = unlearning.preference(one, one - math.log(3), one, one, 1.0)
    near(loss, -2 * math.log(3 / 4))
    near(unlearning.preference(one, one, one, one, 1.0), 2 * math.log(2))


def test_self_distillation_lowers_the_answers_logit_and_nothing_else() -> None:
    even = torch.full((1, 2), HALF)
    now = torch.tensor([[math.log(0.2), math.log(0.8)]])
    found = unlearning.self_distillation(even, now, torch.tensor([0]), math.log(3))
    near(found, -(0.25 * math.log(0.2) + 0.75 * math.log(0.8)))


def test_self_distillation_of_no_strength_is_least_where_the_base_is() -> None:
    base = torch.tensor([[0.3, -1.0, 0.5]]).log_softmax(-1)
    now = base.clone().requires_grad_(True)
    unlearning.self_distillation(base, now.log_softmax(-1), torch.tensor([1]), 0.0).backward()
    assert now.grad is not None
    torch.testing.assert_close(now.grad, torch.zeros(1, 3), rtol=0, atol=1e-6)


def test_jensen_shannon_of_two_coins() -> None:
    one = torch.tensor([[0.9, 0.1]]).log()
    two = torch.tensor([[0.5, 0.5]]).log()
    middle = (0.7, 0.3)
    expected = 0.5 * (0.9 * math.log(0.9 / middle[0]) + 0.1 * math.log(0.1 / middle[1])) + 0.5 * (
        0.5 * math.log(0.5 / middle[0]) + 0.5 * math.log(0.5 / middle[1])
    )
    near(unlearning.jensen_shannon(one, two), expected)
    near(unlearning.jensen_shannon(two, one), expected)
    near(unlearning.jensen_shannon(one, one), 0.0)


@pytest.mark.parametrize("probability", [1e-4, 0.3, 0.999])
def test_the_distance_from_a_certain_token_needs_only_its_probability(probability: float) -> None:
    rest = (1 - probability) / 3
    now = torch.tensor([[rest, probability, rest, rest]]).log()
    certain = torch.tensor([[1e-12, 1.0, 1e-12, 1e-12]]).log()
    near(
        unlearning.jensen_shannon_to_token(now[:, 1]),
        float(unlearning.jensen_shannon(certain, now)),
    )
    assert float(unlearning.jensen_shannon_to_token(now[:, 1])) <= math.log(2)


def test_divergence_of_two_coins() -> None:
    one, two = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    near(unlearning.divergence(one, two), 0.9 * math.log(1.8) + 0.1 * math.log(0.2))
