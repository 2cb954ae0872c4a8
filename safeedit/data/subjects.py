"""What a fact is about: put into its prompt, or found where its row does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from safeedit.text.matching import straighten

_SLOT = re.compile(r"(?<![^\s\"'“‘«„(])(?<!\w\()\{\}(?![\w{=(\[])")
"""The ``{}`` of a sentence: it stands as a word does, not as in ``set{}`` or ``f(x={})``."""
_CODE = re.compile(r"[=+`{\[]\s*\{\}|\{\}\s*[`;=+}\]]")


def fill_braces(text: str, subject: str) -> str:
    """A prompt as ROME, MEMIT and EasyEdit write it, its one ``{}`` replaced by the subject.

    Left alone: several braces, braces of code, and braces in a prompt that names its subject.
    """
    slots = _SLOT.findall(text)
    if len(slots) != 1 or text.count("{}") != 1 or _CODE.search(text):
        return text
    if straighten(subject).casefold() in straighten(text).casefold():
        return text
    return _SLOT.sub(lambda _: subject, text)


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
