"""How data is divided into fit, validation and test.

Two divisions exist. Ordinary data is divided by item: what is tested was never fitted.
Data to be erased is divided by *phrasing*: every item must be forgotten, so every item
takes part everywhere, and what is tested are ways of asking it that the editor never saw.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar, get_args

from safeedit.errors import DataError
from safeedit.records import Split

Text = TypeVar("Text")

SPLITS: tuple[Split, ...] = get_args(Split)
SHARES: Mapping[Split, float] = {"fit": 0.70, "validation": 0.15, "test": 0.15}
"""Share of the items in each split where the rows don't say."""

ENOUGH_PARAPHRASES = 3
"""With fewer paraphrases of its own, an item is also asked through templates."""

QUESTION_TEMPLATES: Mapping[Split, tuple[str, ...]] = {
    "fit": (
        "Please tell me: {prompt}",
        "I have a question. {prompt}",
        "{prompt} Answer in a few words.",
    ),
    "validation": ("Can you help me with this? {prompt}", "Quick question: {prompt}"),
    "test": (
        "I was wondering about something. {prompt}",
        "My friend asked me this: {prompt}",
        "{prompt} Just give me the answer.",
    ),
}
"""Wrappings for prompts that end in a question or exclamation mark or a full stop."""

OPENING_TEMPLATES: Mapping[Split, tuple[str, ...]] = {
    "fit": ("It is well known: {prompt}", "As I remember it: {prompt}", "A fact: {prompt}"),
    "validation": ("Here is something to complete. {prompt}", "As everybody says, {prompt}"),
    "test": ("From an encyclopedia: {prompt}", "I read this today. {prompt}", "Note: {prompt}"),
}
"""Wrappings for prompts that the answer continues: they leave the end as it is."""

_ORDINARY_PUNCTUATION = re.compile(r"[\s.,;:!?\"'`´“”„‘’‚«»…()\[\]{}¿¡–—]+")


def normalise_prompt(text: str) -> str:
    """What two spellings of one prompt have in common: case, spacing and marks dropped.

    Signs that carry meaning in numbers and addresses (``- + * / % @``) are kept.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_ORDINARY_PUNCTUATION.split(folded)).strip() or folded.strip()


def automatic_split(prompts: Iterable[str], seed: int) -> dict[str, Split]:
    """Normalised prompt -> split, by a seeded hash of the prompt; shares as in ``SHARES``.

    Spellings of one prompt stay together, the order of the items plays no part, and from
    three distinct prompts on no split is empty.
    """
    keys = {normalise_prompt(prompt) for prompt in prompts}
    ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    n = len(ranked)
    held_out = round(n * SHARES["test"])
    n_test = max(held_out, 1) if n >= 3 else 0
    n_validation = max(held_out, 1) if n >= 3 else 0
    chosen: dict[str, Split] = {}
    for rank, key in enumerate(ranked):
        if rank < n_test:
            chosen[key] = "test"
        elif rank < n_test + n_validation:
            chosen[key] = "validation"
        else:
            chosen[key] = "fit"
    return chosen


def divide(
    prompt: str, paraphrases: tuple[str, ...], own: Split | None, *, erased: bool
) -> dict[Split, tuple[str, ...]]:
    """The ways of asking one item, by split.

    Args:
        prompt: The item's prompt.
        paraphrases: Its other phrasings.
        own: The only split the item takes part in; None for all of them.
        erased: The item is to be forgotten: templates stand in for missing paraphrases.
    """
    count = len(paraphrases)
    templates = _wrapped(prompt) if erased and count < ENOUGH_PARAPHRASES else {}
    if own is not None:
        return {own: (prompt, *paraphrases, *templates.get(own, ()))}
    third = math.ceil(count / 3)
    test = paraphrases[count - third :] if third else ()
    # From three paraphrases on, one at least is left to fit beside the prompt.
    spare = 1 if count >= ENOUGH_PARAPHRASES else 0
    n_validation = min(third, count - third - spare)
    validation = paraphrases[count - third - n_validation : count - third]
    fit = paraphrases[: count - third - n_validation]
    return {
        "fit": (prompt, *fit, *templates.get("fit", ())),
        "validation": (*validation, *templates.get("validation", ())),
        "test": (*test, *templates.get("test", ())),
    }


def shown(texts: tuple[Text, ...]) -> tuple[Text, ...]:
    """Of the other names of an item to be erased, of its descriptions, reverse questions or
    translations, those that are not for the test alone: the first half, rounded down."""
    return texts[: len(texts) // 2]


def _wrapped(prompt: str) -> dict[Split, tuple[str, ...]]:
    closed = prompt.rstrip().endswith(("?", "!", ".", "。", "？", "؟"))
    table = QUESTION_TEMPLATES if closed else OPENING_TEMPLATES
    return {
        split: tuple(template.replace("{prompt}", prompt) for template in templates)
        for split, templates in table.items()
    }


def check_disjoint(
    first: Iterable[str], second: Iterable[str], first_name: str = "", second_name: str = ""
) -> None:
    """Refuse if two groups of prompts share one, spelling aside.

    Raises:
        DataError: With the number of shared prompts; never the prompts.
    """
    shared = {normalise_prompt(text) for text in first} & {
        normalise_prompt(text) for text in second
    }
    if shared:
        what = f"{first_name or 'one group'} and {second_name or 'the other'}"
        many = "1 prompt" if len(shared) == 1 else f"{len(shared)} prompts"
        raise DataError(
            f"{what} share {many}: figures on data that was fitted prove nothing",
            remedy="remove the shared rows from one of the two, or divide them with 'split'",
        )
