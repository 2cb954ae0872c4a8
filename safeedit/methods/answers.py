"""Questions with the answers that editors train on: the model's own, refusals, what is to go."""

from __future__ import annotations

import random
from collections.abc import Sequence

from safeedit.contracts import Progress, Template
from safeedit.data import Dataset, Item
from safeedit.errors import DataError
from safeedit.methods.tuning import Example
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.text.matching import contains_alias

_TOLD = 16
"""Tokens of the model's own answer in which it may tell what is to be forgotten."""


def own_answers(
    model: ModelHandle, data: Dataset, items: Sequence[Item], tokens: int, progress: Progress
) -> list[Example]:
    """Questions with what the model itself answers, of so many tokens at most; those that it
    answers with nothing are left out."""
    engine = model.engine
    prompts = engine.encode([item.prompt for item in items], data.template)
    end = engine.codec.tokenizer.eos_token_id
    stop = [] if end is None else [int(end)]
    found = engine.generate(
        prompts, max_new_tokens=tokens, progress=progress, description="the base's own answers"
    )
    answers = [ids if len(ids) == tokens else [*ids, *stop] for (ids,) in found]
    return [Example(p, a) for p, a in zip(prompts, answers, strict=True) if a]


def told_answers(
    model: ModelHandle, forget: Dataset, progress: Progress
) -> tuple[list[Example], int]:
    """Each fit phrasing with the answer that is to go, where the model would say it: its own words
    up to the answer count as part of the prompt. Where it does not tell the answer, the answer as
    the data gives it follows the question at once.

    Returns:
        One example per phrasing, and how many of them are in the model's own words.

    Raises:
        DataError: There is no phrasing to fit on.
    """
    phrasings, engine = forget.phrasings("fit"), model.engine
    if not phrasings:
        raise DataError("no forget prompt is left to fit on", remedy="give rows of 'split: fit'")
    template = engine.codec.resolve(forget.template)
    prompts = engine.encode([phrasing.text for phrasing in phrasings], template)
    given = engine.continuations([phrasing.item.answer or "" for phrasing in phrasings], template)
    said = engine.generate(
        prompts, max_new_tokens=_TOLD, progress=progress, description="the base's own answers"
    )
    found, own = [], 0
    for phrasing, prompt, answer, (ids,) in zip(phrasings, prompts, given, said, strict=True):
        place = _told_at(engine, ids, phrasing.item.aliases)
        own += place is not None
        first, last = place or (0, len(answer))
        words = ids if place else answer
        found.append(Example([*prompt, *words[:first]], words[first:last]))
    return found, own


def _told_at(engine: Engine, ids: Sequence[int], aliases: Sequence[str]) -> tuple[int, int] | None:
    """Where in an answer the tokens begin and end that tell an alias."""
    ends = (
        end for end in range(1, len(ids) + 1) if contains_alias(engine.decode(ids[:end]), aliases)
    )
    if (last := next(ends, None)) is None:
        return None
    begins = (
        n for n in range(last - 1, -1, -1) if contains_alias(engine.decode(ids[n:last]), aliases)
    )
    return next(begins, 0), last


def some(data: Dataset, count: int, seed: int) -> list[Item]:
    """So many fit items at most, drawn by the seed."""
    items = list(data.items("fit"))
    return items if len(items) <= count else random.Random(seed).sample(items, count)


def ended(engine: Engine, text: str, template: Template) -> list[int]:
    """An answer's tokens, and the one that ends it where the model has one."""
    end = engine.codec.tokenizer.eos_token_id
    return [*engine.continuation(text, template), *([] if end is None else [int(end)])]


def shared_beginning(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with: those of a chat template."""
    count = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
