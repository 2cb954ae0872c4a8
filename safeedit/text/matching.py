"""Judging generated text: token F1, and whether an answer is in it.

Pure functions of strings, shared by the auditors. Everything here is deliberately
mechanical: no model judges a model, so a verdict can be recomputed by hand.

Sources: token F1 is SQuAD's (Rajpurkar et al. 2016, ``evaluate-v1.1.py``); alias
matching follows TriviaQA's normalisation (Joshi et al. 2017) with word boundaries added,
since a bare substring finds "Iran" in "Tirana".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u0060\u00b4\uff07", "'"))
_ARTICLES = frozenset({"a", "an", "the"})
_FUNCTION = (
    "am an and as at be but by can do for go had has he her his how if in is it may me my no not"
    " of off on one or our out she so the this to up us was we what when who why you"
)
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""English words that an acronym, symbol or name may look like once its case is gone."""
_KEPT_SYMBOLS = "+#%@$€£¥°"
"""Symbols that carry meaning inside an answer (C++, C#, 5 %); other punctuation is space."""
_ACRONYM = re.compile(r"(?<!\w)(?:[^\W\d_]\.){2,}(?:[^\W\d_](?!\w))?")
_DIGIT_GROUP = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"'s(?!\w)")
_SEPARATOR = re.compile(rf"[^\w{re.escape(_KEPT_SYMBOLS)}.]|_")
_POINT = re.compile(r"(?<!\d)\.|\.(?!\d)")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Scripts written without spaces (Thai, Lao, Burmese, Khmer, kana, Han): no boundaries."""


def straighten(text: str) -> str:
    """Compatibility-normalise, straighten apostrophes and collapse whitespace; keeps case."""
    return " ".join(unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).split())


def normalise(text: str) -> str:
    """Bring text to the form in which answers are compared.

    Case, accents, punctuation, thousands separators, possessive endings and the dots of
    acronyms are dropped, so that ``Washington, D.C.`` equals ``washington dc``. Decimal
    points stay: 3.5 does not contain 3.
    """
    text = straighten(text).casefold().replace("&", " and ")
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = unicodedata.normalize("NFC", text)
    text = _POSSESSIVE.sub("", text).replace("'", "")
    text = _DIGIT_GROUP.sub("", text)
    text = _POINT.sub(" ", _SEPARATOR.sub(" ", _without_dots(text)))
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    words = normalise(text).split()
    without = [word for word in words if word not in _ARTICLES]
    return without or words


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of word precision and recall between two texts, in [0, 1].

    Two texts without words agree (1); one without words against one with them does not (0).

    Source: SQuAD ``evaluate-v1.1.py``, ``f1_score``.
    """
    predicted, expected = _words(prediction), _words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    overlap = sum((Counter(predicted) & Counter(expected)).values())
    return 2.0 * overlap / (len(predicted) + len(expected))


@lru_cache(maxsize=65536)
def _alias_pattern(alias: str) -> tuple[re.Pattern[str], bool] | None:
    """The pattern of one alias, and whether it reads the text with its case kept."""
    words = normalise(alias).split()
    if not words:
        return None
    if len(words) == 1 and _ambiguous(words[0]):
        return _ambiguous_pattern(_without_dots(straighten(alias))), True
    if len(words) > 1 and words[0] in _ARTICLES and not _ambiguous(" ".join(words[1:])):
        words = words[1:]
    body = r"\s".join(re.escape(word) for word in words)
    before = "" if _UNSPACED.match(words[0][0]) else r"(?<![\w.])"
    after = "" if _UNSPACED.match(words[-1][-1]) else r"(?![\w.])"
    return re.compile(before + body + after), False


def _ambiguous(word: str) -> bool:
    return word in _FUNCTION_WORDS or (len(word) == 1 and word.isascii() and word.isalpha())


def _ambiguous_pattern(alias: str) -> re.Pattern[str]:
    """A blood group is no article, iodine no pronoun and the U.S. not "us".

    Such an alias is read in its own case. Where a capital could also come from opening a
    sentence it does not count if a word follows; ``I`` never counts before a lower-case word.
    """
    word = re.sub(r"\W", "", alias)
    core = rf"(?<![\w']){word}(?![\w'+#])"
    if word == "I":
        return re.compile(core + r"(?! [a-z])")
    if word.islower():
        return re.compile(rf"^\W*{word}\W*$" if len(word) == 1 else core)
    if len(word) > 1 and word.isupper():
        return re.compile(core)
    return re.compile(rf"(?<!^)(?<![.!?:] ){core}|{core}(?! \w)")


def _without_dots(text: str) -> str:
    return _ACRONYM.sub(lambda match: match.group().replace(".", ""), text)


def contains_alias(text: str, aliases: Iterable[str]) -> bool:
    """Whether any alias stands anywhere in the text, as whole words.

    Both sides go through :func:`normalise`; a leading article of an alias is optional.
    Aliases in scripts without spaces are looked for as substrings. Aliases without any
    letter, digit or symbol are ignored.
    """
    folded = normalise(text)
    straight = _without_dots(straighten(text))
    for alias in aliases:
        found = _alias_pattern(alias)
        if found is not None and found[0].search(straight if found[1] else folded):
            return True
    return False
