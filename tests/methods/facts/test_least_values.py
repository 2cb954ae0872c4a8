"""The smallest shifts after which answers are unlikely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.facts import least_values as finding
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
NAMES = ("France", "Italy", "Denmark", "Rome", "Paris", "Water")


@pytest.fixture(scope="module")
def deep() -> Iterator[ModelHandle]:
    """Eight blocks between what is shifted and what is read."""
    handle = tiny_handle("llama", num_hidden_layers=8)
    before = handle.digest(fresh=True)
    yield handle
    assert handle.digest(fresh=True) == before


def _likeliest(handle: ModelHandle, floor: float, rank: int = 0) -> list[FactObjective]:
    """A unit per name, in two wordings; what the model would say next is to be avoided."""
    units = []
    for name in NAMES:
        rows = []
        for wording in WORDINGS[:2]:
            (ids,) = handle.engine.encode([wording.format(name)], "plain")
            token = int(handle.engine.next_token_log_probs([ids])[0].argmax())
            spot = subject_spot(handle, ids, name)
            assert spot is not None
            rows.append(ObjectivePrompt(spot, SuppressTokens((token,), floor, rank)))
        units.append(FactObjective(tuple(rows)))
    return units


def _least(handle: ModelHandle, units: list[FactObjective], **changed: Any) -> Values:
    given: dict[str, Any] = {"steps": 20, "max_norm": 6.0, "stop": STOP}
    return least_values(handle, 0, units, **{**given, **changed})


def _after(handle: ModelHandle, row: ObjectivePrompt, shift: Tensor) -> Tensor:
    """``(vocab,)`` log-probabilities of what follows, by the whole model."""

    def move(site: Any, activation: Tensor) -> Tensor:
        moved = activation.clone()
        moved[:, row.spot.position] += shift.to(activation.dtype)
        return moved

    with handle.intercepted(handle.sites("mlp_out", [0]), move, "output"), torch.no_grad():
        logits: Tensor = handle.model(torch.tensor([row.ids])).logits[0, -1]
    return logits.float().log_softmax(-1)


def _less_by(handle: ModelHandle, nats: float) -> list[FactObjective]:
    """As :func:`_likeliest`, each to lose so much of what it has: as hard whatever the weights."""

    def lowered(row: ObjectivePrompt) -> ObjectivePrompt:
        assert isinstance(row.aim, SuppressTokens)
        now = float(handle.engine.next_token_log_probs([row.ids])[0][row.aim.tokens[0]])
        return replace(row, aim=replace(row.aim, floor=now - nats))

    return [
        FactObjective(tuple(lowered(row) for row in unit.rows)) for unit in _likeliest(handle, -1.0)
    ]


def test_most_is_met_in_a_fraction_of_adams_steps_by_shorter_shifts(deep: ModelHandle) -> None:
    units = _less_by(deep, 0.7)
    adam = learn_values(
        deep, 0, units, steps=60, learning_rate=0.1, max_norm=6.0, keep_weight=0.0, decay=0.05,
        stop=STOP,
    )  # fmt: skip
    least = _least(deep, units)
    met, by_adam = (found.losses <= STOP for found in (least, adam))
    # Of eight draws of the weights each met five or six of six, or Adam four; in 0.25 to 0.38 of
    # Adam's steps, by shifts of 0.68 to 0.89 of the length.
    assert int(met.sum()) >= 4
    assert float(least.steps.double().mean()) < 0.6 * float(adam.steps.double().mean())
    both = met & by_adam
    lengths = [float(found.shifts[both].norm(dim=1).mean()) for found in (least, adam)]
    assert lengths[0] <= lengths[1]
    torch.testing.assert_close(least.outputs, adam.outputs)
    for unit in met.nonzero()[:, 0].tolist():
        for row in units[unit].rows:
            aim = row.aim
            assert isinstance(aim, SuppressTokens)
            assert aim.floor is not None
            after = float(_after(deep, row, least.shifts[unit])[aim.tokens[0]])
            assert after < aim.floor + 2 * STOP


def test_many_others_come_before_it_where_a_rank_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finding, "Passes", partial(Passes, exact=True))
    handle, rank = tiny_handle("llama"), 6

    def lead(found: Values) -> list[float]:
        """Nats by which a unit's token is over the other of the rank asked, in its worst row; that
        other is one place later among all, where the token is before it."""
        return [
            max(
                float(now[row.aim.tokens[0]] - now.topk(rank + 1).values[-1])  # type: ignore[union-attr]
                for row in unit.rows
                for now in [_after(handle, row, shift)]
            )
            for unit, shift in zip(units, found.shifts, strict=True)
        ]

    units = _likeliest(handle, -1.0)
    assert min(lead(_least(handle, units))) > 0.1
    units = _likeliest(handle, -1.0, rank)
    found = _least(handle, units)
    met = (found.losses <= STOP).tolist()
    assert sum(met) >= 4
    assert all(over < STOP + 0.01 for over, one in zip(lead(found), met, strict=True) if one)


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
    # Now and then one is stuck where the surface is flat, and its loss says so.
    met = (found.losses <= STOP).tolist()
    assert sum(met) >= 4
    for unit, shift, done in zip(units, found.shifts, met, strict=True):
        for row in unit.rows[:3]:
            (token,) = row.aim.tokens  # type: ignore[union-attr]
            assert float(_after(toy, row, torch.zeros(()))[token]) > -0.1
            assert (float(_after(toy, row, shift)[token]) < -2.8) or not done


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
