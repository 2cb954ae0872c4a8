"""What a fact is about: put into its prompt, or found where its row does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from safeedit.data.items import Dataset, Item
from safeedit.errors import DataError
from safeedit.text.matching import find_mentions, straighten

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


def same_subject(subject: str) -> str:
    """What the spellings of one subject have in common: case, accents in one or two characters,
    the form of apostrophes, the width and number of spaces."""
    return straighten(subject).casefold()


def names_subject(text: str, subject: str) -> bool:
    """Whether a text names a subject, in whichever of its spellings, as editors find it."""
    if not subject.strip():
        return False
    as_written = rf"(?<!\w){re.escape(same_subject(subject))}(?!\w)"
    if re.search(as_written, same_subject(text)):
        return True
    return bool(find_mentions(text, subject))


def with_subject(text: str, item: Item, name: str) -> str | None:
    """A wording of an item with another name or phrase in its subject's place.

    Args:
        text: The wording.
        item: Its item; of its names, the first that stands in the wording is replaced.
        name: What to put there.

    Returns:
        The new wording; None where the wording names no subject.
    """
    for own in item.names:
        as_written = re.compile(rf"(?<!\w){re.escape(own)}(?!\w)", re.IGNORECASE)
        if as_written.search(text):
            return as_written.sub(lambda _: name, text)
        spans = find_mentions(text, own) if own.strip() else ()
        if spans:
            for start, stop in reversed(spans):
                text = f"{text[:start]}{name}{text[stop:]}"
            return text
    return None


def check_subjects(data: Dataset, *, every_phrasing: bool = False, inferred: bool = True) -> None:
    """See that an editor finds what its facts are about.

    Args:
        data: Facts to change; those to fit on count.
        every_phrasing: All phrasings must name the subject, not only the first.
        inferred: A subject that the row lacks is taken from what its phrasings share.

    Raises:
        DataError: With the places of the items, never their content.
    """
    texts: dict[str, tuple[Item, list[str]]] = {}
    for phrasing in data.phrasings("fit"):
        texts.setdefault(phrasing.item.id, (phrasing.item, []))[1].append(phrasing.text)
    place = {item.id: number for number, item in enumerate(data.all(), start=1)}
    lacking, absent = [], []
    for identity, (item, wordings) in texts.items():
        subject = (item.subject or "").strip() or (shared_span(wordings) if inferred else "")
        asked = wordings if every_phrasing else wordings[:1]
        if not subject:
            lacking.append(place[identity])
        elif not all(names_subject(text, subject) for text in asked):
            absent.append(place[identity])
    if lacking:
        reason = ", and their phrasings share no name to take for one" if inferred else ""
        raise DataError(
            f"{_places(lacking, len(texts))} no subject{reason}",
            remedy="add a 'subject' to each row, as written in its prompt",
        )
    if absent:
        where = "in all their phrasings" if every_phrasing else "in their prompt"
        raise DataError(
            f"{_places(absent, len(texts))} a subject that does not stand {where}",
            remedy="write the subject as the prompt does, or correct the prompt",
        )


def _places(numbers: Sequence[int], total: int) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
    return f"{len(numbers)} of {total} items (number {shown}) have"


_SHOWN = 5
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
