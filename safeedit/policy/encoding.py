"""Bytes of a text file to text: UTF-8 or UTF-16 with or without their marks.

Fails on anything else rather than guess: a wrongly decoded record would be searched for in
a model's output and never be found, which reads as success.
"""

from __future__ import annotations

import codecs

_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class EncodingError(ValueError):
    """Bytes that are not text in an encoding we read; ``line`` is where that shows."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def decode(raw: bytes) -> str:
    """The text of a file, without its byte-order mark; line ends are left as they are.

    Raises:
        EncodingError: The bytes are not UTF-8, nor UTF-16 or UTF-32 with a mark.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        name = encoding.removesuffix("-sig").upper()
        raise EncodingError(f"is not valid {name} text", line) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise EncodingError("holds NUL characters: a binary file, or UTF-16 without mark", line)
    return text
