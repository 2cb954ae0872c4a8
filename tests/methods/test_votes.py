"""Votes counted by hand: thresholds, ties, kinds taking turns, texts that abstain."""

from __future__ import annotations

import pytest
import torch

from safeedit.errors import UsageError
from safeedit.methods.votes import rank


def test_neurons_with_most_votes_come_first() -> None:
    scores = torch.tensor([[9.0, 5.0, 0.1], [0.1, 1.0, 0.0], [0.0, 1.0, 0.9]])
    found = rank(scores, threshold=0.5)
    assert found.votes.tolist() == [1, 3, 1]
    assert found.order.tolist() == [1, 0, 2], "one loud text does not outvote three"


def test_a_vote_needs_its_share_of_the_texts_own_greatest() -> None:
    scores = torch.tensor([[10.0, 5.0, 4.9], [0.10, 0.05, 0.049]])
    found = rank(scores, threshold=0.5)
    assert found.votes.tolist() == [2, 2, 0]
    assert found.order.tolist() == [0, 1]
    assert rank(scores, threshold=0.48).votes.tolist() == [2, 2, 2]


def test_ties_go_to_the_greater_sum_of_shares_and_then_to_the_lower_number() -> None:
    scores = torch.tensor([[1.0, 0.6, 0.8, 0.6]])
    assert rank(scores, threshold=0.5).order.tolist() == [0, 2, 1, 3]


def test_the_greatest_votes_even_at_a_threshold_of_one() -> None:
    scores = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) + 0.1
    assert rank(scores, threshold=1.0).votes.sum() == 40


def test_negative_attributions_get_no_vote_and_a_text_without_others_abstains() -> None:
    scores = torch.tensor([[-9.0, 1.0], [-1.0, -2.0], [0.0, 0.0]])
    found = rank(scores, threshold=0.01)
    assert found.order.tolist() == [1]
    assert found.abstained == 2


def test_kinds_take_turns_so_that_many_do_not_outvote_few() -> None:
    phones, name = [[1.0, 0.9, 0.8, 0.0, 0.0]] * 9, [[0.0, 0.0, 0.0, 0.9, 1.0]]
    scores = torch.tensor(phones + name)
    kinds = ["phone"] * 9 + ["name"]
    assert rank(scores, threshold=0.5, kinds=kinds).order.tolist() == [0, 4, 1, 3, 2]
    assert rank(scores, threshold=0.5).order.tolist() == [0, 1, 2, 4, 3], "the control: no kinds"


def test_a_neuron_two_kinds_name_costs_the_second_no_turn() -> None:
    scores = torch.tensor([[1.0, 0.9, 0.0, 0.0], [1.0, 0.0, 0.9, 0.8]])
    found = rank(scores, threshold=0.5, kinds=["a", "b"])
    assert found.order.tolist() == [0, 2, 1, 3]
    assert sorted(found.order.tolist()) == [0, 1, 2, 3], "each once"


def test_agreement_is_the_share_of_the_top_that_both_name() -> None:
    one = rank(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), threshold=0.1)
    other = rank(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), threshold=0.1)
    assert one.agreement(other, 1) == 1
    assert one.agreement(other, 2) == 0.5
    assert one.agreement(other, 4) == 1
    nobody = rank(-torch.ones(1, 4), threshold=0.1)
    assert nobody.agreement(nobody, 2) == 1
    assert one.agreement(nobody, 2) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(UsageError, match="NaN"):
        rank(torch.tensor([[1.0, bad]]), threshold=0.1)


def test_kinds_must_go_with_the_texts() -> None:
    with pytest.raises(UsageError, match="2 kinds"):
        rank(torch.ones(3, 2), threshold=0.1, kinds=["a", "b"])
