"""Least values: the smallest shift of one MLP's output after which an answer is unlikely.

Adam walks to a shift that meets its aim and stops somewhere past the line; here each step goes to
the *nearest* point that meets all of a unit's aims, were they linear in the shift: with ``s`` the
aims' values, ``G`` their slopes and ``x`` the shift, the least ``y`` with ``s + G (y - x) <= 0``.
The log-odds of a token, unlike its log-probability, are close to linear in what is written, however
sure of it the model is. No step is longer than earlier ones have shown the line to hold.

Least by length, and nothing holds the unit's other rows: a :class:`~safeedit.model.values.Keep` is
met by changing little.

Source: ours; Newton's method for a least-norm solution of inequalities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from safeedit.model.values import Avoid, Passes, Unit, Values

_FIRST_REACH = 0.4
"""Longest first step, as a share of the output's length; it doubles where a step helped and
shrinks to a quarter where it did not."""


def least_values(
    model: ModelHandle,
    layer: int,
    units: Sequence[Unit],
    *,
    steps: int,
    max_norm: float,
    stop: float,
    progress: Progress = silent,
    description: str = "finding least values",
) -> Values:
    """Least shifts of what the MLP of ``layer`` writes; as
    :func:`safeedit.model.values.learn_values`.

    Args:
        model: Stays as it is.
        layer: Which.
        units: Their aims are all :class:`~safeedit.model.values.Avoid` with a floor; rows to keep
            are passed over.
        steps: At most.
        max_norm: Greatest length of a shift, as a share of the output's.
        stop: A unit is done once each of its aims is missed by at most this, nats of log-odds.
        progress: Shown per step.
        description: For ``progress``.

    Raises:
        EditError: A value is no finite number.
        AuditError: A row is longer than the context, or does not fit into memory.
    """
    aims = [Unit(tuple(row for row in unit.rows if isinstance(row.aim, Avoid))) for unit in units]
    passes = Passes(model, layer, aims)
    longest = max_norm * passes.outputs.double()
    shifts = torch.zeros(len(units), model.d_model, dtype=torch.float64)
    losses = torch.full((len(units),), torch.inf, dtype=torch.float64)
    kept = shifts.clone()
    known: dict[int, tuple[Tensor, Tensor]] = {}
    reach = _FIRST_REACH * passes.outputs.double()
    taken = torch.zeros(len(units), dtype=torch.long)
    active = list(range(len(units)))
    for step in progress(range(steps + 1), description, steps + 1):
        values, slopes, owners = passes.slopes(shifts.float(), active)
        if not bool(torch.isfinite(values).all()):
            raise EditError(
                "a value is no number while shifts are sought",
                remedy="open the model in float32 (dtype: float32)",
            )
        done = []
        for unit in active:
            own = owners == unit
            missed = float(values[own].max().clamp(min=0))
            taken[unit] = step
            if missed < losses[unit]:
                known[unit] = (values[own], slopes[own])
                kept[unit], losses[unit] = shifts[unit], missed
                reach[unit] *= 2 if step else 1
            else:
                reach[unit] /= 4
            if losses[unit] <= stop:
                done.append(unit)
                continue
            value, slope = known[unit]
            nearest = _nearest(kept[unit], value + stop / 2, slope)
            shifts[unit] = _bounded(kept[unit], nearest, reach[unit], longest[unit])
        active = [unit for unit in active if unit not in done]
        if not active:
            break
    return Values(kept.float(), passes.outputs, losses.float(), taken)


def _nearest(shift: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """The least ``y (d,)`` with ``values + slopes (y - shift) <= 0``; ``slopes`` ``(n, d)``.

    By active set: constraints whose multiplier would be negative are dropped, violated ones taken
    in again, which ends since there are few of them.
    """
    bounds = slopes @ shift - values
    used = torch.ones(len(values), dtype=torch.bool)
    point = torch.zeros_like(shift)
    for _ in range(2 * len(values) + 1):
        some = slopes[used]
        gram = some @ some.T
        gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(some), dtype=gram.dtype)
        multipliers = torch.linalg.lstsq(gram, bounds[used][:, None]).solution[:, 0]
        point = some.T @ multipliers
        # slopes @ y = bounds with bounds < 0 is met from above: multipliers are negative then.
        if bool((multipliers <= 0).all()):
            over = (slopes @ point - bounds > 1e-6) & ~used
            if not bool(over.any()):
                break
            used |= over
            continue
        places = used.nonzero()[:, 0]
        used[places[int(multipliers.argmax())]] = False
        if not bool(used.any()):
            return torch.zeros_like(shift)
    return point


def _bounded(start: Tensor, aim: Tensor, step: Tensor, longest: Tensor) -> Tensor:
    """Towards ``aim``, no further than ``step``, within ``longest`` of zero."""
    way = aim - start
    point = start + way * min(1.0, float(step) / max(float(way.norm()), 1e-30))
    return point * min(1.0, float(longest) / max(float(point.norm()), 1e-30))
