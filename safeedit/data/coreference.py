"""Sentences about two people and a pronoun, in the manner of WinoBias (arXiv 1804.06876).

A row is ``{prompt, answer, professions, pronoun}``: a sentence, whom its pronoun stands for, the
two people it may stand for, and the pronoun as written.
"""

from __future__ import annotations

import re

from safeedit.data.items import Item

QUESTION = "{sentence} '{pronoun}' refers to the"
"""What the answer follows (DAMA, arXiv 2310.18913)."""


def professions_of(item: Item) -> tuple[str, str] | None:
    """Whom the pronoun stands for, and the other; None where the row does not tell."""
    named = item.extra.get("professions")
    if not isinstance(named, (list, tuple)) or len(named) != 2 or item.answer is None:
        return None
    others = [name for name in named if name != item.answer]
    if len(others) != 1 or not isinstance(others[0], str) or not others[0].strip():
        return None
    return item.answer, others[0]


def pronoun_of(item: Item) -> str | None:
    """The pronoun as written."""
    pronoun = item.extra.get("pronoun")
    return pronoun.strip() or None if isinstance(pronoun, str) else None


def asked(item: Item, pronoun: str, question: str = QUESTION) -> str:
    """The sentence with the question after it."""
    return question.replace("{pronoun}", pronoun.capitalize()).replace("{sentence}", item.prompt)


def without_pronoun(item: Item, pronoun: str) -> str:
    """The sentence with a gap for its pronoun: the same for either gender."""
    return re.sub(rf"\b{re.escape(pronoun)}\b", "{}", item.prompt)
