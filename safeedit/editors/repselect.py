"""RepSelect: take the gradient that unlearns, without the directions that everything shares.

The gradient of forgetting, matrix by matrix, is mostly made of a few strong directions that other
knowledge uses too: following them harms it, and further training on anything restores what they
carried. RepSelect flattens them: along each of the strongest principal directions, on the side of
what a matrix reads and on that of what it writes, the gradient is divided by how much stronger than
the weakest of them it is. What is left is a small step in many directions particular to the forget
set. One step, no retain data:

1. adapters at the MLPs learn the forget answers for one pass (so that the gradient is that of a
   model on which they are vivid);
2. with the adapters in place, the gradient of the answers' log-probability is summed over the
   forget set for each MLP matrix; the adapters are thrown away;
3. the sums are flattened and subtracted from the weights, scaled. Dose 1 is the scale at which the
   model's predictions on ordinary prose have moved by ``budget`` (the published stop rule); other
   doses multiply it.

What departs from the reference code: the number of flattened directions is at most half of what a
gradient has at all, which on small forget sets are fewer than 512 (dividing by the size of
directions that are rounding noise would leave nothing but noise); the scale is solved for instead
of being walked to at a learning rate; only tokens that tell the answer count.

Fails with :class:`~safeedit.errors.EditError` where the gradient is zero or no scale moves prose.

Source: Sondej et al., "RepSelect", 2026 (arXiv 2606.17168), soft collapse on both sides; 512
directions, one pass of SGD at 0.01 for adapters of rank 8, KL 0.01.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

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
from safeedit.delta import Dense, Update
from safeedit.errors import EditError
from safeedit.methods.adapters import adapters
from safeedit.methods.answers import told_answers
from safeedit.methods.scaled import proposal_of
from safeedit.methods.training import WholeTensors
from safeedit.methods.tuning import BaseAnswers, Example, answer_states, cross_entropy
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_ROLES = ("mlp_gate", "mlp_up", "mlp_gate_up", "mlp_out")
_RANK = 8
"""Of the adapters, whose alpha is as large (published)."""
_NOISE = 1e-5
"""Share of a gradient's greatest singular value below which one is rounding."""
_PROSE_TEXTS, _PROSE_TOKENS = 16, 64
"""Ordinary text on which the scale is found."""
_DOUBLINGS, _HALVINGS = 30, 5
"""Of the search for it."""


class RepSelectParams(BaseParams):
    """Parameters of RepSelect."""

    layers: Layers = Field("0%-100%", description="layers whose MLPs are changed")
    directions: int = Field(
        512, ge=1, description="strongest directions of each gradient that are flattened, at most"
    )
    learning_rate: float = Field(
        0.01, gt=0, description="at which adapters first learn the answers"
    )
    batch: int = Field(8, ge=1, description="forget prompts per step")
    budget: float = Field(
        0.01, gt=0, description="KL from the base on ordinary prose at dose 1, nats per token"
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0, 4.0), min_length=1, description="multiples of that scale, ascending"
    )


class RepSelect:
    """See the module's docstring."""

    Params = RepSelectParams
    summary: ClassVar[str] = "one unlearning step along directions particular to the forget set"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries: at the smallest dose 0.583 are told and 0.333 of near "
        "answers stay right, perplexity ratio 1.01."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "questions whose answers are to go", erased=True, answered=True),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: RepSelectParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The matrices of the chosen layers' MLPs; no bias."""
        layers = resolve(self.params.layers, model.n_layers)
        return [t for role in _ROLES if role in model.roles for t in model.tensors(role, layers)]

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens read and trained on, roughly, for ``plan``."""
        return 3 * 50 * len(data["forget"].phrasings("fit"))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find direction and scale; offer it in several strengths."""
        params = self.params
        wanted = {plan.name for plan in self.touches(model.shape)}
        sites = [site for site in model.matrices() if site.weight in wanted]
        told, own = told_answers(model, data["forget"], ctx.progress)
        raised = self._raised(model, sites, told, ctx)
        changes = dict[str, Tensor]()
        for name in ctx.progress(list(raised), "flattening gradients", len(raised)):
            changes[name] = -flattened(raised.pop(name), params.directions, ctx.seed)
        texts = model.engine.encode(
            [item.prompt for item in data["prose"].items("fit")[:_PROSE_TEXTS]], "plain"
        )
        prose = [Example(ids[:1], ids[1 : 1 + _PROSE_TOKENS]) for ids in texts if len(ids) > 1]
        scale, moved = _scale(model, changes, prose, params.budget, ctx)

        def updates(dose: float) -> dict[str, Update]:
            return {name: Dense(change * (scale * dose)) for name, change in changes.items()}

        notes = {"prompts": len(told), "in_own_words": own, "scale": scale, "prose_kl": moved}
        return proposal_of("repselect", params, data["forget"], ctx, model.digest(), updates, notes)

    def _raised(
        self, model: ModelHandle, sites: Sequence[Site], told: Sequence[Example], ctx: RunContext
    ) -> dict[str, Tensor]:
        """Name of a matrix -> ``(out, in)`` gradient of forgetting, on a model that has been
        reminded of the answers."""
        order = random.Random(ctx.seed).sample(list(told), len(told))
        size = self.params.batch
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rate = self.params.learning_rate
        with _reminded(model, sites, ctx.seed) as (matrices, adapted):
            for batch in ctx.progress(batches, "recalling what is to go", len(batches)):
                cross_entropy(model, answer_states(model, batch), batch).backward()
                with torch.no_grad():
                    for parameter in adapted:
                        assert parameter.grad is not None
                        parameter.sub_(rate * parameter.grad)
                        parameter.grad = None
            for parameter in adapted:
                parameter.requires_grad_(False)
            for matrix in matrices.values():
                matrix.requires_grad_(True)
            for batch in ctx.progress(batches, "the gradient of forgetting", len(batches)):
                (-cross_entropy(model, answer_states(model, batch), batch)).backward()
            turned = model.shape.transposed
            found = dict[str, Tensor]()
            for name, matrix in matrices.items():
                assert matrix.grad is not None
                grad = matrix.grad.T if name in turned else matrix.grad
                found[name] = grad.float().cpu().clone()
        return found


