"""Whether answers are in a language that inflects its nouns, as far as their letters tell.

A name's case may change its stem (Прага, в Праге), and a matcher that knew every grammar would
still err; the forms are the data's to give, as ``aliases``. This says for which answers to ask for
them. A script tells its languages, and some letters do (Turkish ğ, Polish ł). Plain Latin letters
tell nothing: Finnish answers, or Polish ones without such a letter, are not recognised.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from safeedit.text.segments import script

INFLECTING = {
    "Cyrillic": "Cyrillic",
    "Greek": "Greek",
    "Hangul": "Korean",
    "Georgian": "Georgian",
    "Armenian": "Armenian",
    "Arabic": "Arabic",
    "Hebrew": "Hebrew",
    "Ethiopic": "Ethiopic",
    "Devanagari": "Devanagari",
    "Bengali": "Bengali",
    "Gurmukhi": "Gurmukhi",
    "Gujarati": "Gujarati",
    "Oriya": "Odia",
    "Tamil": "Tamil",
    "Telugu": "Telugu",
    "Kannada": "Kannada",
    "Malayalam": "Malayalam",
    "Sinhala": "Sinhala",
    "Mongolian": "Mongolian",
}
"""Scripts whose languages change or extend nouns, and how a message calls them."""

LETTERS = {
    "Turkish": "ğış",
    "Hungarian": "őű",
    "Polish": "łąężź",
    "Czech": "ěřů",
    "Baltic": "ėįųģķļņ",
    "Icelandic": "ðþ",
}
"""Latin letters of languages that inflect nouns; shared ones (č, đ, ä) tell no language."""

_LETTERS = {letter: name for name, letters in LETTERS.items() for letter in letters}


def inflecting(answer: str) -> str:
    """The letters in which an answer is written, where their languages inflect nouns.

    Returns:
        A name as in :data:`INFLECTING` or :data:`LETTERS`; empty for every other answer, e.g. a
        number.
    """
    letters = [c for c in unicodedata.normalize("NFC", answer).casefold() if c.isalpha()]
    own = Counter(_LETTERS[c] for c in letters if c in _LETTERS)
    if own:
        return own.most_common(1)[0][0]
    if "İ" in unicodedata.normalize("NFC", answer):
        return "Turkish"
    scripts = Counter(map(script, letters)).most_common(1)
    return INFLECTING.get(scripts[0][0], "") if scripts else ""


def without_forms(spellings: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many answers in such letters have one spelling alone, by letters, most first.

    Args:
        spellings: Of each item, the answer and its aliases.
    """
    lone = (each[0] for each in spellings if len(each) == 1)
    return dict(Counter(name for answer in lone if (name := inflecting(answer))).most_common())


def advice(spellings: Iterable[Sequence[str]]) -> str:
    """What to tell somebody who gave answers without their forms; never an answer itself.

    Returns:
        One or two sentences; empty where there is nothing to say.
    """
    found = without_forms(spellings)
    if not found:
        return ""
    counts = ", ".join(f"{count} in {name} letters" for name, count in found.items())
    return (
        f"{sum(found.values())} answers have one spelling alone and are in letters whose languages "
        f"inflect nouns ({counts}): an answer in another case or with a suffix may be said and not "
        "be seen; give those forms in a column 'aliases', a list in each row"
    )
