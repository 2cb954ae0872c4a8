"""Numbers in one spelling, whatever separates their digits.

Thousands separators go (1,234; 1'234; 12,34,567), a decimal comma becomes a point (3,5), a minus
of any shape or word becomes U+2212 and stays with its number: 5 is not said by -5, nor 3 by 3.5.
Where a spelling has two readings (1.234; 1 234; 12.05.1990) the looser way takes the other one.
"""

from __future__ import annotations

from typing import Any

import regex

from safeedit.text.folding import FoldedText

MINUS = "\u2212"

_DASH = "[-\u2010\u2011\u2013]"
_SIGN = regex.compile(
    rf"(?<![\w%)\]]){_DASH}(?=\p{{Sc}}?\.?\d)"
    # A telephone number after a dash has no sign.
    rf"(?!\d+{_DASH}\d)"
)
_SIGN_WORD = regex.compile(
    r"(?<!\d )(?<!\w)(?:minus|negative|минус) ?(?=\d)"
    r"|[负負](?=\d)|(?:マイナス|まいなす|마이너스) ?(?=\d)"
)
_GROUPED = regex.compile(r"(?<![\d.,'])\d++(?:[.,']\d++)++")
_SPACED = regex.compile(r"(?<![\d.,']|\d )\d{1,3}(?: \d{3})++(?! ?\d)")
_SEPARATOR = regex.compile(r"[.,']")
_INDIAN = regex.compile(r"\d{1,2}(?:,\d{2})+,\d{3}")
_DATE = regex.compile(r"\d{1,4}\.\d{1,2}\.\d{1,4}")
_CHAINED = regex.compile(rf"\d{_DASH}")
"""What precedes the last group of a telephone number."""
_CODE = 6
"""Digits from which a version is read as a number whose digits points separate, too."""
_TELEPHONE = 7
"""Digits from which a number with one separator is read as one that has no decimals, too."""


def spell_numbers(folded: FoldedText, *, looser: bool) -> FoldedText:
    """Folded text with its numbers in one spelling.

    Args:
        folded: Digits are ASCII.
        looser: Take the other reading where there are two.
    """
    signed = folded.sub(_SIGN, MINUS).sub(_SIGN_WORD, MINUS)
    if looser:
        signed = signed.sub(_SPACED, lambda match: str(match.group().replace(" ", "")))
    return signed.sub(_GROUPED, lambda match: _spell(match, looser))


def _spell(match: Any, looser: bool) -> str:
    number: str = match.group()
    groups = _SEPARATOR.split(number)
    separators = _SEPARATOR.findall(number)
    last = separators[-1]
    if len(separators) == 1:
        if _thousands(groups) and (looser or last != "."):
            return "".join(groups)
        if looser and (len(groups[0]) >= _TELEPHONE or (len(groups[0]) > 2 and _chained(match))):
            return " ".join(groups)  # a number of many digits ends, then another begins
        if looser and len("".join(groups)) >= _TELEPHONE:
            return "".join(groups)
        return " ".join(groups) if last == "'" else ".".join(groups)
    if len(set(separators)) == 1:
        if _thousands(groups) or _INDIAN.fullmatch(number):
            return "".join(groups)
        version = last == "." and max(map(len, groups)) <= 2
        if version and not (looser and (_DATE.fullmatch(number) or len("".join(groups)) >= _CODE)):
            return number
        return " ".join(groups)
    if len(set(separators[:-1])) == 1 and last not in separators[:-1] and _thousands(groups[:-1]):
        return f"{''.join(groups[:-1])}.{groups[-1]}"
    return " ".join(groups)


def _chained(match: Any) -> bool:
    before: str = match.string[max(0, match.start() - 2) : match.start()]
    return _CHAINED.fullmatch(before) is not None


def _thousands(groups: list[str]) -> bool:
    first, *rest = groups
    return 0 < len(first) <= 3 and first[0] != "0" and all(len(group) == 3 for group in rest)
