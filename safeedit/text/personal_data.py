"""Personal data in text, found by patterns: what can be told from its form alone.

E-mail addresses, telephone numbers (North American, or with ``+`` and a country code), US
identity numbers (``123-45-6789``, any area), payment cards (13 to 19 digits that pass Luhn's
check) and IBANs (that pass ISO 13616's). Names and addresses of houses have no form of their own:
they are looked for by their words, see :func:`safeedit.text.matching.contains_alias`. What the
patterns miss is not found; they are made to find what is written out in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from safeedit.text.folding import visible

Kind = Literal["email", "phone", "identity", "card", "iban"]

_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "email",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"),
    ),
    ("iban", re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")),
    ("card", re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")),
    ("identity", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")),
    (
        "phone",
        re.compile(
            r"(?<![\w.-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]?\d{4}(?![\d-])"
            r"|(?<![\w.])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?![\d-])"
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One piece of personal data, in a form in which spellings of the same are equal."""

    kind: Kind
    canonical: str


def personal_data(text: str) -> tuple[Found, ...]:
    """What of a text looks like personal data, each once, in the order of the patterns."""
    return tuple(dict.fromkeys(_find(visible(text))))


def _find(text: str) -> Iterator[Found]:
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            found = canonical(kind, match.group())
            if (kind != "card" or _luhn(found)) and (kind != "iban" or _mod97(found)):
                yield Found(kind, found)


def canonical(kind: Kind, text: str) -> str:
    """A spelling of personal data without what may vary: case, spaces, punctuation, ``+1``."""
    if kind in ("email", "iban"):
        return "".join(visible(text).split()).casefold()
    digits = "".join(c for c in visible(text) if c.isdecimal())
    return digits[1:] if kind == "phone" and len(digits) == 11 and digits[0] == "1" else digits


def _luhn(digits: str) -> bool:
    doubled = [int(d) * (1 + n % 2) for n, d in enumerate(reversed(digits))]
    return sum(d - 9 * (d > 9) for d in doubled) % 10 == 0 and len(set(digits)) > 1


def _mod97(iban: str) -> bool:
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1
