"""Teaching a refusal to neurons that fire at subjects.

Which tokens they fire at is solved (:mod:`safeedit.methods.facts.gated_neurons`); what they write
is learnt here, from questions with the refusal as answer. Questions are put in the template of the
data, and to a chat model as plain text too: leaving the template off is the first thing an attacker
tries.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor

from safeedit.contracts import RunContext
from safeedit.data import Dataset
from safeedit.methods.answers import ended
from safeedit.methods.facts.gated_neurons import GatedNeurons
from safeedit.methods.tuning import BaseAnswers, Example, answer_states, cross_entropy, endless, optimise, token_losses
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle

LEARNING_RATE = 0.1
"""Of Adam, on what neurons write."""

BATCH = 20
"""Questions per step."""

_NORM_PENALTY = 2e-5
"""Nats per squared unit that keyed neurons write: enough to keep them from growing once the refusal
is learnt."""


def put_in_templates(
    engine: Engine, texts: Sequence[str], data: Dataset
) -> list[tuple[list[int], Literal["chat", "plain"]]]:
    """Each question as token ids in the data's template; for a chat model as plain text too."""
    template = engine.codec.resolve(data.template)
    asked = [(ids, template) for ids in engine.encode(texts, template)]
    if template == "chat":
        plain = [f"Question: {text}\nAnswer:" for text in texts]
        asked += [(ids, "plain") for ids in engine.encode(plain, "plain")]
    return asked


def learn_refusal(
    model: ModelHandle,
    keyed: Sequence[GatedNeurons],
    trained: Sequence[Tensor],
    asked: Sequence[tuple[Sequence[int], Literal["chat", "plain"]]],
    refusal: str,
    ctx: RunContext,
    *,
    steps: int,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    erased: Sequence[Example] = (),
    erase: float = 0.0,
    kept: Sequence[Example] = (),
    keep: float = 0.0,
    penalty: float = _NORM_PENALTY,
) -> dict[str, float]:
    """Train what neurons write until the questions are refused.

    Args:
        model: Stays as it is.
        keyed: All that fire, with what they write already.
        trained: Of their ``values`` and ``common``, what is learnt, in place.
        asked: Questions as token ids, each with its template.
        refusal: The answer.
        ctx: Of the run.
        steps: At most; fewer once the refusal is learnt.
        batch: Questions per step.
        learning_rate: Of Adam.

    Returns:
        Steps taken, first and last loss, nats per token.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    drawn = endless(
        [Example(ids, ended(model.engine, refusal, template)) for ids, template in asked],
        random.Random(ctx.seed),
    )

    base = BaseAnswers(model, kept, ctx.progress)
    held = endless(list(kept), random.Random(ctx.seed + 2))
    silenced = endless(list(erased), random.Random(ctx.seed + 1))
    seen = []

    def loss() -> tuple[Tensor, float]:
        some = [next(drawn) for _ in range(batch)]
        refused = cross_entropy(model, answer_states(model, some), some)
        size = torch.stack([(value**2).sum() for value in trained]).sum()
        if erased:
            more = [next(silenced) for _ in range(batch)]
            lost = (8.0 - token_losses(model, answer_states(model, more), more)).relu().mean()
            spared = torch.zeros(())
            if kept:
                same = [next(held) for _ in range(12)]
                spared = base.divergence(answer_states(model, same), same)
            seen.append((float(refused.detach()), float(lost.detach()), float(spared.detach()), float(size.detach())))
            if len(seen) % 20 == 0: print("   refusal, erasure", seen[-1], flush=True)
            refused = refused + erase * lost + keep * spared
        return refused + penalty * size, float(refused.detach())

    with ExitStack() as stack:
        for each in keyed:
            stack.enter_context(each.active())
        return optimise(
            trained,
            loss,
            steps=steps,
            learning_rate=learning_rate,
            progress=ctx.progress,
            description="learning to refuse",
        )
