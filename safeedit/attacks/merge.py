"""Merging: a step back towards the base model, as anybody can take who holds both.

Task arithmetic with the base (Ilharco et al., 2212.04089): the edit is the difference of the two
models, and a share of it is subtracted. At 1 the base itself stands there again and everything
comes back, so only shares below 1 say something of the edit: an edit that gives way at .1 hangs by
a thread. Merging with *another* fine-tuned model of the same base has a like effect on the edit,
which is averaged away by the same share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from safeedit.contracts import AttackProposal, BaseParams, DataRole, EditData, RunContext
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass


class Params(BaseParams):
    """How far back."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, 0.25),
        description="Shares of the way back to the base; each is one strength",
    )


class Merge:
    """Mixes the edited model with the untouched one."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "a step back towards the untouched model, by who holds both"
    roles: ClassVar[tuple[DataRole, ...]] = ()
    tries: ClassVar[AttackClass] = "merging"
    seeded: ClassVar[bool] = False

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def strengths(self) -> tuple[float, ...]:
        """The shares, least first."""
        return tuple(sorted(set(self.params.shares)))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        """Mixtures of every tensor with the base's own, read from its files one by one.

        Raises:
            EditError: There are no files of the base to read.
        """
        base = ctx.base_tensor
        if base is None:
            raise EditError("merging needs the untouched model's files, and there are none")
        names = tuple(model.shape.stored)
        return AttackProposal(
            self.strengths(),
            lambda dose: {name: _mixed(dose, base, name) for name in names},
            lambda dose: f"{dose * 100:g} % of the way back",
        )


def _mixed(share: float, base: Callable[[str], Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def mixed(weight: Tensor) -> Tensor:
        return weight.float().lerp(base(name).to(weight.device).float(), share)

    return mixed
