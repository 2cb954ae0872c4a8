"""The tokens that stand for a list of toxic words."""

from __future__ import annotations

from collections.abc import Sequence

from safeedit.model.engine import Engine


def word_tokens(engine: Engine, words: Sequence[str]) -> list[int]:
    """Tokens that are one of the words, after a space, in lower case or with a capital.

    Words of several tokens are left out: their first token begins harmless words, too.
    """
    spellings = sorted({form for word in words for form in (word, word.capitalize())})
    ids = engine.continuations(spellings, "plain")
    return sorted({row[0] for row in ids if len(row) == 1})
