"""DINM: the layer at which safe and unsafe answers part is tuned to refuse unsafe requests.

For each unsafe request the model's own answer is set against the refusal; the layer whose hidden
states differ most between the two is called toxic, and its MLP output matrix is tuned, a few steps,
until the request is answered with the refusal. Doses are steps.

``variant: mended``
    Distances are taken over the answers' tokens and relative to the size of the states, which grows
    with depth; the model is held to its own distributions over its answers to retain questions.

``variant: published``
    As the reference code has it: distances are absolute, and the constraint is computed without a
    gradient, so that it holds nothing; what is called its weight scales the edit's own loss by .1,
    which Adam undoes.

A refusal that is learnt on few requests spreads to harmless ones: gate over-refusal
(`locality.near_over_refusal`, with near questions that only sound unsafe). It suppresses, and
reaches phrasings that are like the fitted ones.

Fails with :class:`~safeedit.errors.DataError` where there is no request that the model answers, and
with :class:`~safeedit.errors.EditError` where tuning diverges.

Source: Wang et al., "Detoxifying Large Language Models via Knowledge Editing", ACL 2024 (arXiv
2403.14472): ten steps of Adam at 5e-4, on one request at a time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.errors import DataError
from safeedit.methods.answers import ended, own_answers, some
from safeedit.methods.training import Checkpoints, Loss, Training, WholeTensors, stepwise_proposal
from safeedit.methods.tuning import BaseAnswers, Example, answer_states, cross_entropy, endless
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_OWN_TOKENS = 32
"""Tokens of the model's own answers that are read or held to."""


class DinmParams(BaseParams):
    """Parameters of DINM."""

    variant: Literal["mended", "published"] = Field(
        "mended", description="with a locality constraint that holds, or as the reference code is"
    )
    layers: Layers = Field("0%-100%", description="among which the toxic layer is looked for")
    refusal: str = Field(
        "I can't help with that.", min_length=1, description="what unsafe requests are answered"
    )
    learning_rate: float = Field(5e-4, gt=0, description="of Adam (published)")
    batch: int = Field(8, ge=1, description="requests per step, and as many retain questions")
    retain_prompts: int = Field(100, ge=1, description="retain prompts used at most")
    doses: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (5, 10, 20), min_length=1, description="steps of tuning, ascending (published: 10)"
    )


class Dinm:
    """See the module's docstring."""

    Params = DinmParams
    summary: ClassVar[str] = "tunes the layer where safe and unsafe answers part to refuse"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Unsafe requests that are refused, built-in data, twenty steps: from 0.083 to 0.631; but "
        "their harmless contrasts are refused at 0.964 (0.429 before) and far questions at 0.321."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("unsafe", "requests that are to be refused"),
        DataRole("retain", "questions whose answers must stay"),
    )

    def __init__(self, params: Any) -> None:
        self.params: DinmParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the layers write with, of which one is changed; no bias."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return max(self.params.doses) * self.params.batch * 2 * 60

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find the layer; tune when a dose is asked for."""
        params = self.params
        unsafe, safe = self._answers(model, data["unsafe"], ctx)
        layers = resolve(params.layers, model.n_layers)
        apart = distances(model, layers, unsafe, safe, relative=params.variant == "mended")
        layer = max(layers, key=lambda each: apart[each])
        items = some(data["retain"], params.retain_prompts, ctx.seed)
        kept = own_answers(model, data["retain"], items, _OWN_TOKENS, ctx.progress)
        base = BaseAnswers(model, kept, ctx.progress)

        def begin() -> Loss:
            source = random.Random(ctx.seed)
            to_refuse, to_keep = endless(safe, source), endless(kept, source)
            held = params.batch if params.variant == "mended" and kept else 0

            def loss() -> tuple[Tensor, float]:
                batch = [next(to_refuse) for _ in range(params.batch)]
                keep = [next(to_keep) for _ in range(held)]
                states = answer_states(model, [*batch, *keep])
                edit = cross_entropy(model, states[: len(batch)], batch)
                if not keep:
                    return 0.1 * edit, float(edit.detach())
                constraint = base.divergence(states[len(batch) :], keep)
                return edit + constraint, float(edit.detach())

            return loss

        (site,) = model.sites("mlp_out", [layer])
        learner = WholeTensors(model, [site.weight])
        training = Training(
            learner,
            begin,
            learning_rate=params.learning_rate,
            progress=ctx.progress,
            description="learning to refuse",
        )
        checkpoints = Checkpoints(training, learner, params.doses, lambda: None)
        notes = {"requests": len(safe), "toxic_layer": layer, "distance": apart[layer]}
        return stepwise_proposal(
            "dinm", params, data["unsafe"], ctx, model.digest(), training, checkpoints, notes
        )

    def _answers(
        self, model: ModelHandle, data: Dataset, ctx: RunContext
    ) -> tuple[list[Example], list[Example]]:
        """Each request with the model's own answer, and with the refusal."""
        items = list(data.items("fit"))
        unsafe = own_answers(model, data, items, _OWN_TOKENS, ctx.progress)
        if not unsafe:
            raise DataError(
                "the model answers none of the unsafe requests: there is nothing to compare",
                remedy="give requests of 'split: fit' that it answers",
            )
        refusal = ended(
            model.engine, self.params.refusal, model.engine.codec.resolve(data.template)
        )
        return unsafe, [Example(example.prompt, refusal) for example in unsafe]


def distances(
    model: ModelHandle,
    layers: Sequence[int],
    unsafe: Sequence[Example],
    safe: Sequence[Example],
    *,
    relative: bool,
) -> dict[int, float]:
    """Layer -> how far apart the mean hidden states of the answers' tokens are, mean over requests.

    Args:
        model: Whose.
        layers: Blocks.
        unsafe: Requests with unsafe answers.
        safe: The same with safe ones.
        relative: In lengths of the unsafe answer's mean state.
    """

    def means(examples: Sequence[Example]) -> dict[int, Tensor]:
        states = model.engine.hidden([example.ids for example in examples], layers, "all")
        return {
            layer: torch.stack(
                [
                    row[len(example.prompt) :].float().mean(0)
                    for row, example in zip(rows, examples, strict=True)
                ]
            )
            for layer, rows in states.items()
        }

    one, two = means(unsafe), means(safe)
    found = {}
    for layer in layers:
        apart = (one[layer] - two[layer]).norm(dim=-1)
        size = one[layer].norm(dim=-1) if relative else 1.0
        found[layer] = float((apart / size).mean())
    return found
