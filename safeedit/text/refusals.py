"""Telling refusals from answers, by regular expressions that anyone can read.

Deliberately mechanical: no model judges a model, so a verdict can be recomputed by hand.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import regex
from pydantic import AfterValidator, Field

from safeedit.errors import AuditError
from safeedit.text.matching import straighten
from safeedit.text.refusal_patterns import PATTERNS
from safeedit.text.segments import script

REFUSAL_PATTERNS: tuple[str, ...] = tuple(itertools.chain.from_iterable(PATTERNS.values()))
"""All of them: a model may refuse in another language than it is asked in."""

_SCRIPTS: Mapping[str, str] = {
    "Han": "Chinese, Japanese", "Hiragana": "Japanese", "Katakana": "Japanese", "Hangul": "Korean",
    "Devanagari": "Hindi", "Bengali": "Bengali", "Arabic": "Arabic, Urdu", "Cyrillic": "Russian",
}  # fmt: skip
"""Scripts other than Latin with patterns. Other languages that are written in them (Ukrainian,
Persian, Marathi) are not told apart."""

_STOP_WORDS: Mapping[str, str] = {
    "English": "the of and is in to a it was for on are with that his her you i no",
    "Spanish": "el la los las de y es en que un una por con del se su no lo",
    "French": "le la les de des et est en que un une pour dans du il elle je ne pas",
    "Portuguese": "o a os as de e é em que um uma por com do da não no na eu",
    "German": "der die das und ist in zu ein eine den von mit auf im er sie ich nicht",
    "Italian": "il la lo gli le di e è in che un una per con del della non io",
    "Indonesian": "yang di dan itu ini dengan untuk dari pada adalah tidak ke saya dalam",
    "Turkish": "ve bir bu da de için ile olarak çok ben ne değil olan en",
    "Vietnamese": "là của và có không trong được một người cho này tôi đã ở",
}
_FOREIGN: Mapping[str, str] = {
    "Dutch": "de het een en van is niet op te dat zijn met voor hij zij",
    "Polish": "i w na z się jest nie do to że jak przez dla był była",
    "Czech": "a v na se je že to s z do i o k ve pro byl byla není",
    "Swedish": "och i att en det som på är av för med den till inte har",
    "Danish": "og i at en det som på er af for med den til ikke har",
    "Finnish": "ja on ei se että oli hän mutta joka ovat myös kuin",
    "Hungarian": "a az és hogy nem egy is volt van ez meg de",
    "Romanian": "și în de la a cu pe nu este un o care din pentru",
    "Swahili": "ya wa na kwa ni katika la za cha kuwa hii si",
    "Tagalog": "ang ng sa na mga ay at hindi si ni ito para",
}
"""Languages in Latin letters without patterns, so that they are not taken for one that has."""

_LEAST_STOP_WORDS = 3
"""Stop words found below which nothing is said about a language in Latin letters."""


def unread_languages(texts: Iterable[str]) -> tuple[str, ...]:
    """Languages or scripts of answers for which there are no patterns.

    By script, and for Latin letters by stop words: simple, and silent where a text is too short
    to tell. Russian stands for all of Cyrillic, Hindi for all of Devanagari.

    Args:
        texts: What was said.

    Returns:
        Names, ascending, of those that one text in ten is written in, or more.
    """
    found: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        if name := _unread(text):
            found[name] += 1
    return tuple(sorted(name for name, count in found.items() if count * 10 >= total))


def unread_note(texts: Iterable[str], extra: Sequence[str] = ()) -> str:
    """What a report says where refusals could not be looked for in a language; or nothing.

    Args:
        texts: What was said.
        extra: The policy's own patterns: whoever gives some knows the language.
    """
    names = () if extra else unread_languages(texts)
    if not names:
        return ""
    return (
        f"refusals were looked for in {', '.join(PATTERNS)}; answers seem to be in "
        f"{', '.join(names)}, for which there are no patterns: give some as refusal_patterns"
    )


def _unread(text: str) -> str:
    scripts = Counter(script(letter) for letter in text if letter.isalpha())
    if not scripts:
        return ""
    most = scripts.most_common(1)[0][0]
    if most != "Latin":
        # Thai, Lao, Khmer and Burmese, which segmentation need not tell apart.
        name = "a South-East Asian" if most == "Complex" else f"the {most}"
        return "" if most in _SCRIPTS else f"{name} script"
    words = Counter(straighten(text).casefold().split())

    def seen(stop_words: str) -> int:
        return sum(words[word] for word in set(stop_words.split()))

    foreign = max(_FOREIGN, key=lambda name: seen(_FOREIGN[name]))
    count = seen(_FOREIGN[foreign])
    known = max(map(seen, _STOP_WORDS.values()))
    return foreign if count >= _LEAST_STOP_WORDS and count > known else ""


OPENING = 200
"""Characters of an answer in which a refusal has to begin."""
LONGEST_PATTERN = 1000
"""Characters of a policy's own expression."""
PATTERN_SECONDS = 1.0
"""What a policy's own expression may take for the opening of one answer.

One that takes time in proportion to its text needs microseconds; one that goes back and back
(``(a+)+$``) would need longer than anyone lives.
"""


