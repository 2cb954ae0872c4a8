"""The few directions in which two kinds of text differ, and projections that remove them.

Directions come from pairs: the top right singular vectors of the differences of their states,
after the direction that all text shares is taken out (:func:`contrast`). A projection is kept as
removers ``A`` and readers ``B``, both ``(width, k)`` with ``B'A = I``: of a vector ``y`` it leaves
``y - A diag(amounts) B'y``. Two kinds are offered, with directions ``V``:

* :func:`orthogonal`: ``A = B = V``. What is left has no component along ``V``, at the cost of all
  that ordinary text writes there too, ``tr(V'CV)`` in the mean square, ``C = E[yy']``.
* :func:`oblique`: ``A = V L'^-1``, ``B = C^-1 A`` with ``LL' = V' C^-1 V``, so that
  ``AB' = V (V' C^-1 V)^-1 V' C^-1``. A difference along ``V`` is mapped to nothing, and of all maps
  that do so it moves ordinary text least: ``E|AB'y|^2 = tr((V' C^-1 V)^-1)``, which is at most
  ``tr(V'CV)`` (Gauss and Markov). It takes away the best linear estimate of how much of ``V``
  was *added*, rather than all of ``V``; the component along ``V`` is therefore not zero after it.

``C^-1``, not ``C``: with ``V (V'CV)^-1 V'C`` a direction is read through what ordinary text varies
in most, which moves it more than :func:`orthogonal` does (``E[c^3] >= E[c] E[c]^2`` over the
spectrum ``c`` of ``C`` along a direction).

Sources: contrast and orthogonal projection are those of ProFS (Uppaal et al., ICLR 2025, arXiv
2405.13967); the oblique one with ``C^-1`` is the form of LEACE (Belrose et al., NeurIPS 2023, arXiv
2306.03819), there with the covariance of all text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import EditError

RIDGE = 0.01
"""Share of the mean square added to a second moment: so little that ordinary text is still moved
least, and enough for directions that a sample hardly uses."""


@dataclass(frozen=True, eq=False)
class StateContrast:
    """What distinguishes the first kind of text from the second.

    Attributes:
        directions: ``(width, k)`` orthonormal, fp64, most distinguishing first; each points
            from the second kind to the first.
        shares: ``(k,)`` part of the differences' sum of squares along each.
        centre: ``(width,)`` the unit direction taken out before.
        centre_share: Part of the differences' sum of squares that lay along it.
    """

    directions: Tensor
    shares: Tensor
    centre: Tensor
    centre_share: float


def contrast(
    first: Tensor,
    second: Tensor,
    k: int,
    *,
    centre: Tensor | None = None,
    apart: Tensor | None = None,
) -> StateContrast:
    """The top ``k`` directions of ``(first - second) / 2``, without what all text shares.

    Args:
        first: ``(pairs, width)``, one state per text.
        second: The same of the other text of each pair.
        k: Directions wanted; fewer come back where the pairs span fewer.
        centre: ``(n, width)`` states whose top right singular vector is taken out as what all
            text shares. Default ``second``: where the two kinds differ much, that of ``first``
            (published) holds a part of the difference, which then stays.
        apart: ``(width,)`` bool, dimensions in which no direction may point.

    Raises:
        EditError: The pairs do not differ, or hold a number that is not finite.
    """
    first, second = first.double().cpu(), second.double().cpu()
    shared = second if centre is None else centre.double().cpu()
    if apart is not None:
        first, second = first * ~apart, second * ~apart
        shared = shared * ~apart
    differences = (first - second) / 2
    if not bool(torch.isfinite(differences).all() and torch.isfinite(shared).all()):
        raise EditError("the states of the pairs hold NaN or infinity")
    mean = torch.linalg.svd(shared, full_matrices=False).Vh[0]
    along = differences @ mean
    whole = float(differences.square().sum())
    centred = differences - along[:, None] * mean
    _, values, rows = torch.linalg.svd(centred, full_matrices=False)
    # What is left of differences that lie along the centre alone is rounding.
    span = int((values > 1e-9 * whole**0.5).sum()) if whole else 0
    if not span:
        raise EditError(
            "the two texts of the pairs leave the same states: there is no direction to remove",
            remedy="give pairs that differ, or other layers",
        )
    directions = rows[: min(k, span)].T.clone()
    if apart is not None:
        directions[apart] = 0  # exactly, where rounding left a trace
    signs = torch.where((centred.sum(0) @ directions) < 0, -1.0, 1.0).double()
    shares = values[: directions.shape[1]] ** 2 / whole
    return StateContrast(directions * signs, shares, mean, float(along.square().sum()) / whole)


def outlying_dimensions(states: Tensor, factor: float) -> Tensor:
    """Dimensions ``(width,)`` whose root mean square is over ``factor`` times the median one's.

    Massive activations (Sun et al., COLM 2024, arXiv 2402.17762) sit in a few dimensions of the
    residual stream, swamp singular vectors, and hold up the model where they are removed.

    Args:
        states: ``(n, width)``.
        factor: From which a dimension stands apart.
    """
    size = states.double().cpu().square().mean(0).sqrt()
    return size > factor * size.median()


@dataclass(frozen=True, eq=False)
class Projection:
    """Leaves ``y - removers diag(amounts) readers' y`` of a vector ``y``.

    Attributes:
        removers: ``(width, k)``, fp64.
        readers: ``(width, k)``, fp64; ``readers' removers`` is the identity.
    """

    removers: Tensor
    readers: Tensor

    def factors(self, weight: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
        """``left (out, r)`` and ``right (r, in)`` whose product is added to ``weight``
        ``(out, in)`` so that what it writes is projected.

        Args:
            weight: The matrix.
            amounts: ``(k,)`` how much of each direction goes, 0 to 1; zeros cost no rank.
        """
        used = amounts != 0
        left = -self.removers[:, used] * amounts[used].double()
        return left, self.readers[:, used].T @ weight.detach().cpu().double()

    def change(self, vector: Tensor, amounts: Tensor) -> Tensor:
        """What is added to a bias ``(width,)`` for the same end."""
        read = self.readers.T @ vector.detach().cpu().double()
        return -self.removers @ (amounts.double() * read)


def orthogonal(directions: Tensor) -> Projection:
    """Removes the components along ``directions`` ``(width, k)``; see the module.

    They need not be orthonormal: each comes after those before it (Gram and Schmidt).
    """
    basis, triangle = torch.linalg.qr(directions.double().cpu())
    basis = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return Projection(basis, basis)


def oblique(directions: Tensor, second: Tensor, ridge: float = RIDGE) -> Projection:
    """Removes differences along ``directions`` ``(width, k)``, moving ordinary text least.

    The first few of its removers are those of the first few directions.

    Args:
        directions: What is to vanish.
        second: ``(width, width)`` second moment of what ordinary text writes.
        ridge: Share of its mean diagonal added to the diagonal; the greater, the nearer to
            :func:`orthogonal`.

    Raises:
        EditError: The second moment is no positive definite matrix even so.
    """
    directions, second = directions.double().cpu(), second.double().cpu()
    loaded = second + ridge * second.diagonal().mean() * torch.eye(len(second)).double()
    factor, failed = torch.linalg.cholesky_ex(loaded)
    if bool(failed) or not bool(torch.isfinite(factor).all()):
        raise EditError("the second moment of ordinary text is singular", remedy="give more prose")
    solved = torch.cholesky_solve(directions, factor)
    triangle = torch.linalg.cholesky(directions.T @ solved)
    into: Tensor = torch.linalg.inv(triangle).T
    return Projection(directions @ into, solved @ into)


def amounts(dose: float, count: int, strength: float = 1.0) -> Tensor:
    """How much of each of ``count`` directions a dose removes, fp64.

    A dose is a number of directions: 2.5 removes two wholly and half of the third.

    Args:
        dose: Directions.
        count: How many there are.
        strength: What "wholly" means: 1 projects, less leaves a part of each.
    """
    return strength * (dose - torch.arange(count).double()).clamp(0, 1)
