"""Task vectors: learn what is to be forgotten, then take away what that changed.

``method: negate``
    The model is fine-tuned on the forget questions with their answers; the change of its weights is
    subtracted, scaled by the dose (Ilharco et al.).

``method: ext_sub``
    Extraction before subtraction (Hu et al.): a second model, the expert, is tuned on the retain
    questions, and only what its change does not share with the first is taken away. Row by row,
    with ``e`` the expert's and ``a`` the other's change, ``c`` the unit bisector of the two, the
    change is ``e - dose (a - (a c) c)``.

What departs from the reference code of Ext-Sub: it merges adapters into square matrices and stops
where they are not; rows of zeros become NaN, here they share nothing; its variant for IA3 leaves
out the dose. Doses are scales.

Fine-tuning on a few facts changes much else besides, and all of it is subtracted: this is the
crudest of the trained erasers, cheap and easily explained.

Fails with :class:`~safeedit.errors.EditError` where tuning diverges.

Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023 (arXiv 2212.04089); Hu et
al., "Separate the Wheat from the Chaff", AAAI 2024 (arXiv 2308.08090).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from safeedit.contracts import DataRole, EditData, LayerShape, Proposal, RunContext, TensorPlan
from safeedit.data import Dataset
from safeedit.delta import Dense, LowRank, Update
from safeedit.errors import DataError
from safeedit.methods.answers import own_answers, some, told_answers
from safeedit.methods.scaled import proposal_of
from safeedit.methods.training import Loss, TrainedParams
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless
from safeedit.model.handle import ModelHandle

_OWN_TOKENS = 16
"""Tokens of the base's own answers that the expert is tuned on."""


class TaskVectorParams(TrainedParams):
    """Parameters of task vectors."""

    method: Literal["negate", "ext_sub"] = Field(
        "negate",
        description="subtract all that tuning on forget questions changed, or only what tuning on "
        "retain questions does not change alike",
    )
    steps: int = Field(40, ge=1, description="steps of each tuning")
    retain_prompts: int = Field(100, ge=1, description="ext_sub: retain prompts used at most")
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.25, 0.5, 1.0, 1.5, 2.0), min_length=1, description="scales of what is subtracted"
    )


class TaskVector:
    """See the module's docstring."""

    Params = TaskVectorParams
    summary: ClassVar[str] = "learns what is to go and subtracts what that changed"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries, half of what twenty steps learnt taken away: 0.0417 are "
        "told, and 0.167 of near answers stay right."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "questions whose answers are to go", erased=True, answered=True),
        DataRole("retain", "questions whose answers must stay (ext_sub)", required=False),
    )

    def __init__(self, params: Any) -> None:
        self.params: TaskVectorParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The matrices of the chosen layers; with ``update: full`` their biases too."""
        return self.params.tensors(model)

    def check_data(self, data: Mapping[str, Dataset]) -> None:
        """Refuse ext_sub without an expert's data while planning."""
        if self.params.method == "ext_sub" and "retain" not in data:
            raise DataError(
                "'method: ext_sub' needs retain questions, which its expert is tuned on",
                remedy="give 'retain', or take 'method: negate'",
            )

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        runs = 2 if self.params.method == "ext_sub" else 1
        return runs * self.params.steps * self.params.batch * 50

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Tune; offer the subtraction in several strengths."""
        self.check_data(data.roles)
        told, own = told_answers(model, data["forget"], ctx.progress)
        learnt, loss = self._tuned(model, told, ctx, "learning what is to go")
        notes = {"prompts": len(told), "in_own_words": own, "loss": loss}
        expert: Mapping[str, Update] = {}
        if self.params.method == "ext_sub":
            items = some(data["retain"], self.params.retain_prompts, ctx.seed)
            kept = own_answers(model, data["retain"], items, _OWN_TOKENS, ctx.progress)
            expert, notes["expert_loss"] = self._tuned(model, kept, ctx, "tuning the expert")

        def updates(dose: float) -> dict[str, Update]:
            if not expert:
                return {name: _scaled(update, -dose) for name, update in learnt.items()}
            return {
                name: Dense(extracted(_dense(expert[name]), _dense(update), dose))
                for name, update in learnt.items()
            }

        return proposal_of(
            "task_vector", self.params, data["forget"], ctx, model.digest(), updates, notes
        )

    def _tuned(
        self, model: ModelHandle, examples: Sequence[Example], ctx: RunContext, description: str
    ) -> tuple[Mapping[str, Update], float]:
        """What tuning on these examples changes, and its mean loss, nats a token."""
        params = self.params

        def begin() -> Loss:
            drawn = endless(examples, random.Random(ctx.seed))

            def loss() -> tuple[Tensor, float]:
                batch = [next(drawn) for _ in range(params.batch)]
                total = cross_entropy(model, answer_states(model, batch), batch)
                return total, float(total.detach())

            return loss

        learner = params.learner(model, ctx.seed)
        training = params.training(model, learner, begin, ctx, description)
        training.to(params.steps)
        return learner.updates(), training.losses[params.steps]


def extracted(expert: Tensor, other: Tensor, dose: float) -> Tensor:
    """Ext-Sub of two changes ``(out, in)`` or ``(out,)``: the expert's, less what the other has of
    its own, row by row.

    Args:
        expert: Change that is wanted.
        other: Change whose own part is not.
        dose: Scale of that part.
    """
    if expert.dim() == 1:  # a bias is one row
        return extracted(expert[None], other[None], dose)[0]
    shared = functional.normalize(
        functional.normalize(expert, dim=-1) + functional.normalize(other, dim=-1), dim=-1
    )
    own = other - (other * shared).sum(-1, keepdim=True) * shared
    return expert - dose * own


def _dense(update: Update) -> Tensor:
    if isinstance(update, LowRank):
        return update.left @ update.right
    assert isinstance(update, Dense)
    return update.values


def _scaled(update: Update, factor: float) -> Update:
    if isinstance(update, LowRank):
        return LowRank(update.left * factor, update.right)
    assert isinstance(update, Dense)
    return Dense(update.values * factor)
