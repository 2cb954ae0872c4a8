"""Text from outside (names, paths, keys, answers of a model) made fit to be shown.

A terminal obeys control characters, and a reader is misled by marks that turn the direction of
writing or that cannot be seen. Every report and everything the command line prints passes
through here.
"""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPACES = frozenset("\n\r\t\v\f\x1c\x1d\x1e\x85\u2028\u2029")
"""Breaks and tabs: a space says the same on one line."""
_NEEDED = frozenset("\u200c\u200d\u00ad")
"""Joiners (Persian, Indic scripts, emoji) and the soft hyphen: format characters that spelling
needs and that move nothing."""
_SEEN = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
"""Number signs of Arabic, Syriac and Kaithi: format characters by name only, since they are
visible."""
_BARRED = frozenset(("Cc", "Cf", "Cs", "Cn"))


def clean(text: object) -> str:
    """Text on one line without control characters, so that it can neither move a terminal's
    cursor, nor turn the direction of writing, nor break XML."""
    return "".join(
        " " if character in _SPACES else REPLACEMENT if _is_barred(character) else character
        for character in str(text)
    )


def clean_lines(text: object) -> str:
    """As :func:`clean`, with its line breaks kept."""
    return "\n".join(map(clean, str(text).replace("\r\n", "\n").split("\n")))


def escape_json(text: str) -> str:
    """A JSON text in printable ASCII: the same value to a machine, harmless in any terminal.

    Beyond ASCII a JSON text has only what its strings hold, where escapes are allowed.
    """
    return "".join(
        character if " " <= character <= "~" or character == "\n" else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(rf"\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _is_barred(character: str) -> bool:
    return (
        unicodedata.category(character) in _BARRED
        and character not in _NEEDED
        and character not in _SEEN
    )
