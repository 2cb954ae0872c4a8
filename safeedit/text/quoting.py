"""Does a short text - a name, a path, a note - quote what is to be erased?

Reports repeat a policy's names, notes and parameters; where one of them quotes an item that is to
be erased, the report would hand it on. What is compared are runs of whole words, without their
case, accents and the marks between them, so that ``jane_roe-2024.jsonl`` and ``JaneRoe`` quote
"Jane Roe".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

SHORTEST = 3
"""Letters and digits: shorter texts ("no", "12") stand in too many others to give anything away,
but for those that are the whole of what is shown, or all of a file's name but its ending."""

_WORD = re.compile(r"[^\W_]+")
_CASES = re.compile(r"(?<=[^\W\dA-Z_])(?=[A-Z])")
_NUMBERS = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_PATH = re.compile(r"[/\\]")
_ENDING = re.compile(r"(?:\.[A-Za-z][A-Za-z0-9]{1,8}){1,2}$")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)


class Quotes:
    """Finds any of some texts within others.

    Args:
        texts: Answers, subjects, questions. Those shorter than :data:`SHORTEST` letters and digits
            are found only where nothing stands beside them, single ones nowhere.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = (_words(text) for text in texts)
        joined = {"".join(each): len(each) for each in words}
        self._texts = {text for text in joined if len(text) >= SHORTEST or _short(text)}
        self._alone = {text for text in joined.keys() - self._texts if len(text) > 1}
        self._longest = max((joined[text] for text in self._texts), default=0)
        self._unspaced = {text for text in self._texts if _UNSPACED.search(text)}

    def __call__(self, text: str) -> bool:
        """Whether one of them stands in ``text``."""
        if self._alone and any(each in self._alone for each in _wholes(text)):
            return True
        cased = _CASES.sub(" ", text)
        for parted in dict.fromkeys((text, cased, _NUMBERS.sub(" ", cased))):
            words = _words(parted)
            for begin in range(len(words)):
                run = ""
                for word in words[begin : begin + self._longest]:
                    run += word
                    if run in self._texts:
                        return True
            joined = "".join(words)
            if any(each in joined for each in self._unspaced):
                return True
        return False


def _wholes(text: str) -> Iterator[str]:
    """A text, and where it may be a path each of its parts, without a file's ending."""
    for part in (text, *_PATH.split(text)):
        yield "".join(_words(part))
        yield "".join(_words(_ENDING.sub("", part)))


def _short(text: str) -> bool:
    """Two signs of a script that writes a word with two."""
    return len(text) >= 2 and _UNSPACED.search(text) is not None


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(c for c in folded if not unicodedata.combining(c))
    return _WORD.findall(unicodedata.normalize("NFC", plain))
