"""Other spellings of a name, as hurried people write it: for asking after it in ways nobody fitted.

Nothing here knows a language: what is made is tried, and a spelling that nobody would write costs
one question.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from anyascii import anyascii

TYPOS = 2
"""Misspelt forms made of each name."""
_LEAST_MISSPELT = 4
"""Letters: of shorter names a slip makes another name."""
_OF_BODIES = (
    "new old north south east west northern southern eastern western upper lower great united "
    "republic kingdom state states federation union island islands city county river lake mount "
    "san santa saint st cape fort port university institute college school company corporation inc "
    "ltd gmbh group bank party church club league museum ministry department"
)
_BODIES = frozenset(_OF_BODIES.split())
"""Words that name places and bodies rather than people."""
_WORD = re.compile(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*\.?")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def made_names(name: str, seed: int) -> Iterator[tuple[str, str]]:
    """Spellings of a name and what they are, none equal to it, each once.

    Args:
        name: Of a person, a place, anything.
        seed: Of the misspelt ones: one seed and name, one spelling.

    Yields:
        Form (``lower case``, ``upper case``, ``misspelt``, ``plain letters``, and of what reads
        like a person's name ``initials``, ``surname``, ``handle``), spelling.
    """
    seen = {name}
    for form, text in (
        ("lower case", name.lower()),
        ("upper case", name.upper()),
        *(("misspelt", text) for text in typos(name, seed)),
        ("plain letters", plain_letters(name)),
        *_of_person(name),
    ):
        if text not in seen and text.strip():
            seen.add(text)
            yield form, text


def typos(name: str, seed: int, count: int = TYPOS) -> list[str]:
    """Misspelt forms of a name: a letter left out, doubled, swapped or struck beside its key.

    The first letter of a word stays, since people get it right. Names of fewer than four letters
    are left alone.
    """
    places = [
        place
        for word in _WORD.finditer(name)
        if len(word.group()) >= _LEAST_MISSPELT
        for place in range(word.start() + 1, word.end() - 1)
        if name[place].isalpha()
    ]
    if not places:
        return []
    digest = hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8]))
    found: dict[str, None] = {}
    for _ in range(16 * count):
        text = _slip(name, int(random.choice(places)), int(random.integers(4)))
        if text != name:
            found[text] = None
        if len(found) == count:
            break
    return list(found)


def _slip(name: str, place: int, kind: int) -> str:
    letter = name[place]
    if kind == 0:
        return name[:place] + name[place + 1 :]
    if kind == 1:
        return name[:place] + letter + name[place:]
    if kind == 2:
        return name[:place] + name[place + 1] + letter + name[place + 2 :]
    for row in _KEYS:
        at = row.find(letter.lower())
        if at >= 0:
            beside = row[at + 1] if at + 1 < len(row) else row[at - 1]
            return (
                name[:place] + (beside.upper() if letter.isupper() else beside) + name[place + 1 :]
            )
    return name[:place] + name[place + 1 :]


def plain_letters(name: str) -> str:
    """A name without the accents and strokes of its Latin letters; other scripts as they are."""
    made = []
    for character in unicodedata.normalize("NFC", name):
        latin = "LATIN" in unicodedata.name(character, "")
        made.append(anyascii(character) if latin and not character.isascii() else character)
    return "".join(made)


def reads_like_a_person(name: str) -> bool:
    """Whether a name is two to four capitalised words, none of them usual in names of places and
    bodies."""
    words = name.split()
    return 2 <= len(words) <= 4 and all(
        _WORD.fullmatch(word) and word[0].isupper() and word.lower().strip(".") not in _BODIES
        for word in words
    )


def _of_person(name: str) -> Iterator[tuple[str, str]]:
    if not reads_like_a_person(name):
        return
    *given, surname = name.split()
    yield "initials", " ".join([*(f"{each[0]}." for each in given), surname])
    yield "initials", " ".join(f"{each[0]}." for each in (*given, surname))
    yield "surname", surname
    first, last = (re.sub(r"\W", "", plain_letters(each)).lower() for each in (given[0], surname))
    yield "handle", f"{first}.{last}"
    yield "handle", f"{first[:1]}{last}"


def with_possessive(question: str, name: str) -> str | None:
    """An English question with ``the capital of NAME`` turned into ``NAME's capital``.

    Returns:
        The question; None where it holds no such phrase.
    """
    phrase = re.compile(
        rf"\bthe ((?:[\w-]+ ){{1,3}})of (?:the )?({re.escape(name)})(?!\w|['’]s)", re.IGNORECASE
    )
    found = phrase.search(question)
    if found is None:
        return None
    owner = f"{found[2]}'" if found[2].endswith("s") else f"{found[2]}'s"
    return f"{question[: found.start()]}{owner} {found[1].strip()}{question[found.end() :]}"
