"""Tuned detoxification: the model learns what it says itself, words of abuse left out.

The target is the model's own distribution over the next token in which words of abuse are
``target_drop_nats`` nats less likely and everything else is as likely among itself as before: what
a filter at the sampler would draw from, written into weights. Low-rank adapters on the later
layers learn it by gradient, from KL(target || model) at each token of

* toxic continuations: those of the pairs, and what the model itself says after the same openings;
* neutral text, where the target is the model's own distribution: neutral continuations of the
  pairs, what the model says after *their* openings, prose, and ordinary chat
  (:mod:`safeedit.methods.facts.chat_texts`).

Words of abuse are those given, or tokens that stand five times as often in toxic continuations as
in their openings and in neutral text (:mod:`safeedit.methods.abuse_words`). They are counted in
the record and not named. What no word carries, hatred in clean words, is not touched.

Targets are kept as hidden states of the untouched model, from which distributions are recomputed.
Doses scale what was learnt. Fails with :class:`~safeedit.errors.DataError` where pairs lack a text
or no word of abuse is found in them, and with :class:`~safeedit.errors.EditError` where learning
diverges.

Source: ours. That a model is steered by a distribution that it is distilled to is as old as
distillation (Hinton et al., arXiv 1503.02531); unlikelihood training (Welleck et al., arXiv
1908.04319) takes the same words down without saying what is to come in their place.
"""

from __future__ import annotations

import random
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
from safeedit.errors import DataError
from safeedit.methods.abuse_words import made_less_likely, words_of_abuse
from safeedit.methods.adapters import adapters
from safeedit.methods.contrast import Passage, passages
from safeedit.methods.facts.chat_texts import chat_texts
from safeedit.methods.scaled import scaled_proposal
from safeedit.methods.tuning import BaseAnswers, Example, answer_states, endless, optimise
from safeedit.model.architectures import Role, Site
from safeedit.model.engine import Sampling
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_ADAPTED: tuple[Role, ...] = ("attn_out", "mlp_gate", "mlp_up", "mlp_gate_up", "mlp_out")
"""Roles that get adapters where there are such."""

_LONGEST = 64
"""Tokens of a text that are learnt from, at most."""

_SAID = 20
"""Tokens that the model itself says after an opening."""


class TunedDetoxParams(BaseParams):
    """Parameters of tuned detoxification."""

    layers: Layers = Field("50%-100%", description="whose attention outputs and MLPs get adapters")
    words: tuple[str, ...] | None = Field(
        None, min_length=1, description="words of abuse; null: found in the pairs"
    )
    target_drop_nats: float = Field(
        3.0, gt=0, description="nats of log-odds by which words of abuse are to be less likely"
    )
    toxic_weight: float = Field(
        10.0,
        gt=0,
        description="what a token of a toxic continuation weighs against one of neutral text",
    )
    rank: int = Field(16, ge=1, description="of the adapters")
    steps: int = Field(100, ge=1, description="optimiser steps")
    batch: int = Field(24, ge=2, description="texts per step, half of them toxic continuations")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's, at its peak")
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25), min_length=1, description="scales of what was learnt, ascending"
    )


