"""Rank correlation of two short lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safeedit.statistics.intervals import Floats


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, ties sharing theirs.

    Args:
        one: Values.
        other: As many.

    Returns:
        In [-1, 1]; None for fewer than three pairs, or where either list is all alike.
    """
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (one, other))
    if len(one) < 3 or not np.ptp(first) or not np.ptp(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Number of smaller values, equal ones counted half."""
    below = (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
    found: Floats = below.astype(np.float64)
    return found
