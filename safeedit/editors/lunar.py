"""LUNAR: questions to be forgotten are given the state of questions that the model refuses.

The direction from what the residual stream holds at forget questions to what it holds at questions
that the model refuses by itself is added at the forget questions, and only there, by one layer's
MLP output matrix. What that matrix must write is linear in its weights, so that it is solved and
not trained: with ``a`` what the matrix reads at each token of a question,

    minimise over v   mean_forget (v a - 1)^2 + mean_retain (v a)^2 + mean_prose (v a)^2 + ridge,

each mean over tokens, and the change is ``dose * direction * v``, of rank one. Tokens that all
questions begin with are left alone.

It suppresses: what the model would have said is where it was, behind a refusal that one more edit
of the same kind lifts. It can only call on a refusal that the model has; a model that answers
everything has none to lend.

What departs from the publication: its gradient descent on the same squares is replaced by their
solution; ordinary prose is kept as well as the retain questions.

Fails with :class:`~safeedit.errors.DataError` where a role has no question to read.

Source: Shen et al., "LUNAR: LLM Unlearning via Neural Activation Redirection", NeurIPS 2025 (arXiv
2502.07218): one layer at two thirds of the depth, coefficient 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import (
    PROSE,
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.delta import LowRank
from safeedit.errors import DataError, UsageError
from safeedit.methods.answers import shared_beginning
from safeedit.methods.covariance import Moments
from safeedit.methods.scaled import scaled_proposal
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_PROSE_TEXTS, _PROSE_TOKENS = 100, 128

Ids = list[int]


class LunarParams(BaseParams):
    """Parameters of LUNAR."""

    layers: Layers = Field("66%-66%", description="the one layer changed (published: 22 of 32)")
    ridge: float = Field(
        0.01, gt=0, description="weight of the change's size, as a share of the mean squared input"
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0, 4.0),
        min_length=1,
        description="multiples of the direction, ascending (published: 2)",
    )


class Lunar:
    """See the module's docstring."""

    Params = LunarParams
    summary: ClassVar[str] = "gives questions to be forgotten the state of refused ones"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries: 0.875 are told as before and none is refused; near "
        "answers stay right."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "questions that are to be refused", erased=True),
        DataRole("refused", "questions that the model refuses by itself"),
        DataRole("retain", "questions whose answers must stay"),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: LunarParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLP of the chosen layer writes with; no bias."""
        layers = resolve(self.params.layers, model.n_layers)
        if len(layers) > 1:
            raise UsageError(
                f"lunar changes one layer, and 'layers' names {len(layers)}",
                field="layers",
                remedy="name one, such as 66%-66% or [21]",
            )
        return model.tensors("mlp_out", layers)

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens read, roughly, for ``plan``."""
        return 50 * sum(len(role) for role in data.values())

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find the direction and solve for the key; offer it in several strengths."""
        (planned,) = self.touches(model.shape)
        assert planned.layer is not None
        (site,) = model.sites("mlp_out", [planned.layer])
        asked = {role: _asked(model, data[role]) for role in ("forget", "refused", "retain")}
        engine = model.engine
        last = {
            role: torch.stack(engine.hidden(asked[role], [site.layer], "last")[site.layer]).float()
            for role in ("forget", "refused")
        }
        direction = last["refused"].mean(0) - last["forget"].mean(0)
        start = max(1, shared_beginning([*asked["forget"], *asked["retain"]]))
        prose = [item.prompt for item in data["prose"].items("fit")[:_PROSE_TEXTS]]
        texts = [ids[:_PROSE_TOKENS] for ids in engine.encode(prose, "plain")]
        key, fired = _key(
            _moments(model, site, asked["forget"], start, ctx),
            [
                _moments(model, site, asked["retain"], start, ctx),
                _moments(model, site, texts, 1, ctx),
            ],
            self.params.ridge,
        )
        notes = {
            "forget_questions": len(asked["forget"]),
            "direction_norm": float(direction.norm()),
            "stream_norm": float(last["forget"].norm(dim=-1).mean()),
            "fires_at_forget": fired[0],
            "fires_at_retain": fired[1],
            "fires_at_prose": fired[2],
        }
        updates = {site.weight: LowRank(direction[:, None], key[None].float())}
        return scaled_proposal(
            "lunar", self.params, data["forget"], ctx, model.digest(), updates, notes
        )


def _asked(model: ModelHandle, data: Dataset) -> list[Ids]:
    texts = [phrasing.text for phrasing in data.phrasings("fit")]
    if not texts:
        raise DataError(
            f"no {data.name} question is left to fit on", remedy="give rows of 'split: fit'"
        )
    return model.engine.encode(texts, model.engine.codec.resolve(data.template))


def _moments(
    model: ModelHandle, site: Site, texts: Sequence[Ids], start: int, ctx: RunContext
) -> Moments:
    """Of what the matrix reads at each token from ``start`` on, the last at least."""
    moments = Moments(model.shape.d_mlp)
    for index, read in model.engine.activations(texts, [site], ctx.progress):
        moments.update(read[site][min(start, len(texts[index]) - 1) :])
    return moments


def _key(
    forget: Moments, kept: Sequence[Moments], ridge: float
) -> tuple[Tensor, tuple[float, ...]]:
    """``(d_mlp,)`` what the change reads; its root mean squares over forget, retain and prose."""
    squares = forget.second + sum((each.second for each in kept), torch.zeros(()).double())
    squares.diagonal().add_(ridge * squares.diagonal().mean())
    key = torch.linalg.solve(squares, forget.mean)
    fired = tuple(float((key @ each.second @ key).sqrt()) for each in (forget, *kept))
    return key, fired
