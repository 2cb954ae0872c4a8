"""Partial least squares (PLS2): the directions of one set of variables that go with another.

Rows are observations. The first weight vector ``w`` maximises the sum of squared covariances of
``Xw`` with all columns of ``Y``; both are then deflated by the score ``Xw`` and the next is found
(regression mode, centred, not scaled). Weights are orthonormal. Same as scikit-learn's
``PLSRegression(scale=False)``, which the tests hold it against, but each weight comes from an
eigenvector rather than from power iterations, and nothing larger than (rows, rows) is decomposed
once there are fewer rows than columns: 256 components of 300 rows take a second, not a minute.

Two facts that its users rely on: rotating the columns of ``Y`` changes nothing; and stacking the
same ``X`` on several ``Y`` equals taking the mean of these ``Y``, so that contrasts between them
cancel (:mod:`safeedit.editors.dama`).

Source: Wold et al. (1983), NIPALS; Höskuldsson, J. Chemometrics 2 (1988), the eigenvector form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import EditError

_NEGLIGIBLE = 1e-10
"""Of what X and Y could covary at most: what is below it is rounding."""


@dataclass(frozen=True, eq=False)
class Pls:
    """A fit; all tensors fp64 on the CPU.

    Attributes:
        weights: ``(x_width, k)`` orthonormal, most covarying first.
        loadings: ``(x_width, k)`` of X on the scores.
        responses: ``(y_width, k)`` of Y on the scores.
        shares: ``(k,)`` part of Y's centred sum of squares that each component explains.
        x_mean: ``(x_width,)``.
        y_mean: ``(y_width,)``.
    """

    weights: Tensor
    loadings: Tensor
    responses: Tensor
    shares: Tensor
    x_mean: Tensor
    y_mean: Tensor

    def predicted(self, x: Tensor, components: int) -> Tensor:
        """``(n, y_width)`` from the first ``components`` components for rows ``x``."""
        weights, loadings = self.weights[:, :components], self.loadings[:, :components]
        rotated = torch.linalg.solve(loadings.T @ weights, self.responses[:, :components].T)
        return self.y_mean + (x.double().cpu() - self.x_mean) @ weights @ rotated


def pls(x: Tensor, y: Tensor, components: int) -> Pls:
    """Fit; fewer components come back where the data hold fewer.

    Args:
        x: ``(n, x_width)``.
        y: ``(n, y_width)``.
        components: At most.

    Raises:
        EditError: X and Y do not covary at all, or hold a number that is not finite.
    """
    x, y = x.double().cpu(), y.double().cpu()
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise EditError("the states that directions are sought in hold NaN or infinity")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x_basis, left = _compressed(x - x_mean)
    y_basis, right = _compressed(y - y_mean)
    whole = float(right.square().sum())
    most = float(left.norm() * right.norm())
    found: list[tuple[Tensor, Tensor, Tensor, float]] = []
    for _ in range(min(components, left.shape[1])):
        cross = left.T @ right
        weight, size = _leading(cross)
        if size <= _NEGLIGIBLE * most:
            break
        # Rounding would bring back a little of the weights before; they are orthogonal exactly.
        for earlier, *_ in found:
            weight = weight - earlier * (earlier @ weight)
        weight = weight / weight.norm()
        score = left @ weight
        square = float(score @ score)
        loading, response = left.T @ score / square, right.T @ score / square
        found.append((weight, loading, response, square * float(response @ response) / whole))
        left = left - torch.outer(score, loading)
        right = right - torch.outer(score, response)
    if not found:
        raise EditError(
            "what is written does not vary with what is wanted: there is no direction to find",
            remedy="give more, and more different, prompts",
        )
    weights, loadings, responses, shares = zip(*found, strict=True)
    turned = x_basis @ torch.stack(weights, 1)
    largest = turned.gather(0, turned.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).double()
    return Pls(
        turned * signs,
        x_basis @ torch.stack(loadings, 1) * signs,
        y_basis @ torch.stack(responses, 1) * signs,
        torch.tensor(shares, dtype=torch.float64),
        x_mean,
        y_mean,
    )


def held_out(x: Tensor, y: Tensor, groups: Tensor, components: int, folds: int = 5) -> Tensor:
    """Part of Y's variation that 1, 2 ... ``components`` components predict on rows not fitted on.

    ``Q2 = 1 - (squared error) / (squared deviation from the fitted rows' mean)`` over all folds: it
    rises with components that carry something and falls with those that fit noise.

    Args:
        x: ``(n, x_width)``.
        y: ``(n, y_width)``.
        groups: ``(n,)`` integers; rows of one group are held out together.
        components: At most.
        folds: At most as many as there are groups.

    Returns:
        ``(k,)``, fp64; empty where there are fewer than three groups.
    """
    known, place = groups.unique(return_inverse=True)
    folds = min(folds, len(known))
    if folds < 3:
        return torch.empty(0, dtype=torch.float64)
    x, y = x.double().cpu(), y.double().cpu()
    errors: list[list[float]] = []
    deviation = 0.0
    for fold in range(folds):
        out = place % folds == fold
        fit = pls(x[~out], y[~out], components)
        deviation += float((y[out] - fit.y_mean).square().sum())
        errors.append(
            [
                float((y[out] - fit.predicted(x[out], k)).square().sum())
                for k in range(1, fit.weights.shape[1] + 1)
            ]
        )
    shared = min(map(len, errors))
    sums = torch.tensor([row[:shared] for row in errors], dtype=torch.float64).sum(0)
    return 1 - sums / deviation


def _compressed(centred: Tensor) -> tuple[Tensor, Tensor]:
    """``basis (width, r)`` orthonormal and ``rows (n, r)`` with ``rows basis' = centred``."""
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    kept = values > _NEGLIGIBLE * max(float(values[:1].sum()), 1e-300)
    return right[kept].T, left[:, kept] * values[kept]


def _leading(cross: Tensor) -> tuple[Tensor, float]:
    """The first left singular vector and value of ``(a, b)``."""
    if not cross.numel():
        return torch.zeros(len(cross), dtype=torch.float64), 0.0
    narrow = cross.shape[0] > cross.shape[1]
    values, vectors = torch.linalg.eigh(cross.T @ cross if narrow else cross @ cross.T)
    size = float(values[-1].clamp(min=0).sqrt())
    if not narrow or not size:
        return vectors[:, -1] if not narrow else cross[:, 0], size
    vector = cross @ vectors[:, -1]
    return vector / vector.norm(), size
