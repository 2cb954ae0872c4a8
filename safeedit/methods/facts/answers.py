"""What a model answers in its own words, and where in that an answer begins that is looked for.

The one place that knows how far to listen and what counts as a mention: an edit that is to make an
answer unlikely and a trace of where the answer comes from look at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.contracts import Progress, Template, silent
from safeedit.methods.causal_tracing import Read, TracedPrompt
from safeedit.model.engine import Engine
from safeedit.model.spans import TokenisedText

_TELLING = 24
"""Tokens of the model's own answer in which another one is looked for."""


def own_answers(
    engine: Engine, prompts: Sequence[Sequence[int]], progress: Progress = silent
) -> list[list[int]]:
    """What the model goes on with after each prompt, greedily, as token ids."""
    found = engine.generate(
        prompts,
        max_new_tokens=_TELLING,
        progress=progress,
        description="the model's own answers",
    )
    return [said for (said,) in found]


def answer_start(engine: Engine, said: Sequence[int], aliases: Sequence[str]) -> int | None:
    """Which token of what was said begins the first mention of one of the aliases.

    Args:
        engine: Of the model.
        said: Token ids of an answer.
        aliases: Spellings of the answer looked for; blank ones count for nothing.

    Returns:
        An index into ``said``; None where no alias is mentioned.
    """
    text = TokenisedText(engine.codec.tokenizer, said)
    spoken = [alias.strip() for alias in aliases if alias.strip()]
    return min((span[0] for alias in spoken for span in text.spans(alias)), default=None)


def digit_tokens(engine: Engine, said: Sequence[int], span: range) -> list[tuple[int, int, int]]:
    """The tokens of an answer that carry digits.

    Args:
        engine: Of the model.
        said: Token ids.
        span: Positions of the answer among them.

    Returns:
        ``(position, first, count)``: where the token stands in ``said``, which digit of the answer
        is its first, from 0, and how many it carries.
    """
    text = TokenisedText(engine.codec.tokenizer, said)
    found, before = [], 0
    for position in span:
        if count := sum(map(str.isdecimal, text.piece(position))):
            found.append((position, before, count))
            before += count
    return found


@dataclass(frozen=True)
class AnswerPosition:
    """A prompt up to where the model, in its own words, tells the answer.

    Attributes:
        prompt: What is asked and what the model says before the answer.
        token: That tells it.
    """

    prompt: TracedPrompt
    token: int


def told_answers(
    engine: Engine,
    asked: Sequence[tuple[str, str, Sequence[str]]],
    template: Template,
    *,
    progress: Progress = silent,
) -> list[AnswerPosition | None]:
    """Where the model tells each answer; None where it does not, or the subject is not named.

    Args:
        engine: Of the model.
        asked: Prompt, its subject, and spellings of the answer; without any, what the model says
            first is traced.
        template: How prompts are put.
        progress: Counts answers.
    """
    prompts = engine.encode([text for text, _, _ in asked], template)
    found: list[AnswerPosition | None] = []
    for (_, subject, aliases), ids, said in zip(
        asked, prompts, own_answers(engine, prompts, progress), strict=True
    ):
        if any(alias.strip() for alias in aliases):
            begin = answer_start(engine, said, aliases)
        else:
            begin = 0 if said else None
        if begin is None:
            found.append(None)
            continue
        whole = (*ids, *said[:begin])
        mentions = TokenisedText(engine.codec.tokenizer, whole).spans(subject)
        own = [span for span in mentions if span[-1] < len(ids)]
        drowned = tuple(sorted({place for span in mentions for place in span}))
        prompt = TracedPrompt(whole, own[-1], drowned) if own else None
        found.append(None if prompt is None else AnswerPosition(prompt, said[begin]))
    return found


def answer_probability(told: Sequence[AnswerPosition]) -> Read:
    """A score for :func:`trace`: the probability of the token that tells the answer."""
    tokens = torch.tensor([one.token for one in told])

    def read(logits: Tensor, prompts: Sequence[int]) -> Tensor:
        wanted = tokens[list(prompts)].to(logits.device)
        return logits.softmax(-1).gather(1, wanted[:, None])[:, 0]

    return read