@contextmanager
def _reminded(
    model: ModelHandle, sites: Sequence[Site], seed: int
) -> Iterator[tuple[dict[str, nn.Parameter], Sequence[nn.Parameter]]]:
    """The model's matrices in fp32, frozen, and adapters beside them that learn."""
    names = [site.weight for site in sites]
    with (
        WholeTensors(model, names).put() as parameters,
        adapters(model, sites, rank=_RANK, alpha=_RANK, seed=seed) as made,
    ):
        yield dict(zip(names, parameters, strict=True)), made.trained


def flattened(gradient: Tensor, most: int, seed: int = 0) -> Tensor:
    """A gradient ``(out, in)`` with its strongest directions made as weak as the weakest of them,
    and as weak again: each singular value ``s`` of the first ``n`` becomes ``s_n^2 / s``.

    Args:
        gradient: Of one matrix.
        most: Directions, at most half of those that are no rounding noise.
        seed: Of the randomised decomposition that large matrices get.

    Raises:
        EditError: It is zero.
    """
    small = min(gradient.shape)
    if 4 * most < small:
        torch.manual_seed(seed)
        left, values, right = torch.svd_lowrank(gradient, q=2 * most, niter=2)
    else:
        left, values, turned = torch.linalg.svd(gradient, full_matrices=False)
        right = turned.T
    if not float(values[0]) > 0:
        raise EditError(
            "the forget answers have no gradient in a matrix: nothing can be unlearnt there",
            remedy="name other 'layers'",
        )
    count = max(1, min(most, int((values > _NOISE * values[0]).sum()) // 2))
    left, values, right = left[:, :count], values[:count], right[:, :count]
    change: Tensor = (left * (values[-1] ** 2 / values - values)) @ right.T
    return gradient + change


@torch.no_grad()
def _scale(
    model: ModelHandle,
    changes: Mapping[str, Tensor],
    prose: Sequence[Example],
    budget: float,
    ctx: RunContext,
) -> tuple[float, float]:
    """How many times the change can be made before predictions on prose have moved by ``budget``,
    and by how much they have moved then, nats per token."""
    base = BaseAnswers(model, prose, ctx.progress)
    size = math.sqrt(math.fsum(float((change**2).sum()) for change in changes.values()))
    whole = math.sqrt(
        math.fsum(float((model.oriented(name).float() ** 2).sum()) for name in changes)
    )

    def moved(scale: float) -> float:
        rewrites = {name: partial(_plus, change, scale) for name, change in changes.items()}
        with model.rewritten(rewrites):
            return float(base.divergence(answer_states(model, prose), prose))

    below, above = 0.0, 1e-4 * whole / size
    for _ in ctx.progress(range(_DOUBLINGS), "finding the scale", _DOUBLINGS):
        if not moved(above) < budget:
            break
        below, above = above, 2 * above
    else:
        raise EditError(
            "no change along the flattened gradient moves ordinary prose",
            remedy="flatten fewer 'directions'",
        )
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if moved(middle) < budget else (below, middle)
    return below or above, moved(below or above)


def _plus(change: Tensor, scale: float, weight: Tensor) -> Tensor:
    return weight.float() + scale * change.to(weight.device)
