"""The change of a matrix that moves chosen inputs as wanted and everything else least.

Columns are inputs ("keys"). A matrix ``W`` ``(d, m)`` is to gain ``D`` so that the keys ``K1``
``(m, n1)`` move by about ``R`` ``(d, n1)``, the keys ``K0`` ``(m, n0)`` hardly move or not at all,
and ordinary inputs with second moment ``C = E[k k']`` move least:

    D  minimises  |D K1 - R|^2  +  ridge * E|D k|^2  +  w * |D K0|^2,  so that
    D  =  R K1' (ridge * C + K1 K1' + w * K0 K0')^-1,  w = ``preserve_weight``.

``ridge`` 0 is the limit in which ``K1`` moves exactly as wanted where that is possible at all (with
one key: ROME's rank-one update); ``preserve_weight`` infinite, that in which ``K0``'s span does not
move.

What ordinary inputs feel is a :class:`InputMetric`: :class:`Weighted` is the formula above;
:class:`NullSpace` forbids any effect on the directions that hold a given share of their energy
(AlphaEdit's projection, by share rather than by an absolute eigenvalue) and counts the rest alike.

Everything is solved in float64, in coordinates where the metric is the identity, so that at most
one matrix of m x m is factored, once for any number of solves, and the rest costs ``n1`` and
``n0`` squared. The result has rank ``n1`` at most and is kept as two factors.

Fails with :class:`~safeedit.errors.EditError` where numbers are not finite or shapes don't fit,
and where the same key is to move in two ways.

Source: Meng et al. 2022 (ROME, arXiv 2202.05262, eq. 2), Meng et al. 2023 (MEMIT, arXiv
2210.07229, eq. 14), Fang et al. 2025 (AlphaEdit, arXiv 2410.02355, eq. 14).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from safeedit.errors import EditError

_DEPENDENT = 1e-10
"""Share of the largest eigenvalue of the keys' Gram matrix below which one counts as zero."""

_FLOOR = 0.01
"""Share of the mean eigenvalue added to a second moment, for directions that a sample of ordinary
text hardly uses."""

_SAME = 1e-6
"""Relative distance below which two keys are one but for rounding."""

ONE_KEY = 1e-3
"""Relative distance within which two keys that were read from texts are one: no change could move
them apart."""

_CONTRADICTION = 1e-3
"""Relative distance from which two shifts of one key contradict each other."""


class InputMetric(Protocol):
    """How much a change is felt: ``felt(D) = |D's part in the coordinates|^2``."""

    @property
    def width(self) -> int:
        """Length ``m`` of a key."""
        ...

    def coordinates(self, keys: Tensor) -> Tensor:
        """``T k`` of keys ``(m, n)``: ``(r, n)``, where least effect is least norm."""
        ...

    def back(self, coordinates: Tensor) -> Tensor:
        """``T' c`` of ``(r, n)``: ``(m, n)``. A change ``E`` in coordinates is ``E T``."""
        ...


@dataclass(frozen=True, eq=False)
class Weighted:
    """What ordinary inputs feel, ``E|D k|^2``, plus a floor for directions they hardly use.

    Attributes:
        factor: ``(m, m)`` lower triangular, fp64; its square is the second moment with floor.
    """

    factor: Tensor

    @classmethod
    def of(cls, second: Tensor, floor: float = _FLOOR) -> Weighted:
        """From a second moment.

        Args:
            second: ``(m, m)``, uncentred.
            floor: Share of its mean eigenvalue that is added to all.

        Raises:
            EditError: It is not finite, or has no positive-definite factor.
        """
        _check_square(second)
        raised = second.double().clone()
        raised.diagonal().add_(floor * _mean_eigenvalue(raised))
        factor, failed = torch.linalg.cholesky_ex(raised)
        if int(failed):
            raise EditError(
                "the second moment of ordinary text has directions of no energy at all",
                remedy="give more prose",
            )
        return cls(factor)

    @property
    def width(self) -> int:
        return len(self.factor)

    def coordinates(self, keys: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, keys.double(), upper=False)

    def back(self, coordinates: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor.T, coordinates, upper=True)


