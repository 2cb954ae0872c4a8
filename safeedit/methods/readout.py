"""How well a linear classifier reads a label from states, on groups it was not fitted on.

Fails with :class:`~safeedit.errors.AuditError` where a label has fewer than two groups, or states
are not numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from safeedit.errors import AuditError
from safeedit.statistics.intervals import Codes, Floats

Labels = NDArray[np.bool_]


def folds_of(labels: Labels, folds: int, seed: int) -> Codes:
    """Fold of each group, labels spread evenly over folds.

    Args:
        labels: ``(k,)`` of the groups.
        folds: At most so many; fewer where a label has fewer groups.
        seed: Of the deal.

    Raises:
        AuditError: A label has fewer than two groups.
    """
    least = int(min(labels.sum(), (~labels).sum()))
    if least < 2:
        raise AuditError(
            "a probe needs two subjects of either label or more",
            remedy="give it more of them, or lower the score from which they count",
        )
    generator = np.random.default_rng(seed)
    found = np.zeros(len(labels), dtype=np.intp)
    for label in (True, False):
        members = generator.permutation(np.flatnonzero(labels == label))
        found[members] = np.arange(len(members)) % min(folds, least)
    return found


def compact(states: Floats) -> Floats:
    """Standardised states in as few dimensions as there are items: ``(n, min(n, width))``.

    A regularised linear classifier sees nothing but inner products, which this keeps.

    Args:
        states: ``(n, width)``.

    Raises:
        AuditError: They are not all numbers.
    """
    if not np.isfinite(states).all():
        raise AuditError(
            "hidden states are not finite numbers",
            remedy="the edit was too strong for the model's dtype: use a lower dose, or "
            "dtype: float32",
        )
    spread = states.std(axis=0)
    scaled = (states - states.mean(axis=0)) / np.where(spread > 1e-12 * spread.max(), spread, 1.0)
    left, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
    # A typical item has length 1, so that one regularisation fits every layer and width.
    found: Floats = left * sizes / max(np.sqrt(scaled.shape[1]), 1.0)
    return found


def held_out_accuracy(
    states: Floats, groups: Codes, labels: Labels, folds: Codes, regularisation: float
) -> Floats:
    """Per group, the share of its items that classifiers fitted on the other folds read rightly.

    Args:
        states: ``(n, p)``, see :func:`compact`.
        groups: ``(n,)`` group of each item.
        labels: ``(k,)`` of the groups.
        folds: ``(k,)``, see :func:`folds_of`.
        regularisation: ``C`` of scikit-learn's logistic regression.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    right = np.zeros(len(states))
    for fold in range(int(folds.max()) + 1):
        held = folds[groups] == fold
        wanted = labels[groups]
        if len(np.unique(wanted[~held])) < 2:  # random labels of few groups may leave one alone
            guess: Any = np.full(int(held.sum()), wanted[~held][0])
        else:
            probe = LogisticRegression(C=regularisation, max_iter=1000)
            guess = probe.fit(states[~held], wanted[~held]).predict(states[held])
        right[held] = guess == wanted[held]
    sizes = np.bincount(groups, minlength=len(labels))
    return np.bincount(groups, right, minlength=len(labels)) / sizes
