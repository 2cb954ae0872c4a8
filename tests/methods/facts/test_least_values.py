"""The smallest shifts after which answers are unlikely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.facts import least_values as finding
from safeedit.methods.facts import values as learning
from safeedit.methods.facts.keys import subject_spot
from safeedit.methods.facts.least_values import bounded, least_values, nearest_point
from safeedit.methods.facts.objectives import (
    FactObjective,
    KeepDistribution,
    ObjectivePrompt,
    SuppressTokens,
)
from safeedit.methods.facts.passes import Passes
from safeedit.methods.facts.values import Values, learn_values
from safeedit.model.handle import ModelHandle
from tests.editors.toy import FACTS, WORDINGS, taught
from tests.tiny_models import tiny_handle

pytestmark = pytest.mark.trains

STOP = 0.1
AT_THE_END = ("I think of {}", "The capital of {}")
NAMES = ("France", "Italy", "Denmark", "Rome", "Paris", "Water")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes in the weights' own dtype."""
    for module in (finding, learning):
        monkeypatch.setattr(module, "Passes", partial(Passes, exact=True))


@pytest.fixture(scope="module")
def deep() -> Iterator[ModelHandle]:
    """Eight blocks between what is shifted and what is read."""
    handle = tiny_handle("llama", num_hidden_layers=8)
    before = handle.digest(fresh=True)
    yield handle
    assert handle.digest(fresh=True) == before


def _likeliest(
    handle: ModelHandle, floor: float, rank: int = 0, wordings: Sequence[str] = WORDINGS[:2]
) -> list[FactObjective]:
    """A unit per name, in two wordings; what the model would say next is to be avoided."""
    units = []
    for name in NAMES:
        rows = []
        for wording in wordings:
            (ids,) = handle.engine.encode([wording.format(name)], "plain")
            token = int(handle.engine.next_token_log_probs([ids])[0].argmax())
            spot = subject_spot(handle, ids, name)
            assert spot is not None
            rows.append(ObjectivePrompt(spot, SuppressTokens((token,), floor, rank)))
        units.append(FactObjective(tuple(rows)))
    return units


def _aim(row: ObjectivePrompt) -> SuppressTokens:
    assert isinstance(row.aim, SuppressTokens)
    return row.aim


def _least(
    handle: ModelHandle, units: list[FactObjective], layer: int = 0, **changed: Any
) -> Values:
    given: dict[str, Any] = {"steps": 20, "max_norm": 6.0, "stop": STOP}
    return least_values(handle, layer, units, **{**given, **changed})


def _after(handle: ModelHandle, row: ObjectivePrompt, shift: Tensor, layer: int = 0) -> Tensor:
    """``(vocab,)`` log-probabilities of what follows, by the whole model."""

    def move(site: Any, activation: Tensor) -> Tensor:
        moved = activation.clone()
        moved[:, row.spot.position] += shift.to(activation.dtype)
        return moved

    with handle.intercepted(handle.sites("mlp_out", [layer]), move, "output"):
        logits: Tensor = handle.model(torch.tensor([row.ids])).logits[0, -1]
    return logits.float().log_softmax(-1)


# Where a prompt ends with its subject and the last MLP is shifted, a norm and the unembedding are
# all that follows: as good as linear, whatever the weights.


def _less_by(handle: ModelHandle, nats: float) -> list[FactObjective]:
    """Each of the likeliest is to lose so much of what it has."""

    def lowered(row: ObjectivePrompt) -> ObjectivePrompt:
        now = float(handle.engine.next_token_log_probs([row.ids])[0][_aim(row).tokens[0]])
        return replace(row, aim=replace(_aim(row), floor=now - nats))

    return [
        FactObjective(tuple(lowered(row) for row in unit.rows))
        for unit in _likeliest(handle, -1.0, wordings=AT_THE_END)
    ]


