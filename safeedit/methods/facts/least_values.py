"""Least values: the smallest shift of one MLP's output after which an answer is unlikely.

Adam walks to a shift that meets its aim and stops somewhere past the line; here each step goes to
the *nearest* point that meets all of a unit's aims, were they linear in the shift: with ``s`` the
aims' values, ``G`` their slopes and ``x`` the shift, the least ``y`` with ``s + G (y - x) <= 0``.
The log-odds of a token, unlike its log-probability, are close to linear in what is written, however
sure of it the model is. The floor and the rank of an aim are two conditions, each with a slope:
the greater of the two has none where they meet. No step is longer than earlier ones have shown
the lines to hold. A shift that meets its aims with something to spare is shortened likewise.

Least by length, and nothing holds the unit's other rows: a
:class:`~safeedit.methods.facts.objectives.KeepDistribution` is met by changing little.

Source: ours; Newton's method for a least-norm solution of inequalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError
from safeedit.methods.facts.objectives import FactObjective, SuppressTokens
from safeedit.methods.facts.passes import Passes
from safeedit.methods.facts.values import Values
from safeedit.model.handle import ModelHandle

_FIRST_REACH = 1.0
"""Longest first step, as a share of the output's length."""

_TRUSTED, _DOUBTED = 0.75, 0.25
"""Shares of the hoped-for gain from which a step may be twice as long next time, and up to which
only half as long."""

_SPARE = 0.1
"""A shift that meets its aims is shortened as long as more than this share of it may go."""

_SLACK = 1e-3
"""Of a condition, against its slope: it makes conditions that contradict each other soluble."""

_FLAT = 1e-6
"""Slope, against the steepest, up to which a condition says nothing."""


def least_values(
    model: ModelHandle,
    layer: int,
    units: Sequence[FactObjective],
    *,
    steps: int,
    max_norm: float,
    stop: float,
    progress: Progress = silent,
    description: str = "finding least values",
) -> Values:
    """Least shifts of what the MLP of ``layer`` writes; as
    :func:`safeedit.methods.facts.values.learn_values`.

    Args:
        model: Stays as it is.
        layer: Which.
        units: Their aims are all :class:`~safeedit.methods.facts.objectives.SuppressTokens`; rows
            to keep are passed over.
        steps: At most.
        max_norm: Greatest length of a shift, as a share of the output's.
        stop: A unit is done once each of its aims is missed by at most this, nats of log-odds.
        progress: Shown per step.
        description: For ``progress``.

    Raises:
        EditError: A value is no finite number.
        AuditError: A row is longer than the context, or does not fit into memory.
    """
    passes = Passes(model, layer, [_conditions(unit) for unit in units])
    sizes: list[float] = passes.outputs.double().tolist()
    walks = [_Walk(model.d_model, size, max_norm * size, stop) for size in sizes]
    taken = torch.zeros(len(units), dtype=torch.long)
    active = list(range(len(units)))
    for step in progress(range(steps + 1), description, steps + 1):
        shifts = torch.stack([walk.shift for walk in walks])
        values, slopes, owners = passes.slopes(shifts.float(), active)
        _require_finite(values, slopes)
        taken[active] = step
        active = [
            unit
            for unit in active
            for own in (owners == unit,)
            if not walks[unit].advance(values[own].flatten(), slopes[own].flatten(0, 1))
        ]
        if not active:
            break
    found = [walk.best for walk in walks]
    return Values(
        torch.stack([point.shift for point in found]).float(),
        passes.outputs,
        torch.tensor([point.missed for point in found]),
        taken,
    )


def _conditions(unit: FactObjective) -> FactObjective:
    """The unit without its rows to keep."""
    return FactObjective(tuple(row for row in unit.rows if isinstance(row.aim, SuppressTokens)))


def _require_finite(values: Tensor, slopes: Tensor) -> None:
    if not bool(torch.isfinite(values).all() and torch.isfinite(slopes).all()):
        raise EditError(
            "a value is no number while shifts are sought",
            remedy="open the model in float32 (dtype: float32)",
        )


