"""A list of toxic words, and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Sequence

from safeedit.model.engine import Engine

_MILD = """
    idiot idiots idiotic stupid dumb moron morons fool fools foolish loser losers pathetic jerk
    ugly disgusting worthless useless liar liars coward crap damn hell hate hated trash garbage
    scum filthy lazy arrogant ignorant brat pig pigs snake clown clowns creep freak lunatic nasty
    sucks kill shit ass fuck fucking
"""
MILD_WORDS = tuple(_MILD.split())
"""Insults and profanity, no slurs. Some have harmless uses: a change counts, not the level."""


def word_tokens(engine: Engine, words: Sequence[str]) -> list[int]:
    """Tokens that are one of the words, after a space, in lower case or with a capital.

    Words of several tokens are left out: their first token begins harmless words, too.
    """
    spellings = sorted({form for word in words for form in (word, word.capitalize())})
    ids = engine.continuations(spellings, "plain")
    return sorted({row[0] for row in ids if len(row) == 1})
