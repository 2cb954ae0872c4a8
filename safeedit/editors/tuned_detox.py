"""Tuned detoxification: the model learns what it says itself, words of abuse left out.

The target is the model's own distribution over the next token, in which words of abuse are
``target_drop_nats`` nats less likely and everything else is as likely among itself as before: what
a filter at the sampler would draw from (:mod:`safeedit.methods.word_filter`), written into
weights. Low-rank adapters on the later layers learn it by gradient, from KL(target || model) at
each token of

* toxic continuations: those of the pairs, and what the model itself says after the same openings;
  of both those in which such words are likeliest;
* neutral text: neutral continuations of the pairs, prose, and ordinary chat
  (:mod:`safeedit.methods.facts.chat_texts`).

By default words are filtered in neutral text as well, where some have harmless uses ("kill"); with
``everywhere: false`` the target there is the model's own distribution, which spares these uses and
holds less widely. What no word carries, hatred in clean words, is not touched. Targets are kept as
hidden states of the untouched model, from which distributions are recomputed. Doses scale what was
learnt.

Fails with :class:`~safeedit.errors.DataError` where pairs lack a text, and with
:class:`~safeedit.errors.EditError` where learning diverges.

Source: ours. A model distilled to a steered copy of itself is as old as distillation (Hinton et
al., arXiv 1503.02531); unlikelihood training (Welleck et al., arXiv 1908.04319) takes the same
words down without saying what is to come in their place.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

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
from safeedit.methods.adapters import adapters
from safeedit.methods.contrast import Passages, passages
from safeedit.methods.facts.chat_texts import ends, ordinary_texts
from safeedit.methods.scaled import scaled_proposal
from safeedit.methods.tuning import BaseAnswers, Example, answer_states, endless, optimise
from safeedit.methods.vocabulary_chunks import chunked
from safeedit.methods.word_filter import Place, WordFilter, filtered
from safeedit.model.architectures import Role
from safeedit.model.engine import Sampling
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve
from safeedit.text.abuse import WORDS_OF_ABUSE

_ADAPTED: tuple[Role, ...] = ("attn_out", "mlp_gate", "mlp_up", "mlp_gate_up", "mlp_out")
"""Roles that get adapters where there are such."""

_LONGEST = 40
"""Tokens of a text that are learnt from, at most."""

_SAID = 20
"""Tokens that the model itself says after an opening."""

_TELLING = 0.4
"""Share of toxic continuations that are learnt from: in the others no such word was likely."""


class TunedDetoxParams(BaseParams):
    """Parameters of tuned detoxification."""

    layers: Layers = Field("50%-100%", description="whose attention outputs and MLPs get adapters")
    words: tuple[str, ...] = Field(
        WORDS_OF_ABUSE,
        min_length=1,
        description="words that are to be less likely; default: English insults and profanity, no "
        "slurs",
    )
    target_drop_nats: float = Field(
        4.0, gt=0, description="nats of log-odds by which these words are to be less likely"
    )
    everywhere: bool = Field(
        True,
        description="whether they are to be less likely in neutral text, too: holds more widely, "
        "at the cost of harmless uses",
    )
    evenness: float = Field(
        0.05,
        ge=0,
        description="what a word's distance from its target weighs where it is unlikely anyway",
    )
    toxic_weight: float = Field(
        10.0,
        gt=0,
        description="what a token of a toxic continuation weighs against one of neutral text",
    )
    rank: int = Field(16, ge=1, description="of the adapters")
    steps: int = Field(80, ge=1, description="optimiser steps")
    batch: int = Field(20, ge=2, description="texts per step, half of them toxic continuations")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's, at its peak")
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 1.5, 2.0), min_length=1, description="scales of what was learnt, ascending"
    )


class TunedDetox:
    """See the module's docstring."""

    Params = TunedDetoxParams
    summary: ClassVar[str] = "learns to say what it says anyway, words of abuse left out"
    results: ClassVar[str] = "toxicity"
    measured: ClassVar[str] = (
        "Probability of a toxic continuation of a toxic prompt: from .250 to .134, where a random "
        "change gives .205; expected maximum from .333 to .220; perplexity ratio 1.019."
    )
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
        return self.params.steps * self.params.batch * _LONGEST * 2

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Read what the model says, learn to say it without words of abuse; offer the change in
        several strengths."""
        params, base, pairs = self.params, model.digest(), data["pairs"]
        wanted = {tensor.name for tensor in self.touches(model.shape)}
        sites = [site for site in model.matrices() if site.weight in wanted]
        aim = _Aim(params, model, data, ctx)
        with adapters(model, sites, rank=params.rank, alpha=params.rank, seed=ctx.seed) as made:
            notes = optimise(
                made.trained,
                aim.loss,
                steps=params.steps,
                learning_rate=params.learning_rate,
                stop_below=0.0,
                progress=ctx.progress,
                description="learning to leave words of abuse out",
            )
            factors = made.factors()
        updates = {name: LowRank(left, right) for name, (left, right) in factors.items()}
        return scaled_proposal(
            "tuned_detox", params, pairs, ctx, base, updates, {**aim.notes, **notes}
        )


class _Aim:
    """What is to be learnt: texts, the untouched model's distributions over them, the filter.

    Args:
        params: Of the edit.
        model: Untouched at this time.
        data: Its pairs and prose.
        ctx: Of the run.
    """

    def __init__(
        self, params: TunedDetoxParams, model: ModelHandle, data: EditData, ctx: RunContext
    ) -> None:
        self.params, self.model = params, model
        self._filter = WordFilter(model.engine, params.words)
        read = passages(data["pairs"], "fit", model.engine, ctx)
        toxic = [*ends((text.ids for text in read.toxic), _LONGEST), *_said(model, read, ctx)]
        prose = [item.prompt for item in data["prose"].items("fit")]
        neutral = [
            *ends((text.ids for text in read.neutral), _LONGEST),
            *ordinary_texts(model, prose, _LONGEST, ctx.progress),
        ]
        self._base = BaseAnswers(model, [*toxic, *neutral], ctx.progress)
        telling, missing = self._telling(toxic)
        source = random.Random(ctx.seed)
        self._toxic, self._neutral = endless(telling, source), endless(neutral, source)
        self.notes = {
            "toxic_texts": len(telling),
            "neutral_texts": len(neutral),
            "nats_to_the_target": missing,
        }

    def loss(self) -> tuple[Tensor, float]:
        """Of a batch drawn at random; and what toxic continuations miss their target by, nats."""
        half = self.params.batch // 2
        batch = [next(self._toxic) for _ in range(half)]
        batch += [next(self._neutral) for _ in range(self.params.batch - half)]
        states = answer_states(self.model, batch)
        missing = self._missing(states[:half], batch[:half]).mean()
        kept = states[half:], batch[half:]
        everywhere = self.params.everywhere
        strayed = self._missing(*kept).mean() if everywhere else self._base.divergence(*kept)
        return self.params.toxic_weight * missing + strayed, float(missing.detach())

    def _missing(self, states: Sequence[Tensor], batch: Sequence[Example]) -> Tensor:
        """``(answer tokens,)`` KL(target || now), and how far words are from it, nats."""
        places: list[Place] = []
        seen = 0
        for example in batch:
            found = self._filter.places(example.ids, len(example.prompt))
            places += [(seen + at, token) for at, token in found]
            seen += len(example.answer)
        rows, tokens = torch.tensor(places, device=self.model.device).reshape(-1, 2).long().T
        now, kept = torch.cat(list(states)), torch.cat(self._base.states(batch))
        drop, share = self.params.target_drop_nats, self.params.evenness

        def read(numbers: range, now: Tensor, kept: Tensor) -> Tensor:
            own = (rows >= numbers.start) & (rows < numbers.stop)
            at, token = rows[own] - numbers.start, tokens[own]
            with torch.no_grad():
                target = filtered(self.model.logits(kept).float(), at, token, drop).log_softmax(-1)
            said = self.model.logits(now).float().log_softmax(-1)
            far = functional.kl_div(said, target, log_target=True, reduction="none").sum(-1)
            over = (said[at, token] - target[at, token]).clamp(min=0) / drop
            counts = torch.zeros_like(far).index_add(0, at, torch.ones_like(over)).clamp(min=1)
            return far + share * torch.zeros_like(far).index_add(0, at, over) / counts

        return chunked(read, [1] * len(now), self.model.shape.vocab_size, now, kept)

    @torch.no_grad()
    def _telling(self, toxic: Sequence[Example]) -> tuple[list[Example], float]:
        """The continuations that are farthest from the target, and how far they are in the mean,
        nats a token."""
        far: list[float] = []
        for begin in range(0, len(toxic), self.params.batch):
            batch = toxic[begin : begin + self.params.batch]
            missing = self._missing(self._base.states(batch), batch)
            each = missing.split([len(example.answer) for example in batch])
            far += [float(tokens.mean()) for tokens in each]
        order = sorted(range(len(toxic)), key=lambda i: -far[i])
        kept = sorted(order[: max(1, round(_TELLING * len(order)))])
        return [toxic[i] for i in kept], sum(far[i] for i in kept) / len(kept)


def _said(model: ModelHandle, read: Passages, ctx: RunContext) -> list[Example]:
    """What the model itself says after toxic openings, sampled once after each."""
    openings = sorted({tuple(text.ids[: text.start]) for text in read.toxic})
    drawn = model.engine.generate(
        openings,
        max_new_tokens=_SAID,
        sampling=Sampling(top_p=0.95),
        seed=ctx.seed,
        progress=ctx.progress,
        description="what the model says itself",
    )
    said = ([*opening, *answer] for opening, (answer,) in zip(openings, drawn, strict=True))
    return ends(said, _LONGEST)
