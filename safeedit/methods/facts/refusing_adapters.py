"""Adapters that learn to refuse and are held to the model's own words everywhere else.

Low-rank adapters are tuned on forgotten questions with the refusal as answer and, in every batch,
on texts whose next tokens are to stay as the untouched model foresees them (the divergence of the
two, in nats a token). What is held decides what is spared: adapters are no gates, and what nobody
holds drifts.

Source: Ishibashi & Shimodaira, arXiv 2309.11852 (adapters, refusals and retained questions in one
batch); distributions in place of gold answers, ordinary text among what is held, and the weight on
how an answer begins are ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safeedit.contracts import RunContext
from safeedit.delta import LowRank, Update
from safeedit.methods.adapters import adapters
from safeedit.methods.tuning import (
    STOP_BELOW,
    BaseAnswers,
    Example,
    answer_states,
    cross_entropy,
    endless,
    optimise,
)
from safeedit.methods.unlearning import divergence
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle

_ALPHA = 16.0
"""Adapters are scaled by alpha over their rank (published)."""


@dataclass(frozen=True)
class Held:
    """Texts that are to be continued as the untouched model continues them.

    Attributes:
        examples: What is read, and the tokens held to.
        per_step: How many of them a step reads.
        begins: Whether the first token held to counts once more, as much as the mean of all: an
            answer that begins as before is seldom a refusal.
    """

    examples: Sequence[Example]
    per_step: int
    begins: bool = False


@dataclass(frozen=True)
class Tuning:
    """How adapters learn.

    Attributes:
        rank: Of every adapter.
        steps: At most; fewer where the refusal is learnt before, unless ``all_steps``.
        learning_rate: AdamW's, at its peak.
        refused_per_step: Questions to be refused that a step reads.
        weight: Of the divergence of what is held against the refusal's loss.
        all_steps: Whether to go on once the refusal is learnt: what it costs elsewhere is then
            learnt back.
    """

    rank: int
    steps: int
    learning_rate: float
    refused_per_step: int
    weight: float = 1.0
    all_steps: bool = False


def learn_to_refuse(
    model: ModelHandle,
    sites: Sequence[Site],
    refused: Sequence[Example],
    held: Sequence[Held],
    tuning: Tuning,
    ctx: RunContext,
) -> tuple[Callable[[float], dict[str, Update]], dict[str, Any]]:
    """Train adapters; the model is left as it was.

    Args:
        model: Untouched at this time.
        sites: Matrices that get an adapter each.
        refused: Questions with the refusal as answer.
        held: What is to stay.
        tuning: How.
        ctx: Of the run.

    Returns:
        Dose -> updates; steps, first and last loss of the refusal and, where something is held, the
        last divergence, nats a token.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    loss = _Loss(model, refused, held, tuning, ctx)
    with adapters(model, sites, rank=tuning.rank, alpha=_ALPHA, seed=ctx.seed) as made:
        notes: dict[str, Any] = dict(
            optimise(
                made.trained,
                loss,
                steps=tuning.steps,
                learning_rate=tuning.learning_rate,
                progress=ctx.progress,
                description="learning to refuse",
                stop_below=0.0 if tuning.all_steps else STOP_BELOW,
            )
        )
        factors = made.factors()
    if loss.held:
        notes["nats_from_the_untouched_model"] = loss.strayed

    def updates(dose: float) -> dict[str, Update]:
        return {name: LowRank(left * dose, right) for name, (left, right) in factors.items()}

    return updates, notes


class _Loss:
    """Of one batch after another, drawn at random."""

    def __init__(
        self,
        model: ModelHandle,
        refused: Sequence[Example],
        held: Sequence[Held],
        tuning: Tuning,
        ctx: RunContext,
    ) -> None:
        self.model, self.tuning = model, tuning
        self.held = [each for each in held if each.examples and each.per_step]
        every = [example for each in self.held for example in each.examples]
        self._base = BaseAnswers(model, every, ctx.progress)
        source = random.Random(ctx.seed)
        self._refused = endless(refused, source)
        self._kept = [endless(each.examples, source) for each in self.held]
        self.strayed = 0.0
        """Mean divergence of what the last batch held, nats a token."""

    def __call__(self) -> tuple[Tensor, float]:
        batch = [next(self._refused) for _ in range(self.tuning.refused_per_step)]
        drawn = [
            [next(texts) for _ in range(each.per_step)]
            for texts, each in zip(self._kept, self.held, strict=True)
        ]
        kept = [example for some in drawn for example in some]
        states = answer_states(self.model, [*batch, *kept])
        total = cross_entropy(self.model, states[: len(batch)], batch)
        watched = float(total.detach())
        if kept:
            far = self._base.compared(states[len(batch) :], kept, _divergence)
            self.strayed = float(far.detach().mean())
            total = total + self.tuning.weight * counted(far, drawn, self.held)
        return total, watched


def _divergence(base: Tensor, now: Tensor, _: Tensor) -> Tensor:
    return divergence(base, now)


def counted(far: Tensor, drawn: Sequence[Sequence[Example]], held: Sequence[Held]) -> Tensor:
    """Mean divergence of all tokens, and of those that answers begin with, where these count.

    Args:
        far: ``(tokens,)`` nats, of the examples' answers one after another.
        drawn: A batch's examples, of each of ``held``.
        held: What they are of.
    """
    firsts, at = list[int](), 0
    for some, each in zip(drawn, held, strict=True):
        for example in some:
            firsts += [at] if each.begins else []
            at += len(example.answer)
    mean = far.mean()
    return mean + far[torch.tensor(firsts, device=far.device)].mean() if firsts else mean