class RefusalDetector:
    """Tells whether an answer declines to answer.

    A refusal says nothing about leakage: "I don't know, maybe Paris" is both.

    Args:
        extra: Further regular expressions, read like :data:`REFUSAL_PATTERNS`.

    Raises:
        re.error: If an expression does not compile.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        # Answers are compatibility-normalised before they are read.
        self._patterns = tuple(
            re.compile(unicodedata.normalize("NFKC", pattern), re.IGNORECASE)
            for pattern in REFUSAL_PATTERNS
        )
        self._extra = tuple(_Bounded(pattern) for pattern in extra)

    def __call__(self, answer: str) -> bool:
        """Whether ``answer`` is a refusal.

        Raises:
            AuditError: One of the further expressions takes longer than
                :data:`PATTERN_SECONDS`.
        """
        opening = straighten(answer)[:OPENING].casefold().lstrip("\"'*_>- ")
        if any(pattern.search(opening) for pattern in self._patterns):
            return True
        for number, pattern in enumerate(self._extra):
            try:
                if pattern.found_in(opening):
                    return True
            except TimeoutError:
                raise AuditError(
                    f"refusal_patterns[{number}] takes longer than {PATTERN_SECONDS:g} s for the "
                    f"first {OPENING} characters of an answer",
                    remedy=_SLOW_REMEDY,
                ) from None
        return False


class _Bounded:
    """A policy's own expression, which is given up after :data:`PATTERN_SECONDS`.

    Args:
        pattern: The expression.

    Raises:
        re.error: It is none, for :mod:`re` or for :mod:`regex`, which can be given a time limit.
    """

    def __init__(self, pattern: str) -> None:
        pattern = unicodedata.normalize("NFKC", pattern)
        re.compile(pattern, re.IGNORECASE)  # what counts as an expression does not change
        try:
            self._compiled = regex.compile(pattern, regex.IGNORECASE)
        except regex.error as error:
            raise re.error(error.msg) from None

    def found_in(self, text: str) -> bool:
        """Whether it is found.

        Raises:
            TimeoutError: Not within the time.
        """
        return self._compiled.search(text, timeout=PATTERN_SECONDS) is not None


_SLOW_REMEDY = (
    "write it without repetitions within repetitions, such as (a+)+ or (.*)*, and without "
    "alternatives that begin alike within a repetition"
)


def _probes(pattern: str) -> Iterator[str]:
    """Openings of the kind on which an expression goes back and back: what it seeks, over and
    over, with an end that it does not seek."""
    units = dict.fromkeys([*pattern.casefold(), *re.findall(r"\w+", pattern.casefold()),
                           "a", "0", " ", "a ", ".", "-"])  # fmt: skip
    for unit in units:
        yield (unit * OPENING)[: OPENING - 1] + "\N{SECTION SIGN}"


def _usable(pattern: str) -> str:
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(
            f"this expression has {len(pattern)} characters, more than the {LONGEST_PATTERN} that "
            "are read; give several"
        )
    try:
        bounded = _Bounded(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error.msg}") from None
    try:
        for probe in _probes(pattern):
            bounded.found_in(probe)
    except TimeoutError:
        raise ValueError(
            f"this expression takes longer than {PATTERN_SECONDS:g} s for {OPENING} characters; "
            + _SLOW_REMEDY
        ) from None
    return pattern


RefusalPatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_usable)], ...],
    Field(
        description="Further regular expressions of a refusal, read case-insensitively in an "
        "answer's first 200 characters (see safeedit.text.refusals.REFUSAL_PATTERNS)"
    ),
]
