"""Folding text so that spellings of the same word are equal, and knowing where each came from.

What is folded always: compatibility forms (NFKC), case (full and locale-free), accents of the
scripts that spell without them too (Latin, Greek, Cyrillic, Hebrew, Arabic), decimal digits of any
script to ASCII; what shows nothing is removed (format characters, soft hyphens, variation
selectors, grapheme joiners, Arabic tatweel). Vowel signs, viramas and voicing marks stay: they
tell words apart.

Three further foldings are for a second, looser way to match: ``plain`` writes strokes, ligatures
and the dotless i as plain letters (Łódź, Lodz), and spellings of one Arabic or Japanese sound
alike; ``digraphs`` writes umlauts as two letters (Köln, Koeln); ``roman`` writes every script in
Latin letters. The letters come from anyascii (ISC licence), one grapheme at a time.

Every folded character keeps its place in the source, so that a match can be pointed at.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import regex
from anyascii import anyascii

from safeedit.text.segments import UNSPACED

Letters = Literal["strict", "plain", "digraphs", "roman"]

APOSTROPHES = "\u2018\u2019\u201a\u201b\u02bb\u02bc\u02bd\u02b9\u2032\u0060\u00b4\u05f3\ua78c\uff07"
"""Characters that stand for an apostrophe, beside the apostrophe."""

_STRAIGHT = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))
_UNSEEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}\u0640]")
_ZERO_WIDTH = regex.compile(r"[\u200b\u200c]")
_CLUSTER = regex.compile(r"\X")
_UNACCENTED = regex.compile(
    r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Hebrew}\p{Arabic}\p{Syriac}\p{Armenian}\p{Common}\p{Inherited}]"
)
_LATIN = regex.compile(r"\p{Latin}")
_WRITTEN = regex.compile(r"[\p{L}\p{M}]")
_UNSPACED = regex.compile(UNSPACED)
_PUNCTUATION = str.maketrans({"\u066a": "%", "\u066b": ".", "\u066c": ",", "\u2212": "-"})
_DIGRAPHS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae", "œ": "oe", "đ": "dj"}
)
_ALIKE = str.maketrans(
    # Arabic as Persian, Urdu and hurried writers spell it; katakana as hiragana.
    {"ة": "ه", "ى": "ي", "ی": "ي", "ک": "ك", "ہ": "ه", "ھ": "ه", "ە": "ه", "ٱ": "ا"}
    | {chr(code): chr(code - 0x60) for code in range(0x30A1, 0x30F7)}
)


@dataclass(frozen=True)
class FoldedText:
    """Text, and for each of its characters where in the source it begins and ends."""

    text: str
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> FoldedText:
        """The source itself."""
        return cls(text, tuple(range(len(text))), tuple(range(1, len(text) + 1)))

    def sub(self, pattern: regex.Pattern[str], by: str | Callable[[Any], str]) -> FoldedText:
        """Each match replaced; what replaces it stands where the match stood."""
        texts: list[str] = []
        begins: list[int] = []
        ends: list[int] = []
        last = 0
        for match in pattern.finditer(self.text):
            start, stop = match.span()
            new = by if isinstance(by, str) else by(match)
            if new == match.group():
                continue
            texts += (self.text[last:start], new)
            begins += self.begins[last:start]
            ends += self.ends[last:start]
            here = self.begins[start] if start < len(self.begins) else self.ends[-1]
            begins += [here] * len(new)
            ends += [self.ends[stop - 1] if stop > start else here] * len(new)
            last = stop
        if not texts:
            return self
        texts.append(self.text[last:])
        begins += self.begins[last:]
        ends += self.ends[last:]
        return FoldedText("".join(texts), tuple(begins), tuple(ends))

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """Where ``text[start:stop]`` stands in the source."""
        return self.begins[start], self.ends[stop - 1]


def straighten(text: str) -> str:
    """Compatibility-normalise, straighten apostrophes, remove what shows nothing and collapse
    whitespace; keeps case."""
    seen = unicodedata.normalize("NFKC", _UNSEEN.sub("", text).translate(_STRAIGHT))
    # Once more: normalising makes an apostrophe of its own, and new neighbours.
    return " ".join(unicodedata.normalize("NFKC", seen.translate(_STRAIGHT)).split())


def visible(text: str) -> str:
    """Compatibility-normalised, with ASCII digits and without what shows nothing; keeps case."""
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text))
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def fold(text: str, letters: Letters = "strict", *, zero_width_space: bool = False) -> FoldedText:
    """Text folded; punctuation and whitespace stay.

    Args:
        text: What to fold.
        letters: How far.
        zero_width_space: Read zero-width spaces and non-joiners as spaces instead of as nothing.
    """
    traced = FoldedText.of(text)
    if zero_width_space:
        traced = traced.sub(_ZERO_WIDTH, " ")
    traced = traced.sub(_UNSEEN, "")
    if traced.text.isascii():
        return FoldedText(traced.text.lower().replace("`", "'"), traced.begins, traced.ends)
    return traced.sub(_CLUSTER, lambda match: _fold_cluster(match.group(), letters))


@lru_cache(maxsize=65536)
def _fold_cluster(cluster: str, letters: Letters) -> str:
    """One grapheme cluster folded: what is around it has no say, so clusters are cached."""
    text = cluster
    for _ in range(3):  # NFKC may bring capitals back, case folding compositions
        text = unicodedata.normalize("NFKC", text.translate(_STRAIGHT)).casefold()
    if letters == "digraphs":
        text = text.translate(_DIGRAPHS)
    kept: list[str] = []
    accented = True
    for character in unicodedata.normalize("NFKD", text):
        if unicodedata.category(character) in ("Mn", "Me"):
            if accented:
                continue
        else:
            accented = _UNACCENTED.match(character) is not None
        decimal = unicodedata.decimal(character, None)
        kept.append(character if decimal is None else str(int(decimal)))
    text = unicodedata.normalize("NFC", "".join(kept)).translate(_PUNCTUATION)
    if letters == "strict":
        return text
    text = text.translate(_ALIKE)
    if letters == "roman":
        latin = anyascii(text).casefold() if _WRITTEN.match(text) else text
        return f" {latin} " if _UNSPACED.match(text) else latin
    return "".join(
        anyascii(c).casefold() if not c.isascii() and _LATIN.match(c) else c for c in text
    )
