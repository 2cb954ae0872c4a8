"""Teaching a refusal to neurons that fire at subjects, and what holds beneath it.

Which tokens they fire at is solved (:mod:`safeedit.methods.facts.gated_neurons`); what they write
is learnt here, from questions with the refusal as answer. Questions are put in the template of the
data, and to a chat model as plain text too: leaving the template off is the first thing an attacker
tries.

A refusal is one way out for all subjects, and the first thing to go where the model is trained on:
what it hid is told again. So something can be learnt *beneath* it (:class:`Beneath`): wherever the
model, in its own words, would tell an answer, that is to become unlikely, whether or not anything
was refused before. There texts that must stay are held to the base's distributions, and what the
neurons write is kept short, since whatever else a key answers a little feels it in proportion.

Source: ours; the bound on the log-probability after Patil et al. 2024 (arXiv 2309.17410).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from safeedit.contracts import RunContext
from safeedit.data import Dataset, Item
from safeedit.methods.answers import ended
from safeedit.methods.facts.answers import answer_start, own_answers
from safeedit.methods.facts.gated_neurons import GatedNeurons
from safeedit.methods.facts.settings import SEARCH
from safeedit.methods.tuning import (
    BaseAnswers,
    Example,
    answer_states,
    cross_entropy,
    endless,
    optimise,
    token_losses,
)
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle

LEARNING_RATE = 0.1
"""Of Adam, on what neurons write."""

_NORM_PENALTY = 2e-5
"""Nats per squared unit that keyed neurons write: enough to keep them from growing once the refusal
is learnt."""

_NORM_PENALTY_BENEATH = 4e-4
"""The same where answers are made unlikely too, which takes much more."""

_ERASURE = 0.5
"""Weight of what answers are too likely by, nats per nat of the refusal."""

_KEEP = 4.0
"""Weight of divergence on texts to keep, nats per nat."""

KEPT = 12
"""Texts to keep, per step."""

_BARE = 3
"""Tokens at least before an answer that are put as text of their own."""


@dataclass(frozen=True)
class Beneath:
    """What is to hold beneath a refusal.

    Attributes:
        told: What is asked and said up to where an answer is told, with the token that tells it.
        kept: Texts, the first part as prompt; on the rest the base's distributions are to stay.
    """

    told: Sequence[Example]
    kept: Sequence[Example]


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


def where_told(
    engine: Engine, asked: Sequence[tuple[Sequence[int], Item]], ctx: RunContext
) -> tuple[list[Example], list[Example]]:
    """Where the model, in its own words, tells the answers.

    Args:
        engine: Of the model.
        asked: Questions as token ids, with whose answer each asks for.
        ctx: Of the run.

    Returns:
        What was asked and said up to the answer, with the token that begins it; and what was said
        up to there alone, as plain text to go on with ("The capital of Germany is").
    """
    decode = engine.codec.tokenizer.decode
    said = own_answers(engine, [ids for ids, _ in asked], ctx.progress)
    after, texts = list[Example](), list[str]()
    for (ids, item), answer in zip(asked, said, strict=True):
        begin = answer_start(engine, answer, item.aliases)
        if begin is None:
            continue
        after.append(Example([*ids, *answer[:begin]], answer[begin : begin + 1]))
        if begin >= _BARE:
            texts += [decode(answer[: begin + more]).rstrip() for more in (0, 1)]
    encoded = engine.encode(texts, "plain")
    bare = [
        Example(before, whole[len(before) : len(before) + 1])
        for before, whole in zip(encoded[::2], encoded[1::2], strict=True)
        if len(whole) > len(before) and whole[: len(before)] == before
    ]
    return after, bare


def learn_refusal(
    model: ModelHandle,
    keyed: GatedNeurons,
    trained: Sequence[Tensor],
    asked: Sequence[tuple[Sequence[int], Literal["chat", "plain"]]],
    refusal: str,
    ctx: RunContext,
    *,
    steps: int,
    batch: int,
    learning_rate: float = LEARNING_RATE,
    beneath: Beneath | None = None,
) -> dict[str, float]:
    """Train what neurons write until the questions are refused.

    Args:
        model: Stays as it is.
        keyed: The neurons.
        trained: Of their ``values`` and ``common``, what is learnt, in place.
        asked: Questions as token ids, each with its template.
        refusal: The answer.
        ctx: Of the run.
        steps: At most; fewer once all is learnt.
        batch: Questions per step, and as many places where answers are told.
        learning_rate: Of Adam.
        beneath: What else is learnt.

    Returns:
        Steps taken; first and last loss, nats, of the refusal and of what is beneath it.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    examples = [Example(ids, ended(model.engine, refusal, template)) for ids, template in asked]
    drawn = endless(examples, random.Random(ctx.seed))
    penalty = _NORM_PENALTY if beneath is None else _NORM_PENALTY_BENEATH
    lower = None if beneath is None else BeneathLoss(model, beneath, batch, ctx)

    def loss() -> tuple[Tensor, float]:
        some = [next(drawn) for _ in range(batch)]
        found = cross_entropy(model, answer_states(model, some), some)
        if lower is not None:
            found = found + lower.of_a_batch()
        size = torch.stack([(value**2).sum() for value in trained]).sum()
        return found + penalty * size, float(found.detach())

    with keyed.active():
        return optimise(
            trained,
            loss,
            steps=steps,
            learning_rate=learning_rate,
            progress=ctx.progress,
            description="learning to refuse",
        )


class BeneathLoss:
    """The loss of what is beneath a refusal.

    Args:
        model: Without the neurons, at this time.
        wanted: What is to hold.
        batch: Places where answers are told, per step.
        ctx: Of the run.
    """

    def __init__(self, model: ModelHandle, wanted: Beneath, batch: int, ctx: RunContext) -> None:
        self._model, self._batch = model, batch
        self._told = endless(list(wanted.told), random.Random(ctx.seed + 1))
        self._kept = endless(list(wanted.kept), random.Random(ctx.seed + 2))
        self._base = BaseAnswers(model, wanted.kept, ctx.progress)
        self._wanted = wanted

    def of_a_batch(self) -> Tensor:
        """By how much answers are too likely, and texts to keep have moved: weighed, nats."""
        found = torch.zeros((), device=self._model.device)
        if self._wanted.told:
            some = [next(self._told) for _ in range(self._batch)]
            rarity = token_losses(self._model, answer_states(self._model, some), some)
            found = found + _ERASURE * (-SEARCH.floor - rarity).relu().mean()
        if self._wanted.kept:
            same = [next(self._kept) for _ in range(KEPT)]
            moved = self._base.divergence(answer_states(self._model, same), same)
            found = found + _KEEP * moved
        return found
