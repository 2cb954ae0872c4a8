"""Openings about professions, as the editors against stereotypes read them.

A row is ``{prompt, subject, factual}``: "The nurse said that", "nurse", and how far the word is
male (1) or female (-1) by definition.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from safeedit.data import Dataset, Item
from safeedit.errors import DataError

_UNDEFINED = 0.25
"""Greatest distance from 0 of the factual score of a word of no definite gender (as in DAMA)."""


def undefined_gender(data: Dataset, most: int, seed: int) -> list[Item]:
    """Fit items of no definite gender, in their order.

    Args:
        data: Of the role ``prompts``.
        most: A seeded choice of so many, where there are more.
        seed: Of the choice.

    Raises:
        DataError: An item has no factual score, or fewer than two are left.
    """
    items = data.items("fit")
    scores = [item.extra.get("factual") for item in items]
    lacking = sum(not isinstance(score, int | float) for score in scores)
    if lacking or not items:
        raise DataError(
            f"{lacking} of {len(items)} prompts have no 'factual' score"
            if items
            else "no prompt is left to fit on",
            field="prompts",
            remedy="rows need {prompt, subject, factual}: -1 female by definition, 1 male, 0 "
            "neither; 'columns' maps other names",
        )
    neutral = [
        item
        for item, score in zip(items, scores, strict=True)
        if isinstance(score, int | float) and abs(score) <= _UNDEFINED
    ]
    if len(neutral) < 2:
        raise DataError(
            f"{len(neutral)} prompts have a factual score of {_UNDEFINED:g} or nearer to 0, and "
            "two at least are needed",
            field="prompts",
            remedy="give prompts about professions of either gender",
        )
    places = list(range(len(neutral)))
    random.Random(seed).shuffle(places)
    return [neutral[place] for place in sorted(places[:most])]


def subjects_of(items: Sequence[Item], role: str) -> list[str]:
    """What each item is about.

    Raises:
        DataError: One does not say.
    """
    subjects = [(item.subject or "").strip() for item in items]
    if absent := subjects.count(""):
        raise DataError(
            f"{absent} of {len(subjects)} '{role}' items have no subject",
            field=role,
            remedy="give each item its profession as 'subject'",
        )
    return subjects
