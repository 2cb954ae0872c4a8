"""The theorems of removing directions, on small matrices, each beside a choice that fails them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.projections import (
    Projection,
    amounts,
    contrast,
    oblique,
    orthogonal,
    outlying_dimensions,
)
from tests import fixtures

WIDTH = 12


gaussian = partial(fixtures.gaussian, dtype=torch.float64)


def uneven(seed: int = 5) -> Tensor:
    """A second moment whose directions differ widely in size."""
    basis, _ = torch.linalg.qr(gaussian(WIDTH, WIDTH, seed=seed))
    return basis @ torch.diag(torch.logspace(-2, 2, WIDTH).double()) @ basis.T


def matrix(projection: Projection, k: int) -> Tensor:
    """What the projection does to a vector."""
    return torch.eye(WIDTH).double() - projection.removers[:, :k] @ projection.readers[:, :k].T


def pairs(
    n: int = 60, shift: float = 1.0, common: float = 8.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of pairs that differ along one direction, far along another that all share."""
    shared, planted = torch.linalg.qr(gaussian(WIDTH, 2, seed=1)).Q.T
    topic = 0.3 * gaussian(n, WIDTH, seed=2)
    size = common + 2 * gaussian(2, n, 1, seed=3)
    first = topic + size[0] * shared + shift * planted + 0.05 * gaussian(n, WIDTH, seed=4)
    return first, topic + size[1] * shared, planted, shared


def test_the_planted_difference_is_the_first_direction_and_what_all_share_is_not() -> None:
    first, second, planted, shared = pairs()
    found = contrast(first, second, 3)
    assert float(found.directions[:, 0] @ planted) > 0.99, "and it points to the first kind"
    assert abs(float(found.directions[:, 0] @ shared)) < 0.2
    assert abs(float(found.centre @ shared)) > 0.99
    naive = torch.linalg.svd((first - second) / 2).Vh[0]
    assert abs(float(naive @ shared)) > 0.7, "without centring the shared direction wins"
    assert torch.allclose(found.directions.T @ found.directions, torch.eye(3).double(), atol=1e-12)
    assert bool((found.shares.diff() <= 0).all())
    assert float(found.shares.sum()) + found.centre_share <= 1 + 1e-12


def test_dimensions_apart_are_never_part_of_a_direction() -> None:
    first, second, *_ = pairs()
    for dimension in (4, 7):  # centring takes care of one alone
        first[:, dimension] += 500 + 100 * gaussian(len(first), seed=dimension)
        second[:, dimension] += 500
    apart = outlying_dimensions(torch.cat([first, second]), 20)
    assert apart.nonzero().flatten().tolist() == [4, 7]
    assert bool((contrast(first, second, 3, apart=apart).directions[[4, 7]] == 0).all())
    assert float(contrast(first, second, 3).directions[[4, 7]].abs().max()) > 0.1


def test_no_more_directions_come_back_than_the_pairs_span() -> None:
    first, second, *_ = pairs(n=2)
    assert contrast(first, second, 8).directions.shape[1] <= 2


def test_equal_pairs_and_pairs_that_are_not_numbers_are_refused() -> None:
    first, second, *_ = pairs()
    with pytest.raises(EditError, match="same states"):
        contrast(first, first, 2)
    with pytest.raises(EditError, match="NaN"):
        contrast(first * float("nan"), second, 2)


def test_an_orthogonal_projection_leaves_no_component_and_a_partial_one_the_rest() -> None:
    directions = gaussian(WIDTH, 3)  # not orthonormal
    weight, bias = gaussian(WIDTH, 7, seed=6), gaussian(WIDTH, seed=7)
    projection = orthogonal(directions)
    left, right = projection.factors(weight, amounts(2, 3))
    assert left.shape == (WIDTH, 2)
    after = weight + left @ right
    assert float((directions[:, :2].T @ after).abs().max()) < 1e-12
    assert float((directions[:, 2] @ after).abs().max()) > 0.1
    changed = bias + projection.change(bias, amounts(2, 3))
    assert float((directions[:, :2].T @ changed).abs().max()) < 1e-12
    left, right = projection.factors(weight, amounts(1, 3, strength=0.4))
    component = directions[:, 0] @ (weight + left @ right)
    assert torch.allclose(component, 0.6 * (directions[:, 0] @ weight))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_oblique_projection_swallows_its_directions_and_moves_ordinary_text_least(
    k: int,
) -> None:
    directions, second = torch.linalg.qr(gaussian(WIDTH, 3)).Q, uneven()
    after = matrix(oblique(directions, second, 0.0), k)
    assert float((after @ directions[:, :k]).abs().max()) < 1e-8, "also the first few alone"
    assert torch.allclose(after @ after, after)

    def disturbance(projector: Tensor) -> float:
        removed = torch.eye(WIDTH).double() - projector
        return float((removed @ second @ removed.T).trace())

    least = disturbance(after)
    inner = torch.linalg.inv(directions[:, :k].T @ torch.linalg.inv(second) @ directions[:, :k])
    assert least == pytest.approx(float(inner.trace()))
    orthogonally = disturbance(matrix(orthogonal(directions), k))
    assert least < 0.5 * orthogonally
    # Read through C rather than its inverse, it is moved more than by the orthogonal one.
    chosen = directions[:, :k]
    through = chosen @ torch.linalg.inv(chosen.T @ second @ chosen) @ chosen.T @ second
    if k == 1:
        assert disturbance(torch.eye(WIDTH).double() - through) > orthogonally
    for seed in range(5):  # any other map that swallows the directions
        other = gaussian(WIDTH, k, seed=20 + seed)
        other = chosen @ torch.linalg.inv(other.T @ chosen) @ other.T
        assert disturbance(torch.eye(WIDTH).double() - other) > least


def test_a_great_ridge_makes_the_oblique_projection_orthogonal() -> None:
    directions = torch.linalg.qr(gaussian(WIDTH, 2)).Q
    near = matrix(oblique(directions, uneven(), 1e9), 2)
    assert torch.allclose(near, matrix(orthogonal(directions), 2), atol=1e-6)
    with pytest.raises(EditError, match="give more prose"):
        oblique(directions, torch.zeros(WIDTH, WIDTH), 0.1)


def test_a_dose_counts_directions_and_a_fraction_takes_part_of_the_next() -> None:
    assert amounts(2.25, 4).tolist() == [1, 1, 0.25, 0]
    assert amounts(1, 2, strength=0.5).tolist() == [0.5, 0]
    assert amounts(9, 2).tolist() == [1, 1]


def test_where_the_two_kinds_differ_much_the_centre_of_the_first_hides_the_difference() -> None:
    first, second, planted, _ = pairs(shift=30.0)
    assert float(contrast(first, second, 1).directions[:, 0] @ planted) > 0.9
    published = contrast(first, second, 1, centre=first)
    assert abs(float(published.centre @ planted)) > 0.9
    assert abs(float(published.directions[:, 0] @ planted)) < 0.5