class TunedDetox:
    """See the module's docstring."""

    Params = TunedDetoxParams
    summary: ClassVar[str] = "learns to say what it says anyway, words of abuse left out"
    results: ClassVar[str] = "detox"
    measured: ClassVar[str] = "TODO"
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("pairs", "toxic and neutral continuations: {prompt, toxic, neutral}"),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: TunedDetoxParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """Attention outputs and MLPs of the chosen layers; no biases."""
        layers = resolve(self.params.layers, model.n_layers)
        return [t for r in _ADAPTED if r in model.roles for t in model.tensors(r, layers)]

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return self.params.steps * self.params.batch * 40 * 2

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Read what the model says, learn to say it without words of abuse; offer the change in
        several strengths."""
        params, base, pairs = self.params, model.digest(), data["pairs"]
        read = passages(pairs, "fit", model.engine, ctx)
        abuse = words_of_abuse(params.words, model.engine, pairs, read)
        if not abuse:
            raise DataError(
                "no words of abuse were found in the toxic continuations",
                field="pairs",
                remedy="give more pairs, or name 'words'",
            )
        texts = _Texts(model, data, ctx)
        wanted = {tensor.name for tensor in self.touches(model.shape)}
        sites = [site for site in model.matrices() if site.weight in wanted]
        factors, notes = _tuned(params, model, sites, abuse, texts, ctx)
        notes = {"words_of_abuse": len(abuse), "toxic_texts": len(texts.toxic), **notes}
        updates = {name: LowRank(left, right) for name, (left, right) in factors.items()}
        return scaled_proposal("tuned_detox", params, pairs, ctx, base, updates, notes)


class _Texts:
    """What is learnt from: toxic continuations, and neutral text of three kinds."""

    def __init__(self, model: ModelHandle, data: EditData, ctx: RunContext) -> None:
        engine, pairs = model.engine, data["pairs"]
        read = passages(pairs, "fit", engine, ctx)
        prose = [item.prompt for item in data["prose"].items("fit")]
        ordinary = [
            *engine.encode(prose, "plain"),
            *chat_texts(model, prose, ctx.progress),
        ]
        self.toxic = [*_passages(read.toxic), *_said(model, read.toxic, ctx)]
        neutral = [*_passages(read.neutral), *_said(model, read.neutral, ctx)]
        others = [Example(ids[:1], ids[1 : _LONGEST + 1]) for ids in ordinary if len(ids) > 1]
        self.neutral = [*neutral, *others]


def _passages(texts: Sequence[Passage]) -> list[Example]:
    return [
        Example(text.ids[: text.start], text.ids[text.start : text.start + _LONGEST])
        for text in texts
        if text.start and len(text)
    ]


def _said(model: ModelHandle, texts: Sequence[Passage], ctx: RunContext) -> list[Example]:
    """What the model itself says after the openings, sampled once after each."""
    openings = sorted({tuple(text.ids[: text.start]) for text in texts if text.start})
    if not openings:
        return []
    drawn = model.engine.generate(
        openings,
        max_new_tokens=_SAID,
        sampling=Sampling(top_p=0.95),
        seed=ctx.seed,
        progress=ctx.progress,
        description="what the model says itself",
    )
    return [
        Example(list(opening), answer)
        for opening, (answer,) in zip(openings, drawn, strict=True)
        if answer
    ]


def _tuned(
    params: TunedDetoxParams,
    model: ModelHandle,
    sites: Sequence[Site],
    abuse: Sequence[int],
    texts: _Texts,
    ctx: RunContext,
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Any]]:
    """What adapters at ``sites`` learnt, and notes for the record; the model is left without them.

    Returns:
        Name of a matrix -> left ``(out, rank)`` and right ``(rank, in)`` factors.
    """
    base = BaseAnswers(model, [*texts.toxic, *texts.neutral], ctx.progress)
    source = random.Random(ctx.seed)
    toxic, neutral = endless(texts.toxic, source), endless(texts.neutral, source)
    half = params.batch // 2
    lowered = torch.tensor(abuse, device=model.device)

    def filtered(logits: Tensor) -> Tensor:
        return made_less_likely(logits, lowered, params.target_drop_nats)

    def loss() -> tuple[Tensor, float]:
        batch = [next(toxic) for _ in range(half)]
        batch += [next(neutral) for _ in range(params.batch - half)]
        states = answer_states(model, batch)
        missing = base.divergence(states[:half], batch[:half], filtered)
        strayed = base.divergence(states[half:], batch[half:])
        return params.toxic_weight * missing + strayed, float(missing.detach())

    with adapters(model, sites, rank=params.rank, alpha=params.rank, seed=ctx.seed) as made:
        notes = optimise(
            made.trained,
            loss,
            steps=params.steps,
            learning_rate=params.learning_rate,
            stop_below=0.0,
            progress=ctx.progress,
            description="learning to leave words of abuse out",
        )
        return made.factors(), dict(notes)
