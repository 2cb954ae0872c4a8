"""Secrets that a model may know by heart, as examples to attribute neurons to.

Fails with :class:`~safeedit.errors.DataError` where there is no secret to find or one is longer
than the context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safeedit.contracts import Progress, RunContext, silent
from safeedit.data import Dataset, Item
from safeedit.errors import DataError
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle


@dataclass(frozen=True, eq=False)
class Secrets:
    """What is to be found: a prompt and an answer each, and of what kind it is, if known."""

    texts: tuple[Example, ...]
    kinds: tuple[str | None, ...]


def read_secrets(
    known_above: float, model: ModelHandle, forget: Dataset, ctx: RunContext
) -> tuple[Secrets, dict[str, Any]]:
    """What is to be found, and how many records were left out and why.

    Raises:
        DataError: There is no secret, or one is longer than the context.
    """
    found, missing = _tokenised(model, forget)
    if missing:
        ctx.warn(f"{missing} forget texts have no secret: no answer, or one of no tokens")
    if not found:
        raise DataError("no forget text has a secret", remedy="give each an 'answer'")
    if long := sum(len(text.ids) > model.engine.context for text, _ in found):
        raise DataError(
            f"{long} secrets are, with their prompts, longer than the model's context of "
            f"{model.engine.context} tokens",
            remedy="shorten their prompts, or remove them",
        )
    told = likely(known_above, model, [text for text, _ in found], ctx.progress)
    known = [pair for pair, known_well in zip(found, told, strict=True) if known_well]
    if not known:
        ctx.warn(
            f"the model knows none of the {len(found)} secrets (mean token probability of "
            f"{known_above:g} or more): there may be nothing to erase"
        )
    elif len(known) < len(found):
        ctx.warn(f"{len(found) - len(known)} secrets are not known to the model and have no vote")
    used = known or found
    notes = {
        "secrets": len(used),
        "secrets_without_tokens": missing,
        "secrets_not_known": len(found) - len(known),
        "kinds_of_secrets": len({kind for _, kind in used}),
    }
    return Secrets(tuple(text for text, _ in used), tuple(kind for _, kind in used)), notes


def _tokenised(model: ModelHandle, forget: Dataset) -> tuple[list[tuple[Example, str | None]], int]:
    """Each secret with its kind, and how many texts have none."""
    engine, template = model.engine, model.engine.codec.resolve(forget.template)
    phrasings = forget.phrasings("fit")
    # Its prompt has an item's one vote. An item of a split of its own may have paraphrases alone.
    bare = {phrasing.item.id for phrasing in phrasings if phrasing.text == phrasing.item.prompt}
    phrasings = tuple(p for p in phrasings if p.text == p.item.prompt or p.item.id not in bare)
    prompts = engine.encode([phrasing.text for phrasing in phrasings], template)
    found: list[tuple[Example, str | None]] = []
    for phrasing, prompt in zip(phrasings, prompts, strict=True):
        answer = engine.continuation(phrasing.item.answer or "", template)
        if (phrasing.item.answer or "").strip() and prompt and answer:
            found.append((Example(prompt, answer), _kind(phrasing.item)))
    return found, len(phrasings) - len(found)


def likely(
    above: float, model: ModelHandle, texts: Sequence[Example], progress: Progress = silent
) -> list[bool]:
    """Whether the mean probability per token (geometric) of each answer is ``above`` or more."""
    scores = model.engine.score(
        [text.prompt for text in texts],
        [text.answer for text in texts],
        progress=progress,
        description="reading secrets",
    )
    least = math.log(above or 1e-300)
    return [
        score.total / len(text.answer) >= least for text, score in zip(texts, scores, strict=True)
    ]


def _kind(item: Item) -> str | None:
    kind = item.extra.get("type")
    return None if kind is None else str(kind)
