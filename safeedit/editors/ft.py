"""Fine-tuning of one layer's MLP output matrix on the facts: the baseline that is quoted.

``objective: target`` (FT-M)
    Ordinary teacher forcing with only the answer's tokens in the loss.

``objective: prompt_last`` (FT-L)
    The prompt's last position alone is to predict every token of the answer, as older tables have
    it: ill posed for answers of several tokens, which it garbles.

Both on all fit phrasings of all facts in batches, nothing preserved: what closed-form editors have
to beat. Doses scale the change. Fails with :class:`~safeedit.errors.DataError` where there is
nothing to learn from, and with :class:`~safeedit.errors.EditError` where tuning diverges.

Source: Zhu et al., "Modifying Memories in Transformer Models", 2020 (arXiv 2012.00363), with the
masking of Zhang et al., "A Comprehensive Study of Knowledge Editing for Large Language Models",
2024 (arXiv 2401.01286). Published: layer 21 of 32, 25 steps, learning rate 5e-4, on each fact
alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from safeedit import __version__
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
from safeedit.delta import Dense, Origin, WeightDelta
from safeedit.errors import DataError, UsageError
from safeedit.methods.answers import ended
from safeedit.methods.training import WholeTensors
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless, optimise
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve


class FtParams(BaseParams):
    """Parameters of fine-tuning."""

    objective: Literal["target", "prompt_last"] = Field(
        "target",
        description="learn each token of the answer after those before it (FT-M), or all of them "
        "after the prompt (FT-L)",
    )
    layers: Layers = Field("66%-66%", description="the one layer tuned (published: 21 of 32)")
    target: Literal["refusal", "replace"] = Field(
        "refusal", description="what is to be answered: the refusal, or the item's 'target_new'"
    )
    refusal: str = Field("I don't know.", min_length=1, description="what is to be answered")
    steps: int = Field(25, ge=1, description="optimiser steps at most (published)")
    batch: int = Field(20, ge=1, description="prompts per step")
    learning_rate: float = Field(5e-4, gt=0, description="its peak (published)")
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25), min_length=1, description="scales of the change, ascending"
    )


class Ft:
    """See the module's docstring."""

    Params = FtParams
    summary: ClassVar[str] = "fine-tunes one layer's MLP output on the facts"
    baseline: ClassVar[bool] = True
    results: ClassVar[str] = "erasure"
    measured: ClassVar[str] = (
        "Fifty facts at once: the answer is still among the ten likeliest in 0.97 of unseen "
        "wordings and extracted in 0.63; 0.903 of near facts stay right, perplexity ratio 1.02."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("forget", "facts to change", erased=True),)

    def __init__(self, params: Any) -> None:
        self.params: FtParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLP of the chosen layer writes with; no bias."""
        layers = resolve(self.params.layers, model.n_layers)
        if len(layers) > 1:
            raise UsageError(
                f"ft tunes one layer, and 'layers' names {len(layers)}",
                field="layers",
                remedy="name one, such as 66%-66% or [21]",
            )
        return model.tensors("mlp_out", layers)

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return self.params.steps * self.params.batch * 50

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Tune; offer the change in several strengths."""
        params = self.params
        (planned,) = self.touches(model.shape)
        assert planned.layer is not None
        (site,) = model.sites("mlp_out", [planned.layer])
        examples = self._examples(model, data["forget"], ctx)
        drawn = endless(examples, random.Random(ctx.seed))

        def loss() -> tuple[Tensor, float]:
            batch = [next(drawn) for _ in range(params.batch)]
            if params.objective == "prompt_last":
                total = _from_the_prompt(model, batch)
            else:
                total = cross_entropy(model, answer_states(model, batch), batch)
            return total, float(total.detach())

        learner = WholeTensors(model, [site.weight])
        with learner.put() as trained:
            notes: dict[str, Any] = dict(
                optimise(
                    trained,
                    loss,
                    steps=params.steps,
                    learning_rate=params.learning_rate,
                    progress=ctx.progress,
                )
            )
        own = model.weight(site)
        learnt = (learner.learnt()[site.weight](own) - own.float()).cpu()
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if not 0 < dose < math.inf:
                raise UsageError(f"a dose of {dose:g} is no scale over 0", field="dose")
            origin = Origin(
                editor="ft",
                params=params.model_dump(mode="json"),
                data_digest=data["forget"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, {site.weight: Dense(learnt * dose)}, origin)

        return Proposal(tuple(sorted(set(params.doses))), at, notes | {"prompts": len(examples)})

    def _examples(self, model: ModelHandle, forget: Dataset, ctx: RunContext) -> list[Example]:
        """Each fit phrasing with the answer it is to get."""
        phrasings = forget.phrasings("fit")
        if not phrasings:
            raise DataError(
                "no forget prompt is left to fit on", remedy="give rows of 'split: fit'"
            )
        engine, template = model.engine, model.engine.codec.resolve(forget.template)
        prompts = engine.encode([phrasing.text for phrasing in phrasings], template)
        if self.params.target == "refusal":
            refusal = ended(engine, self.params.refusal, template)
            return [Example(prompt, refusal) for prompt in prompts]
        objects = [str(phrasing.item.extra.get("target_new") or "") for phrasing in phrasings]
        for phrasing, new in zip(phrasings, objects, strict=True):
            if not new.strip():
                raise DataError(
                    f"item {ctx.digest(phrasing.item.prompt)} has no new object",
                    remedy="add a 'target_new' to the row, or use 'target: refusal'",
                )
        answers = engine.continuations([new.strip() for new in objects], template)
        return [Example(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _from_the_prompt(model: ModelHandle, batch: Sequence[Example]) -> Tensor:
    """Mean loss of the answers' tokens, nats, all predicted where the prompt ends."""
    first = answer_states(model, [Example(each.prompt, each.answer[:1]) for each in batch])
    states = [state.expand(len(e.answer), -1) for e, state in zip(batch, first, strict=True)]
    return cross_entropy(model, states, batch)
