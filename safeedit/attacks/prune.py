"""Pruning: the smallest weights of every matrix set to 0, by magnitude.

What shrinks a model shrinks an edit too: where an edit lives in many small changes, pruning takes
more of it than of the model. Magnitude within each matrix, the share the same everywhere (Han et
al., 1506.02626; Lynch et al. 2402.16835 list pruning among what an unlearnt model should survive).
No retraining follows. Embedding, head and norms stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import AttackProposal, BaseParams, DataRole, EditData, RunContext
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass


class Params(BaseParams):
    """How much is pruned."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, 0.2),
        description="Shares of each matrix's weights that become 0; each is one strength",
    )


class Prune:
    """Sets the smallest weights to 0."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "the smallest weights of every matrix set to 0"
    roles: ClassVar[tuple[DataRole, ...]] = ()
    tries: ClassVar[AttackClass] = "compression"
    seeded: ClassVar[bool] = False

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def strengths(self) -> tuple[float, ...]:
        """The shares, least first."""
        return tuple(sorted(set(self.params.shares)))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        """Pruning of every matrix of the blocks."""
        names = [site.weight for site in model.matrices()]
        return AttackProposal(
            self.strengths(),
            lambda dose: dict.fromkeys(names, _without_smallest(dose)),
            lambda dose: f"{dose * 100:g} % of the weights",
        )


def _without_smallest(share: float) -> Callable[[Tensor], Tensor]:
    def pruned(weight: Tensor) -> Tensor:
        sizes = weight.abs().reshape(-1)
        count = int(share * len(sizes))
        if not count:
            return weight
        smallest = torch.topk(sizes, count, largest=False, sorted=False).indices
        flat = weight.reshape(-1).clone()
        flat[smallest] = 0
        return flat.reshape(weight.shape)

    return pruned
