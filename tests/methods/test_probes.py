"""Probes and telling tokens on data whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.probes import fit_probe, telling_tokens


def states(seed: int = 0, shift: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    planted = torch.nn.functional.normalize(torch.randn(10, generator=generator), dim=0)
    first, second = torch.randn(2, 40, 10, generator=generator)
    first = first + shift * planted
    first[:, 7] = second[:, 7] = 4.0  # a dimension that never changes
    return first, second, planted.double()


def test_a_probe_finds_the_planted_direction_and_orders_pairs_it_has_not_seen() -> None:
    first, second, planted = states()
    probe = fit_probe(first, second, 0.1)
    assert float(probe.direction.norm()) == pytest.approx(1)
    assert float(probe.direction @ planted) > 0.9
    assert probe.accuracy is not None
    assert probe.accuracy > 0.8


def test_where_nothing_is_planted_held_out_pairs_are_ordered_by_chance() -> None:
    first, second, _ = states(shift=0.0)
    accuracy = fit_probe(first, second, 0.1).accuracy
    assert accuracy is not None
    assert 0.2 < accuracy < 0.8
    assert fit_probe(first[:3], second[:3], 0.1).accuracy is None


def test_equal_states_and_states_that_are_not_numbers_are_refused() -> None:
    first, second, _ = states()
    with pytest.raises(EditError, match="same states"):
        fit_probe(torch.ones(5, 4), torch.ones(5, 4), 0.1)
    with pytest.raises(EditError, match="NaN"):
        fit_probe(first, second * float("inf"), 0.1)


def test_tokens_of_one_kind_of_text_come_before_rarer_ones_and_common_ones_tell_nothing() -> None:
    toxic = [[1, 9, 5], [1, 9, 6, 6, 6, 6], [1, 9], [1, 7]]
    neutral = [[1, 2], [1, 2, 5], [1, 3], [1, 8]]
    telling, other = telling_tokens(toxic, neutral, 2)
    assert telling[0] == 9
    assert telling[1] in (6, 7)
    assert other[0] == 2
    everything = {token for some in telling_tokens(toxic, neutral, 99) for token in some}
    assert not everything & {1, 5}
