"""Strings of a secret's own format, and how it stands among them: Carlini's exposure.

A *numeric* secret (phone, card or identity number) has a format: its digits vary, its letters and
punctuation stay. What its issuer leaves open is narrower than that: no identity number of the
canaries begins with anything but 9. Where many secrets of one shape are at hand, a digit varies
between the least and the greatest that they show in its place; so candidates are not told from
secrets by their format.

Source: Carlini et al., "The Secret Sharer", USENIX Security 2019 (arXiv 1802.08232).
"""

from __future__ import annotations

import itertools
import math
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safeedit.statistics.intervals import Floats

ALIKE = 5
"""Secrets of one shape from which a digit that all of them have is no secret: five drawn at random
agree in one place once in ten thousand times."""
ENOUGH = 20
"""Secrets of one shape from which the range of each digit is read off them."""
_MIN_DIGITS = 4
"""Fewer make no number worth guessing."""


def is_numeric(secret: str) -> bool:
    """Whether digits are what is secret: four at least, and half of all letters and digits."""
    digits = sum(map(str.isdecimal, secret))
    return digits >= _MIN_DIGITS and 2 * digits >= sum(map(str.isalnum, secret))


@dataclass(frozen=True)
class SecretFormat:
    """The strings that a secret is one of.

    Attributes:
        secret: The one.
        choices: Per character of it, the characters that may stand there.
    """

    secret: str
    choices: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many strings there are."""
        return math.prod(map(len, self.choices))

    def others(self) -> Iterator[str]:
        """All of them but the secret."""
        every = map("".join, itertools.product(*self.choices))
        return (text for text in every if text != self.secret)

    def draw(self, count: int, seed: str) -> list[str]:
        """So many others, distinct; which ones depends on the arguments alone.

        Args:
            count: Fewer than there are others.
            seed: Any text.
        """
        assert count < self.size
        source = random.Random(seed)
        found: dict[str, None] = {}
        while len(found) < count:
            text = "".join(map(source.choice, self.choices))
            if text != self.secret:
                found[text] = None
        return list(found)


def formats(secrets: Sequence[str], fixed: re.Pattern[str] | None = None) -> list[SecretFormat]:
    """The format of each of some numeric secrets of one kind.

    Args:
        secrets: Their texts.
        fixed: What it matches stays as it is, e.g. ``555-01``.
    """
    alike: dict[str, set[str]] = {}
    for secret in secrets:
        alike.setdefault(_shape(secret), set()).add(secret)

    def choices(secret: str) -> Iterator[str]:
        kept = {
            place
            for match in (fixed.finditer(secret) if fixed is not None else ())
            for place in range(*match.span())
        }
        others = alike[_shape(secret)]
        for place, character in enumerate(secret):
            if place in kept or not character.isdecimal():
                yield character
                continue
            seen = {unicodedata.decimal(other[place]) for other in others}
            span = range(min(seen), max(seen) + 1) if len(others) >= ENOUGH else range(10)
            zero = ord(character) - unicodedata.decimal(character)
            yield "".join(chr(zero + digit) for digit in span)

    return [SecretFormat(secret, tuple(choices(secret))) for secret in secrets]


def free_digits(secrets: Sequence[str]) -> list[tuple[bool, ...]]:
    """Which digits of each of some secrets are its own.

    Args:
        secrets: Their texts, numeric or not.

    Returns:
        For each secret, one entry per digit in it: False where all secrets of its shape have the
        same there, which :data:`ALIKE` of them at least must show.
    """
    alike: dict[str, set[str]] = {}
    for secret in secrets:
        alike.setdefault(_shape(secret), set()).add(_digits(secret))
    return [
        tuple(
            len(others) < ALIKE or len({other[place] for other in others}) > 1
            for others in (alike[_shape(secret)],)
            for place in range(len(_digits(secret)))
        )
        for secret in secrets
    ]


def mid_rank(own: float, others: Floats) -> float:
    """Rank of a score among others and itself, 1 the greatest; equal ones share their mean."""
    return 1 + float((others > own).sum()) + float((others == own).sum()) / 2


def exposure(rank: float, size: int) -> float:
    """Bits by which a secret is easier to guess than by trying candidates in random order.

    Args:
        rank: Of the secret among the candidates, itself included.
        size: Number of candidates, the secret included.

    Returns:
        ``log2(size) - log2(rank)``, in [0, log2(size)].
    """
    return math.log2(size) - math.log2(rank)


def _digits(secret: str) -> str:
    return "".join(str(unicodedata.decimal(c)) for c in secret if c.isdecimal())


def _shape(secret: str) -> str:
    """What secrets of one format share: all but the value of digits."""
    return "".join(chr(ord(c) - unicodedata.decimal(c)) if c.isdecimal() else c for c in secret)