@dataclass(frozen=True, eq=False)
class NullSpace:
    """No effect at all on the leading directions of ordinary inputs; the rest counts alike.

    Attributes:
        basis: ``(m, r)`` orthonormal, fp64: where a change may look.
        scale: Mean eigenvalue of the second moment, what a unit of effect is worth.
    """

    basis: Tensor
    scale: float

    @classmethod
    def of(cls, second: Tensor, energy: float = 0.9) -> NullSpace:
        """From a second moment, as few leading directions protected as hold the share asked.

        Args:
            second: ``(m, m)``, uncentred.
            energy: Share of its trace, over 0 and below 1.

        Raises:
            EditError: It is not finite, or no direction is left.
        """
        _check_square(second)
        values, vectors = torch.linalg.eigh(second.double())
        values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
        held = values.cumsum(0) / values.sum()
        count = int((held < energy).sum()) + 1
        if count >= len(values):
            raise EditError(
                f"ordinary text uses every direction before {energy:g} of its energy is reached: "
                "no null space is left",
                remedy="give more prose, or take an editor without a null space (memit)",
            )
        return cls(vectors[:, count:].contiguous(), float(values.mean()))

    @property
    def width(self) -> int:
        return len(self.basis)

    def coordinates(self, keys: Tensor) -> Tensor:
        return self.basis.T @ keys.double() / math.sqrt(self.scale)

    def back(self, coordinates: Tensor) -> Tensor:
        return self.basis @ coordinates / math.sqrt(self.scale)


@dataclass(frozen=True, eq=False)
class Change:
    """A solved change ``left @ right`` and what it does to the keys it was solved for.

    Attributes:
        left: ``(d, rank)`` fp64.
        right: ``(rank, m)`` fp64.
        reached: ``(n1,)`` share of each wanted shift that is reached, along it; 1 is all.
        missed: ``|D K1 - R| / |R|``, Frobenius: 0 where every shift is reached.
        independent: How many of the ``n1`` keys are independent, seen past ``K0`` and the metric.
        condition: Of the system solved, the ridge included: greatest over least eigenvalue.
    """

    left: Tensor
    right: Tensor
    reached: Tensor
    missed: float
    independent: int
    condition: float

    def on(self, keys: Tensor) -> Tensor:
        """What keys ``(m, n)`` move by: ``(d, n)``."""
        return self.left @ (self.right @ keys.double())

    def felt(self, second: Tensor) -> float:
        """``E|D k|^2`` of inputs with second moment ``(m, m)``."""
        inner = self.right @ second.double() @ self.right.T
        return float(((self.left @ inner) * self.left).sum())

    def share_of(self, weight: Tensor, second: Tensor) -> float:
        """``E|D k|^2 / E|W k|^2`` of inputs with second moment ``(m, m)``."""
        whole = weight.double()
        return self.felt(second) / max(float(((whole @ second.double()) * whole).sum()), 1e-300)

    def share_on(self, weight: Tensor, keys: Tensor) -> float:
        """``|D K|^2 / |W K|^2`` of keys ``(m, n)``."""
        before = float((weight.double() @ keys.double()).square().sum())
        return float(self.on(keys).square().sum()) / max(before, 1e-300)


def constrained_least_squares(
    keys: Tensor,
    shifts: Tensor,
    metric: InputMetric,
    *,
    ridge: float,
    preserve: Tensor | None = None,
    preserve_weight: float = math.inf,
) -> Change:
    """The change that moves ``keys`` by about ``shifts`` and is felt least elsewhere.

    Args:
        keys: ``(m, n1)``, one at least.
        shifts: ``(d, n1)``.
        metric: What ordinary inputs feel; on the device where to solve.
        ridge: What their effect weighs against a shift's miss; 0 reaches shifts exactly. A key
            ``k`` alone reaches ``g / (g + ridge)`` of its shift, ``g = |T k|^2``, which is about
            ``m`` for an ordinary input and more for a rare one.
        preserve: ``(m, n0)`` keys that are to stay.
        preserve_weight: What a preserved key's move weighs against a shift's miss; infinite (and
            any with ``ridge`` 0): their span does not move.

    Raises:
        EditError: See the module.
    """
    _check(keys, shifts, metric, preserve)
    _check_contradictions(keys, shifts)
    wanted = shifts.double()
    seen = metric.coordinates(keys)
    damping = _Damping(metric, preserve, preserve_weight / ridge if ridge else math.inf)
    damped = damping(seen)
    values, vectors = torch.linalg.eigh(damped.T @ damped)
    # Judged against the keys before K0 was taken out: of a key that lies in its span only
    # rounding is left, which must not pass for a direction of its own.
    scale = float(seen.square().sum(0).max())
    free = values > _DEPENDENT * max(float(values[-1]), scale)
    solved = vectors[:, free] / (values[free] + ridge)
    left, right = wanted @ solved, metric.back(damping(damped @ vectors[:, free])).T
    arrived = left @ (right @ keys.double())
    sizes = wanted.square().sum(0)
    reached = (arrived * wanted).sum(0) / sizes.clamp(min=1e-300)
    system = values[free] + ridge
    if left.shape[1] > len(wanted):
        left, right = torch.eye(len(wanted), dtype=left.dtype, device=left.device), left @ right
    return Change(
        left=left,
        right=right,
        reached=torch.where(sizes > 0, reached, torch.ones_like(reached)),
        missed=float((arrived - wanted).norm() / wanted.norm().clamp(min=1e-300)),
        independent=int(free.sum()),
        condition=float(system[-1] / system[0]) if len(system) else math.inf,
    )


