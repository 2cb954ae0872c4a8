"""Noise: Gaussian numbers added to every matrix, in proportion to its norm.

An edit that depends on exact values is blurred before the model is. Noise is also what tells apart
an edit that removes from one that lays something over what is still there: under noise the overlay
gives way first (Łucki et al., 2409.18025, perturb the layers that unlearning changed; here all
matrices of the blocks are, by the same share, since an attacker need not know which).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import AttackProposal, BaseParams, DataRole, EditData, RunContext
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass


class Params(BaseParams):
    """How much noise is added."""

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.03),
        description="Norm of the noise as shares of each matrix's norm; each is one strength",
    )


class Noise:
    """Adds Gaussian noise."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "Gaussian noise added to every matrix"
    roles: ClassVar[tuple[DataRole, ...]] = ()
    tries: ClassVar[AttackClass] = "compression"
    seeded: ClassVar[bool] = True

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def strengths(self) -> tuple[float, ...]:
        """The shares, least first."""
        return tuple(sorted(set(self.params.shares)))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        """Noise for every matrix of the blocks: the same draw at every strength."""
        names = [site.weight for site in model.matrices()]
        return AttackProposal(
            self.strengths(),
            lambda dose: {name: _noisy(dose, ctx.seed, name) for name in names},
            lambda dose: f"noise of {dose * 100:g} % of the norm",
        )


def _noisy(share: float, seed: int, name: str) -> Callable[[Tensor], Tensor]:
    def noisy(weight: Tensor) -> Tensor:
        own = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(own[:4], "big"))
        drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
        size = torch.linalg.vector_norm(weight.float()) / torch.linalg.vector_norm(drawn)
        return weight.float() + share * size * drawn

    return noisy
