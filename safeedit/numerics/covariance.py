"""Second moments of activations, accumulated batch by batch.

Source: the covariance ``C = E[k k']`` of ROME and MEMIT (Meng et al., 2022, eq. 7), uncentred.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SecondMoment:
    """Accumulates ``E[x x']`` over rows; products in fp32, sums in fp64.

    Args:
        width: Length of a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.total = 0.0
        self._sum = torch.zeros(width, width, dtype=torch.float64)

    def update(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add rows ``(n, width)``, each counting ``weight``."""
        rows = rows.detach().reshape(-1, self.width).float()
        self._sum += weight * (rows.T @ rows).double().cpu()
        self.total += weight * len(rows)

    @property
    def matrix(self) -> Tensor:
        """``(width, width)``, fp64; zeros before the first row."""
        return self._sum / self.total if self.total else self._sum.clone()
