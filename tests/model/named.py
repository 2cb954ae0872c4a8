"""Lessons for a tiny model in which some words carry a direction, and others its opposite.

Texts name a person and one of the invented professions of :mod:`tests.editors.gendered`, whose
embeddings tell two kinds apart; *heb* is to follow the one kind and *sheb* the other. Names and
professions of :func:`held_out` are in none of :func:`taught`.
"""

from __future__ import annotations

from safeedit.methods.remedi.examples import AttributeExample
from tests.editors.gendered import FEMALE, MALE

NAMES = ("Anita", "Boris", "Clara", "Doris", "Emil", "Frida", "Gus", "Hanna")
LATER = ("kragum", "brutan", "quelsa", "amrina")
"""Each one token, so that their keys differ from the first layer on."""


def _lessons(names: tuple[str, ...], kinds: tuple[tuple[str, ...], ...]) -> list[AttributeExample]:
    return [
        AttributeExample(
            name, f"Here {name} met the {word} today", word, f"Here {name} says", target, other
        )
        for name in names
        for words, target, other in zip(kinds, ("heb", "sheb"), ("sheb", "heb"), strict=True)
        for word in words
    ]


def taught() -> list[AttributeExample]:
    return _lessons(NAMES, (MALE[:4], FEMALE[:4]))


def held_out() -> list[AttributeExample]:
    return _lessons(LATER, (MALE[4:], FEMALE[4:]))