def _shortest(handle: ModelHandle, unit: FactObjective, begin: Tensor, layer: int) -> float:
    """Length of the least shift that a general solver finds."""

    def spare(shift: np.ndarray, row: ObjectivePrompt) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(shift).float().requires_grad_()
        left = _aim(row).floor - _after(handle, row, leaf, layer)[_aim(row).tokens[0]]
        (slope,) = torch.autograd.grad(left, leaf)
        return float(left.detach()), slope.double().numpy()

    found = minimize(
        lambda shift: 0.5 * shift @ shift,
        begin.double().numpy(),
        jac=lambda shift: shift,
        constraints=[
            {
                "type": "ineq",
                "fun": lambda shift, row: spare(shift, row)[0],
                "jac": lambda shift, row: spare(shift, row)[1],
                "args": (row,),
            }
            for row in unit.rows
        ],
        method="SLSQP",
        options={"maxiter": 100, "ftol": 1e-8},
    )
    return float(np.linalg.norm(found.x))


def test_all_are_met_in_a_fraction_of_adams_steps_by_shifts_hardly_over_the_least(
    exact: None,
) -> None:
    handle = tiny_handle("llama")
    last = handle.n_layers - 1
    units = _less_by(handle, 2.0)
    adam = learn_values(
        handle, last, units, steps=200, learning_rate=0.1, max_norm=6.0, keep_weight=0.0,
        decay=0.05, stop=STOP,
    )  # fmt: skip
    least = _least(handle, units, last)
    assert float(least.losses.max()) <= STOP
    assert float(adam.losses.max()) <= STOP
    # One or two steps each, where Adam takes 12 to 50.
    assert float(least.steps.double().mean()) < 0.3 * float(adam.steps.double().mean())
    lengths = [found.shifts.norm(dim=1) for found in (least, adam)]
    assert float(lengths[0].mean()) <= float(lengths[1].mean())
    torch.testing.assert_close(least.outputs, adam.outputs)
    for unit, shift in zip(units, least.shifts, strict=True):
        for row in unit.rows:
            after = float(_after(handle, row, shift, last)[_aim(row).tokens[0]])
            assert after < _aim(row).floor + 2 * STOP
        assert float(shift.norm()) < 1.2 * _shortest(handle, unit, shift, last)


def test_many_others_come_before_it_where_a_rank_is_asked(exact: None) -> None:
    handle, rank = tiny_handle("llama"), 6
    last = handle.n_layers - 1

    def lead(units: list[FactObjective], found: Values) -> list[float]:
        """Nats by which a unit's token is over the other of the rank asked, in its worst row; that
        other is one place later among all, where the token is before it."""
        return [
            max(
                float(now[_aim(row).tokens[0]] - now.topk(rank + 1).values[-1])
                for row in unit.rows
                for now in [_after(handle, row, shift, last)]
            )
            for unit, shift in zip(units, found.shifts, strict=True)
        ]

    floors = _likeliest(handle, -1.0, wordings=AT_THE_END)
    assert max(lead(floors, _least(handle, floors, last))) > STOP + 0.01
    ranks = _likeliest(handle, -1.0, rank, wordings=AT_THE_END)
    found = _least(handle, ranks, last)
    assert float(found.losses.max()) <= STOP
    assert max(lead(ranks, found)) < STOP + 0.01


def test_known_answers_are_not_told_any_more() -> None:
    toy = taught()
    units = []
    for name in FACTS:
        rows: list[ObjectivePrompt] = []
        for wording in WORDINGS[:3]:
            (ids,) = toy.engine.encode([wording.format(name)], "chat")
            spot = subject_spot(toy, ids, name)
            assert spot is not None
            token = toy.engine.continuation(FACTS[name], "chat")[0]
            rows.append(ObjectivePrompt(spot, SuppressTokens((token,), -3.0)))
        units.append(FactObjective((*rows, ObjectivePrompt(rows[0].spot, KeepDistribution()))))
    found = _least(toy, units)
    assert float(found.losses.max()) <= STOP
    for unit, shift in zip(units, found.shifts, strict=True):
        for row in unit.rows[:3]:
            (token,) = _aim(row).tokens
            assert float(_after(toy, row, torch.zeros(()))[token]) > -0.1
            assert float(_after(toy, row, shift)[token]) < -2.8


