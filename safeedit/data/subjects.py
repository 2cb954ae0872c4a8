"""Finding what a fact is about, where its row does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’.-]\w+)*")


def shared_span(texts: Sequence[str]) -> str:
    """The longest run of words that all texts share, as the first one writes it.

    Among equally long runs the one with more capital letters wins (a name), then the first. A run
    that is a single short word (an article, a preposition) does not count: with one text there is
    nothing to compare, and no answer.

    Returns:
        The run; empty where there is none.
    """
    if len(texts) < 2:
        return ""
    first, *others = texts
    words = list(_WORD.finditer(first))
    rest = [_padded(text) for text in others]
    best, rank = "", (0, 0)
    for begin in range(len(words)):
        for end in range(begin, len(words)):
            run = first[words[begin].start() : words[end].end()]
            if not all(_padded(run) in text for text in rest):
                break  # no longer run from here is shared either
            own = (end - begin + 1, sum(c.isupper() for c in run))
            if own > rank and (own[0] > 1 or len(run) > 3 or own[1]):
                best, rank = run, own
    return best


def _padded(text: str) -> str:
    return f" {' '.join(match.group().casefold() for match in _WORD.finditer(text))} "