class _Damping:
    """``(I + w Z0 Z0')^-1/2`` in coordinates; for infinite ``w`` the projection off ``Z0``."""

    def __init__(self, metric: InputMetric, preserve: Tensor | None, weight: float) -> None:
        self._basis: Tensor | None = None
        if preserve is None or not preserve.shape[1] or weight == 0:
            return
        held = metric.coordinates(preserve)
        # Keys of any length count by direction where nothing of them may move.
        if math.isinf(weight):
            held = held / held.norm(dim=0).clamp(min=1e-300)
        basis, sizes, _ = torch.linalg.svd(held, full_matrices=False)
        kept = sizes > math.sqrt(_DEPENDENT) * sizes[0].clamp(min=1e-300)
        self._basis = basis[:, kept]
        self._less = (
            torch.ones_like(sizes[kept])
            if math.isinf(weight)
            else 1 - (1 + weight * sizes[kept].square()).rsqrt()
        )

    def __call__(self, coordinates: Tensor) -> Tensor:
        if self._basis is None:
            return coordinates
        return coordinates - self._basis @ (self._less[:, None] * (self._basis.T @ coordinates))


def same_keys(keys: Tensor, tolerance: float = _SAME) -> Tensor:
    """Which keys are one and the same but for ``tolerance`` of their length.

    Args:
        keys: ``(m, n)``.
        tolerance: Relative distance.

    Returns:
        ``(n,)`` index of the first key that each is the same as: itself, where it is new.
    """
    rows = keys.double().T
    lengths = rows.norm(dim=1)
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    same = apart <= tolerance * torch.maximum(lengths[:, None], lengths)
    return same.int().argmax(1)


def can_stay(keys: Tensor, held: Tensor) -> Tensor:
    """Which keys can stay where others are to move: those that are none of the others.

    Args:
        keys: ``(m, n)`` that are to move.
        held: ``(m, n0)`` that are to stay.

    Returns:
        ``(n0,)`` bool.
    """
    return same_keys(torch.cat([keys, held], 1), ONE_KEY)[keys.shape[1] :] >= keys.shape[1]


def _check_contradictions(keys: Tensor, shifts: Tensor) -> None:
    first = same_keys(keys)
    twice = first != torch.arange(len(first), device=first.device)
    if not bool(twice.any()):
        return
    one, other = shifts.double()[:, twice], shifts.double()[:, first[twice]]
    size = torch.maximum(one.norm(dim=0), other.norm(dim=0))
    against = int(((one - other).norm(dim=0) > _CONTRADICTION * size).sum())
    if against:
        raise EditError(
            f"{against} of {len(first)} keys are the same as another that is to move differently: "
            "these changes contradict each other",
            remedy="give a subject one target in one wording, or edit the two one after the other",
        )


def _check(keys: Tensor, shifts: Tensor, metric: InputMetric, preserve: Tensor | None) -> None:
    held = keys[:, :0] if preserve is None else preserve
    if not (
        keys.dim() == shifts.dim() == held.dim() == 2
        and len(keys) == len(held) == metric.width
        and keys.shape[1] == shifts.shape[1] > 0
    ):
        raise EditError(
            f"keys {tuple(keys.shape)}, shifts {tuple(shifts.shape)} and preserved keys "
            f"{tuple(held.shape)} don't fit together, or a metric of width {metric.width}"
        )
    if not all(bool(torch.isfinite(part).all()) for part in (keys, shifts, held)):
        raise EditError(
            "keys or shifts are not finite numbers",
            remedy="open the model in float32 (dtype: float32)",
        )


def _check_square(second: Tensor) -> None:
    if second.dim() != 2 or second.shape[0] != second.shape[1]:
        raise EditError(f"a second moment of shape {tuple(second.shape)} is not square")
    if not bool(torch.isfinite(second).all()):
        raise EditError("the second moment of ordinary text is not finite")


def _mean_eigenvalue(second: Tensor) -> float:
    return float(second.diagonal().mean())
