"""The keyed solver against textbook formulas and against what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.constrained_least_squares import (
    Change,
    InputMetric,
    NullSpace,
    Weighted,
    constrained_least_squares,
    same_keys,
)

M, D, N1, N0 = 24, 10, 5, 7


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def second() -> Tensor:
    """Of inputs whose directions are used very unequally, as in a model."""
    rows = _random(400, M, seed=1) * torch.logspace(1, -1, M, dtype=torch.float64)
    turned = rows @ torch.linalg.qr(_random(M, M, seed=2))[0]
    return turned.T @ turned / len(turned)


@pytest.fixture
def keys() -> Tensor:
    return _random(M, N1, seed=3)


@pytest.fixture
def shifts() -> Tensor:
    return _random(D, N1, seed=4)


@pytest.fixture
def preserve() -> Tensor:
    return _random(M, N0, seed=5)


def _dense(change: Change) -> Tensor:
    return change.left @ change.right


def _floored(second: Tensor, floor: float) -> Tensor:
    return second + floor * second.trace() / M * torch.eye(M, dtype=torch.float64)


def test_with_a_ridge_it_is_memits_closed_form(
    second: Tensor, keys: Tensor, shifts: Tensor, preserve: Tensor
) -> None:
    ridge, hold, floor = 3.0, 2.0, 0.01
    metric = Weighted.of(second, floor)
    found = constrained_least_squares(
        keys, shifts, metric, ridge=ridge, preserve=preserve, preserve_weight=hold
    )
    system = ridge * _floored(second, floor) + keys @ keys.T + hold * preserve @ preserve.T
    torch.testing.assert_close(_dense(found), shifts @ keys.T @ torch.linalg.inv(system))


def test_without_a_ridge_one_key_is_romes_rank_one_update(second: Tensor) -> None:
    key, shift = _random(M, 1, seed=6), _random(D, 1, seed=7)
    found = constrained_least_squares(key, shift, Weighted.of(second, 0.01), ridge=0)
    solved = torch.linalg.solve(_floored(second, 0.01), key)
    torch.testing.assert_close(_dense(found), shift @ solved.T / (key.T @ solved))
    assert found.left.shape[1] == 1


def test_in_the_null_space_it_is_alphaedits_closed_form(
    second: Tensor, keys: Tensor, shifts: Tensor, preserve: Tensor
) -> None:
    metric, ridge, hold = NullSpace.of(second, 0.6), 0.5, 2.0
    found = constrained_least_squares(
        keys, shifts, metric, ridge=ridge, preserve=preserve, preserve_weight=hold
    )
    p = metric.basis @ metric.basis.T
    system = keys @ keys.T @ p + hold * preserve @ preserve.T @ p
    system += ridge * metric.scale * torch.eye(M, dtype=torch.float64)
    torch.testing.assert_close(_dense(found), shifts @ keys.T @ p @ torch.linalg.inv(system))


@pytest.mark.parametrize("kind", ["weighted", "null space"])
def test_keys_move_as_predicted_and_preserved_ones_not_at_all(
    kind: str, second: Tensor, keys: Tensor, shifts: Tensor, preserve: Tensor
) -> None:
    metric: InputMetric = Weighted.of(second) if kind == "weighted" else NullSpace.of(second, 0.5)
    found = constrained_least_squares(keys, shifts, metric, ridge=0, preserve=preserve)
    weight = _random(D, M, seed=8)
    edited = weight + _dense(found)
    torch.testing.assert_close(edited @ keys, weight @ keys + shifts)
    torch.testing.assert_close(edited @ preserve, weight @ preserve, atol=1e-12, rtol=0)
    combined = preserve @ _random(N0, 3, seed=9)
    torch.testing.assert_close(edited @ combined, weight @ combined, atol=1e-11, rtol=0)
    torch.testing.assert_close(found.reached, torch.ones(N1, dtype=torch.float64))
    assert found.missed < 1e-9
    assert found.independent == N1


def test_no_other_change_that_does_the_same_is_felt_less(
    second: Tensor, keys: Tensor, shifts: Tensor, preserve: Tensor
) -> None:
    found = constrained_least_squares(
        keys, shifts, Weighted.of(second, 0.0), ridge=0, preserve=preserve
    )
    fixed = torch.cat([keys, preserve], 1)
    off = torch.eye(M, dtype=torch.float64) - fixed @ torch.linalg.pinv(fixed)
    for seed in range(5):
        other = _dense(found) + 0.1 * _random(D, M, seed=20 + seed) @ off
        torch.testing.assert_close(other @ keys, shifts)
        assert float(((other @ second) * other).sum()) > found.felt(second)


def test_what_ordinary_inputs_feel_is_told(second: Tensor, keys: Tensor, shifts: Tensor) -> None:
    found = constrained_least_squares(keys, shifts, Weighted.of(second), ridge=1.0)
    root = torch.linalg.cholesky(second)
    assert found.felt(second) == pytest.approx(float((_dense(found) @ root).square().sum()))
    weight = _random(D, M, seed=8)
    whole = float((weight @ root).square().sum())
    assert found.share_of(weight, second) == pytest.approx(found.felt(second) / whole)
    assert found.share_on(weight, keys) == pytest.approx(
        float((_dense(found) @ keys).square().sum() / (weight @ keys).square().sum())
    )


def test_energy_kept_is_energy_asked(second: Tensor, keys: Tensor, shifts: Tensor) -> None:
    values = torch.linalg.eigvalsh(second).flip(0)
    for energy in (0.3, 0.9, 0.99):
        metric = NullSpace.of(second, energy)
        protected = M - metric.basis.shape[1]
        assert float(values[:protected].sum() / values.sum()) >= energy
        assert float(values[: protected - 1].sum() / values.sum()) < energy, "no more than needed"
        change = _dense(constrained_least_squares(keys, shifts, metric, ridge=0.1))
        leading = torch.linalg.eigh(second)[1][:, M - protected :]
        torch.testing.assert_close(change @ leading, torch.zeros(D, protected).double())


def test_more_ridge_reaches_less_and_is_felt_less(
    second: Tensor, keys: Tensor, shifts: Tensor
) -> None:
    metric = Weighted.of(second)
    found = [
        constrained_least_squares(keys, shifts, metric, ridge=ridge) for ridge in (0, 1, 10, 100)
    ]
    missed, felt = [c.missed for c in found], [c.felt(second) for c in found]
    assert missed == sorted(missed)
    assert felt == sorted(felt, reverse=True)
    assert missed[0] < 1e-9 < missed[1]
    key, shift = keys[:, :1], shifts[:, :1]
    (energy,) = metric.coordinates(key).square().sum(0)
    (reached,) = constrained_least_squares(key, shift, metric, ridge=10).reached
    assert float(reached) == pytest.approx(float(energy / (energy + 10)))


def test_the_limits_join(second: Tensor, keys: Tensor, shifts: Tensor, preserve: Tensor) -> None:
    metric = Weighted.of(second)
    exact = constrained_least_squares(
        keys, shifts, metric, ridge=0.5, preserve=preserve, preserve_weight=math.inf
    )
    nearly = constrained_least_squares(
        keys, shifts, metric, ridge=0.5, preserve=preserve, preserve_weight=1e9
    )
    torch.testing.assert_close(_dense(nearly), _dense(exact), atol=1e-6, rtol=1e-6)
    free = constrained_least_squares(
        keys, shifts, metric, ridge=0.5, preserve=preserve, preserve_weight=0
    )
    torch.testing.assert_close(
        _dense(free), _dense(constrained_least_squares(keys, shifts, metric, ridge=0.5))
    )


def test_fp32_input_is_solved_in_float64(
    second: Tensor, keys: Tensor, shifts: Tensor, preserve: Tensor
) -> None:
    exact = constrained_least_squares(
        keys.float().double(), shifts.float().double(), Weighted.of(second), ridge=0,
        preserve=preserve.float().double(),
    )  # fmt: skip
    found = constrained_least_squares(
        keys.float(), shifts.float(), Weighted.of(second), ridge=0, preserve=preserve.float()
    )
    assert found.left.dtype == torch.float64
    torch.testing.assert_close(_dense(found), _dense(exact))


def test_many_keys_stay_low_rank_and_never_exceed_the_output(second: Tensor) -> None:
    keys, shifts = _random(M, 18, seed=1), _random(D, 18, seed=2)
    found = constrained_least_squares(keys, shifts, Weighted.of(second), ridge=0)
    assert found.left.shape[1] == D < 18
    torch.testing.assert_close(_dense(found) @ keys, shifts)


def test_more_keys_than_dimensions_are_met_as_well_as_can_be(second: Tensor) -> None:
    keys, shifts = _random(M, 2 * M, seed=1), _random(D, 2 * M, seed=2)
    found = constrained_least_squares(keys, shifts, Weighted.of(second), ridge=0)
    assert found.independent == M
    best = torch.linalg.lstsq(keys.T, shifts.T).solution.T
    torch.testing.assert_close(_dense(found), best)
    miss = float((best @ keys - shifts).norm() / shifts.norm())
    assert found.missed == pytest.approx(miss)
    assert miss > 0.3


def test_dependent_keys_that_agree_are_reached(second: Tensor) -> None:
    keys, shifts = _random(M, 3, seed=1), _random(D, 3, seed=2)
    mix = _random(3, 2, seed=3)
    both = torch.cat([keys, keys @ mix], 1), torch.cat([shifts, shifts @ mix], 1)
    found = constrained_least_squares(*both, Weighted.of(second), ridge=0)
    assert found.independent == 3
    assert found.missed < 1e-8
    assert found.condition < 1e9


def test_keys_in_the_span_of_what_stays_cannot_move(second: Tensor, preserve: Tensor) -> None:
    inside = preserve @ _random(N0, 2, seed=1)
    keys = torch.cat([inside, _random(M, 1, seed=2)], 1)
    found = constrained_least_squares(
        keys, _random(D, 3, seed=3), Weighted.of(second), ridge=0, preserve=preserve
    )
    assert found.independent == 1
    torch.testing.assert_close(found.reached, torch.tensor([0.0, 0.0, 1.0]).double())


def test_one_key_that_is_to_move_in_two_ways_is_refused(
    second: Tensor, keys: Tensor, shifts: Tensor
) -> None:
    keys = torch.cat([keys, keys[:, :1]], 1)
    agreed = torch.cat([shifts, shifts[:, :1]], 1)
    assert constrained_least_squares(keys, agreed, Weighted.of(second), ridge=0).missed < 1e-8
    against = torch.cat([shifts, -shifts[:, :1]], 1)
    with pytest.raises(EditError, match="1 of 6 keys are the same as another"):
        constrained_least_squares(keys, against, Weighted.of(second), ridge=1.0)


def test_same_keys_are_found_by_relative_distance() -> None:
    keys = _random(M, 3, seed=1)
    near = keys[:, 1:2] * (1 + 1e-5)
    both = torch.cat([keys, near], 1)
    assert same_keys(both, 1e-4).tolist() == [0, 1, 2, 1]
    assert same_keys(both, 1e-6).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("key_shape", "shift_shape", "preserve_shape"),
    [((M, 2), (D, 3), (M, 1)), ((M, 0), (D, 0), (M, 1)), ((M + 1, 2), (D, 2), (M, 1)),
     ((M, 2), (D, 2), (M - 1, 1))],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(
    second: Tensor,
    key_shape: tuple[int, int],
    shift_shape: tuple[int, int],
    preserve_shape: tuple[int, int],
) -> None:
    with pytest.raises(EditError, match="don't fit together"):
        constrained_least_squares(
            _random(*key_shape), _random(*shift_shape), Weighted.of(second),
            ridge=0, preserve=_random(*preserve_shape),
        )  # fmt: skip


def test_numbers_that_are_none_are_refused(second: Tensor, keys: Tensor, shifts: Tensor) -> None:
    broken = shifts.clone()
    broken[0, 0] = math.nan
    with pytest.raises(EditError, match="not finite"):
        constrained_least_squares(keys, broken, Weighted.of(second), ridge=0)
    with pytest.raises(EditError, match="second moment of ordinary text is not finite"):
        Weighted.of(second * math.inf)


def test_a_metric_needs_something_to_go_by(second: Tensor) -> None:
    flat = second.clone()
    flat[:, 0] = flat[0] = 0
    with pytest.raises(EditError, match="no energy"):
        Weighted.of(flat, floor=0.0)
    assert Weighted.of(flat, floor=0.01).width == M
    with pytest.raises(EditError, match="no null space"):
        NullSpace.of(torch.eye(M), 0.999)
