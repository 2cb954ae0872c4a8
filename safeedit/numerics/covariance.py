"""Moments of activations, accumulated batch by batch.

Source: the covariance ``C = E[k k']`` of ROME and MEMIT (Meng et al., 2022, eq. 7), uncentred.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Moments:
    """Accumulates ``E[x]`` and ``E[x x']`` over rows; products in fp32, sums in fp64.

    Args:
        width: Length of a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0.0
        self._first = torch.zeros(width, dtype=torch.float64)
        self._second = torch.zeros(width, width, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add rows ``(n, width)``."""
        rows = rows.detach().reshape(-1, self.width).float()
        self._first += rows.sum(0).cpu().double()
        self._second += (rows.T @ rows).cpu().double()
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """``(width,)``, fp64; zeros before the first row."""
        return self._first / max(self.count, 1.0)

    @property
    def second(self) -> Tensor:
        """``(width, width)``, fp64, uncentred; zeros before the first row."""
        return self._second / max(self.count, 1.0)

    @classmethod
    def balanced(cls, parts: Sequence[Moments]) -> Moments:
        """Parts of different size mixed in equal shares; empty ones are left out."""
        found = [part for part in parts if part.count]
        mixed = cls(parts[0].width)
        for part in found:
            mixed._first += part.mean / len(found)
            mixed._second += part.second / len(found)
        mixed.count = 1.0
        return mixed