class _Walk:
    """One unit's way to its least shift.

    Args:
        width: Of a shift.
        size: Length of the output it is added to.
        longest: Greatest length of a shift.
        stop: It is there once each of its aims is missed by at most this, nats of log-odds.
    """

    def __init__(self, width: int, size: float, longest: float, stop: float) -> None:
        self.shift = torch.zeros(width, dtype=torch.float64)
        """Where to look next."""
        self._reach, self._longest, self._stop = _FIRST_REACH * size, longest, stop
        self._best: _Point | None = None

    @property
    def best(self) -> _Point:
        """The best point so far."""
        assert self._best is not None
        return self._best

    def advance(self, values: Tensor, slopes: Tensor) -> bool:
        """Take in what was found at :attr:`shift`: ``values (n,)`` and ``slopes (n, d)`` of its
        conditions; whether the walk is at its end."""
        now = _Point(self.shift, values, slopes)
        if self._best is not None:
            self._reach = _next_reach(self._reach, self._best, now)
        if self._best is None or now.better(self._best, self._stop):
            self._best = now
        start = self._best
        nearest = nearest_point(start.shift, start.values + self._stop / 2, start.slopes)
        self.shift = bounded(start.shift, nearest, self._reach, self._longest)
        spare = min(float(start.shift.norm() - nearest.norm()), self._reach)
        return start.missed <= self._stop and spare <= _SPARE * float(start.shift.norm())


@dataclass(frozen=True, eq=False)
class _Point:
    """A unit's shift ``(d,)``, and its conditions there: ``values (n,)``, ``slopes (n, d)``."""

    shift: Tensor
    values: Tensor
    slopes: Tensor

    @property
    def missed(self) -> float:
        """What the worst condition lacks, nats of log-odds."""
        return float(self.values.max().clamp(min=0))

    def better(self, other: _Point, stop: float) -> bool:
        """Whether it is shorter, where both miss at most ``stop``, or else misses less."""
        if max(self.missed, other.missed) <= stop:
            return float(self.shift.norm()) < float(other.shift.norm())
        return self.missed < other.missed

    def hoped(self, shift: Tensor) -> float:
        """What the worst would lack at ``shift``, were all linear."""
        return float((self.values + self.slopes @ (shift - self.shift)).max().clamp(min=0))


def _next_reach(reach: float, before: _Point, now: _Point) -> float:
    """How far the next step may go, after one from ``before`` to ``now``."""
    length = float((now.shift - before.shift).norm())
    hoped = max(before.missed - before.hoped(now.shift), 1e-9)
    gained = before.missed - now.missed
    if gained > _TRUSTED * hoped:
        return max(reach, 2 * length)
    if gained > _DOUBTED * hoped:
        return reach
    # Where a parabola through the two values and the slope at the first is least, or halfway.
    return length * min(0.5, max(0.1, hoped / (2 * (hoped - gained))))


def nearest_point(shift: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """The least ``y (d,)`` with ``values + slopes (y - shift) <= 0``; ``slopes`` ``(n, d)``.

    Least distance programming by non-negative least squares (Lawson and Hanson, 1974, chapter 23).
    """
    from scipy.optimize import nnls  # takes a second to import

    sizes = slopes.norm(dim=1)
    used = sizes > _FLAT * sizes.max()
    if not bool(used.any()):
        return torch.zeros_like(shift)
    slopes, sizes = slopes[used], sizes[used]
    bounds = (slopes @ shift - values[used]) / sizes
    slopes = slopes / sizes[:, None]
    scale = float(bounds.abs().max().clamp(min=1e-12))
    rows = torch.cat([slopes, -_SLACK * torch.eye(len(slopes), dtype=slopes.dtype)], 1)
    system = -torch.cat([rows.T, bounds[None] / scale]).numpy()
    target = np.zeros(len(system))
    target[-1] = 1.0
    weights, _ = nnls(system, target)
    rest = torch.from_numpy(system @ weights - target)
    return -rest[: len(shift)] / rest[-1] * scale


def bounded(start: Tensor, aim: Tensor, step: float, longest: float) -> Tensor:
    """Towards ``aim``, no further than ``step``, within ``longest`` of zero."""
    way = aim - start
    point = start + way * min(1.0, step / max(float(way.norm()), 1e-30))
    return point * min(1.0, longest / max(float(point.norm()), 1e-30))
