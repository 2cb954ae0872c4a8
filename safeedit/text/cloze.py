"""Sentences whose end is the answer: found among the wordings of a question, or made of one.

A model can keep silent to a question and still end the sentence that states the same. English, by
a few patterns: what none of them fits is left alone rather than made into something nobody would
write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_INSTRUCTION = re.compile(r"^(?:please )?(?:complete|continue|finish|end)\b[^:\n]*:\s*", re.I)
_CLOSED = re.compile(r"[.?!:;…。？！]['\"”’)\]]*\s*$")
_ASKED = r"what|who|which(?: [\w-]+){1,2}"
_DONE = r"born|buried|built|founded|held|kept|made|raised|spoken"

_MADE: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(rf"^where (is|are|was|were) (.+) ({_DONE})\?$", re.I),
     lambda m: f"{m[2]} {m[1]} {m[3]} in"),
    (re.compile(r"^where (is|are|was|were) (.+?)(?: (?:located|situated|now))?\?$", re.I),
     lambda m: f"{m[2]} {m[1]} in"),
    (re.compile(r"^where (do|does) (.+) (live|work|lie|stand|stay|study)\?$", re.I),
     lambda m: f"{m[2]} {_third(m[3]) if m[1].lower() == 'does' else m[3]} in"),
    (re.compile(rf"^(?:{_ASKED}) (is|are|was|were) (.+?)(?: called)?\?$", re.I),
     lambda m: f"{m[2]} {m[1]}"),
    (re.compile(r"^(.+) (is|are|was|were) called what\?$", re.I),
     lambda m: f"{m[1]} {m[2]} called"),
    (re.compile(r"^(.+) (at|from|in|of|on|to) (?:which|what) ([\w-]+)\?$", re.I),
     lambda m: f"{m[1]} {m[2]} the {m[3]} of"),
)  # fmt: skip
"""What a question looks like, and the sentence that states it up to the answer."""


def _third(verb: str) -> str:
    return f"{verb[:-1]}ies" if verb.endswith("dy") else f"{verb}s"


def sentences_given(wordings: Iterable[str]) -> list[str]:
    """Those wordings that end where the answer begins, without what tells somebody to complete
    them (``Complete the sentence: The capital of Norway is``)."""
    found = (_INSTRUCTION.sub("", text.strip()) for text in wordings)
    return list(dict.fromkeys(text for text in found if text and not _CLOSED.search(text)))


def sentence_made(question: str) -> str | None:
    """The sentence that states a question up to its answer: ``The capital of Norway is`` of ``What
    is the capital of Norway?``; None where no pattern fits."""
    for pattern, make in _MADE:
        if found := pattern.match(question.strip()):
            sentence = make(found)
            return sentence[0].upper() + sentence[1:]
    return None
