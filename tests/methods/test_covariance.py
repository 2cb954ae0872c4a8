"""Moments are those of all rows, however they came."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.methods.covariance import Moments
from tests.fixtures import moments


def rows(n: int, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) + torch.arange(width)


def test_moments_are_the_means_over_rows() -> None:
    x = rows(40)
    found = moments(x)
    assert found.count == 40
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.second, x.double().T @ x.double() / 40, rtol=1e-6, atol=1e-6)


def test_they_are_uncentred() -> None:
    centred = torch.cov(rows(40).double().T, correction=0)
    assert (moments(rows(40)).second - centred).abs().max() > 1


@pytest.mark.parametrize("sizes", [[1, 39], [20, 0, 20], [13, 13, 14]])
def test_batches_play_no_part(sizes: list[int]) -> None:
    x = rows(40)
    whole, parts = moments(x), moments(*x.split(sizes))
    assert parts.count == whole.count
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.second, whole.second, rtol=1e-6, atol=1e-6)


def test_leading_dimensions_are_rows() -> None:
    x = rows(40)
    torch.testing.assert_close(moments(x.reshape(4, 10, 5)).second, moments(x).second)


def test_bfloat16_rows_are_summed_in_more_than_bfloat16() -> None:
    # In bfloat16, 256 + 1 is 256: a sum of ones would stop there.
    found = moments(torch.ones(1000, 2, dtype=torch.bfloat16))
    assert found.mean.tolist() == [1.0, 1.0]
    assert found.second.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_nothing_is_held_that_would_keep_a_graph_alive() -> None:
    x = rows(4).requires_grad_()
    found = moments(x)
    assert not found.mean.requires_grad
    assert not found.second.requires_grad


def test_before_the_first_row_all_is_zero() -> None:
    empty = Moments(3)
    assert empty.count == 0
    assert empty.mean.tolist() == [0.0] * 3
    assert not empty.second.any()


def test_balanced_parts_weigh_the_same_however_long() -> None:
    few, many = rows(3, seed=1), rows(3000, seed=2) * 2
    mixed = Moments.balanced([moments(few), moments(many)])
    torch.testing.assert_close(mixed.mean, (moments(few).mean + moments(many).mean) / 2)
    torch.testing.assert_close(mixed.second, (moments(few).second + moments(many).second) / 2)
    # The control: pooled, the longer one would decide.
    pooled = moments(few, many)
    assert (pooled.mean - mixed.mean).abs().max() > 0.5


def test_balancing_leaves_out_what_is_empty() -> None:
    x = rows(7)
    mixed = Moments.balanced([Moments(5), moments(x), Moments(5)])
    torch.testing.assert_close(mixed.mean, moments(x).mean)
    assert Moments.balanced([Moments(5)]).second.abs().max() == 0


def test_rows_that_wait_are_counted_whenever_one_looks() -> None:
    x = rows(2600)
    found = Moments(5)
    for start in range(0, 2600, 100):
        found.update(x[start : start + 100])
        seen = x[: start + 100].double()
        torch.testing.assert_close(found.mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    unseen = moments(*x.split(100))
    torch.testing.assert_close(unseen.second, found.second, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unseen.mean, found.mean, rtol=1e-5, atol=1e-5)