def test_what_is_out_of_reach_is_come_near_to(deep: ModelHandle) -> None:
    found = _least(deep, _likeliest(deep, -30.0), steps=8, max_norm=0.5)
    start = _least(deep, _likeliest(deep, -30.0), steps=0)
    assert not start.shifts.any()
    assert bool((found.losses > STOP).all())
    assert bool((found.losses < start.losses).all())
    assert bool((found.shifts.norm(dim=1) <= 0.5001 * found.outputs).all())
    assert found.steps.tolist() == [8] * len(NAMES)


def test_what_is_met_needs_no_shift(deep: ModelHandle) -> None:
    found = _least(deep, _likeliest(deep, -1e-6))
    assert not found.shifts.any()
    assert found.steps.tolist() == [0] * len(NAMES)


def test_half_precision_will_do() -> None:
    handle = tiny_handle("llama", dtype=torch.bfloat16)
    found = _least(handle, _likeliest(handle, -3.0))
    assert float(found.losses.median()) <= STOP
    assert found.shifts.dtype == torch.float32


def test_values_that_are_no_numbers_are_an_error() -> None:
    handle = tiny_handle("llama")
    units = _likeliest(handle, -3.0)
    with torch.no_grad():
        handle.tensor(handle.sites("mlp_out", [2])[0].weight).fill_(torch.nan)
    with pytest.raises(EditError, match="no number"):
        _least(handle, units)


def _brute(shift: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """The same by a general solver."""
    rows, bounds = slopes.numpy(), (slopes @ shift - values).numpy()
    found = minimize(
        lambda y: 0.5 * y @ y,
        torch.zeros(len(shift), dtype=torch.float64).numpy(),
        jac=lambda y: y,
        constraints={"type": "ineq", "fun": lambda y: bounds - rows @ y, "jac": lambda y: -rows},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert found.success
    return torch.from_numpy(found.x)


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_point_is_the_nearest(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    count = 1 + seed % 6
    slopes = torch.randn(count, 8, generator=source, dtype=torch.float64)
    values = torch.randn(count, generator=source, dtype=torch.float64) * 2
    shift = torch.randn(8, generator=source, dtype=torch.float64)
    if seed % 2:  # one of them twice, and one that follows from another
        slopes = torch.cat([slopes, slopes[:1], slopes[:1]])
        values = torch.cat([values, values[:1], values[:1] - 1])
    point = nearest_point(shift, values, slopes)
    assert float((values + slopes @ (point - shift)).max()) < 1e-4
    torch.testing.assert_close(point, _brute(shift, values, slopes), atol=1e-4, rtol=1e-4)


def test_the_nearest_point_in_odd_cases() -> None:
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    slopes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # Zero meets both.
    assert float(nearest_point(shift, torch.tensor([-5.0, 1.0]).double(), slopes).norm()) < 1e-9
    # No slope at all, and one beside a steep one.
    flat = torch.zeros(1, 2, dtype=torch.float64)
    assert not nearest_point(shift, torch.ones(1).double(), flat).any()
    point = nearest_point(shift, torch.tensor([5.0, 1.0]).double(), torch.cat([slopes[:1], flat]))
    torch.testing.assert_close(point, torch.tensor([-2.0, 0.0]).double(), atol=1e-4, rtol=1e-4)
    # What contradicts itself still has an answer.
    against = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert bool(nearest_point(shift, torch.tensor([5.0, 5.0]).double(), against).isfinite().all())


def test_steps_keep_to_their_bounds() -> None:
    start, aim = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 4.0])
    one = torch.tensor(1.0)
    torch.testing.assert_close(bounded(start, aim, one, 9 * one), torch.tensor([1.0, 1.0]))
    assert float(bounded(start, aim, 9 * one, one).norm()) == pytest.approx(1.0)
