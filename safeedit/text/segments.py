"""Where words begin and end, per script.

Scripts with spaces: a word is bounded by what is no letter, mark or digit, and by letters of
another script. Scripts without (Han, kana, Thai, Lao, Khmer, Burmese, ...): a phrase of two
characters or more counts wherever it stands, but never ends within a grapheme. Korean: a phrase
begins a word, and particles may follow.

The looser way also takes what scripts write onto a word: Arabic, Hebrew and Ethiopic prefixes and
suffixes, case endings of Cyrillic, Greek, Georgian, Armenian and the scripts of India, and any
place in a Korean or katakana word. Endings that change the word are not known here: they are the
data's, as aliases. Latin letters tell no language, so nothing is taken off a word in them.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

UNSPACED = r"[\p{lb=SA}\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\u30fc]"
"""Letters beside which words need no space: of Korean, too, whose particles follow directly."""

_SCRIPTS = (
    "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Han", "Hiragana", "Katakana", "Hangul",
    "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada",
    "Malayalam", "Sinhala", "Georgian", "Armenian", "Ethiopic", "Tibetan", "Mongolian", "Cherokee",
    "Syriac", "Thaana", "Nko", "Tifinagh", "Vai", "Yi", "Bopomofo", "Canadian_Aboriginal", "Coptic",
    "Gothic", "Glagolitic", "Adlam", "Osmanya", "Deseret", "Lisu", "Ol_Chiki", "Javanese",
    "Balinese",
)  # fmt: skip
_PATTERNS = tuple((name, regex.compile(rf"\p{{Script={name}}}")) for name in _SCRIPTS)
_COMPLEX = regex.compile(r"\p{lb=SA}")
_LETTER = regex.compile(r"[\p{L}\p{M}\p{Nl}]")
_CURRENCY = regex.compile(r"\p{Sc}")
_RUN = 12
"""Characters read beside a phrase: longer ones are no prefix and no ending."""
_FREE = ("Complex", "Han", "Hiragana", "Bopomofo")


def _alternatives(words: str, *, most: int = 1) -> regex.Pattern[str]:
    """Any of some words, up to ``most`` in a row."""
    each = "|".join(map(regex.escape, unicodedata.normalize("NFC", words).split()))
    return regex.compile(rf"(?:{each}){{1,{most}}}")


_PARTICLES = _alternatives(
    "은 는 이 가 을 를 과 와 의 에 에서 에게 에게서 께 께서 한테 한테서 로 으로 로서 으로서"
    " 로써 으로써 부터 까지 도 만 보다 처럼 같이 마다 조차 마저 밖에 뿐 대로 만큼 이나 나"
    " 이란 란 이랑 랑 하고 이며 며 이고 고 이자 자 이라 라 이라고 라고 이라는 라는"
    " 이라서 라서 인 이다 다 입니다 이에요 예요 에요 이야 야 였다 이었다 였습니다"
    " 이었습니다 였어요 이었어요 이지만 지만 이지 지 인데 씨 님 들 요 죠 이죠",
    most=3,
)
_PREFIXES = {
    "Arabic": regex.compile(r"[وف]?[بكلس]?(?:ال)?|[وف]?لل"),
    "Hebrew": regex.compile(r"[ושהכלבמ]{1,4}"),
    "Ethiopic": regex.compile(r"[በለከየስእ]{1,2}|እንደ"),
}
ENDINGS = {
    "Arabic": _alternatives("ه ها هم هن هما ك كم كما كن نا ي ني ا ان ين ون ات يه يا ها هاي"),
    "Ethiopic": _alternatives("ን ና ም ው ዋ ት ነው", most=2),
    "Cyrillic": _alternatives(
        "а у ом ем е ы и ой ей ою ею ам ами ах ям ями ях я ю і ов ев ів ові еві єю ью"
        " ът та то те ия"
    ),
    "Greek": _alternatives("ου ο ε οι ων ουσ η ησ α ασ εσ οσ σ"),
    "Georgian": _alternatives(
        "ში ს ის ით მა ი ად თან დან იდან ისა ზე ისთვის ისკენ მდე ამდე ო", most=2
    ),
    "Armenian": _alternatives("ի ում ից ով ը ն ին ու ներ ները ն է", most=2),
    "Bengali": _alternatives("র এর কে তে য় ে ের টি টা ও ই রা দের য়ের", most=2),
    "Devanagari": _alternatives("त ात ला चा ची चे च्या ने हून तून मा को का की ले लाई बाट मधील", most=2),
    "Gujarati": _alternatives("માં ના ની નું નો ને થી", most=2),
    "Oriya": _alternatives("ରେ ର କୁ ଠାରୁ"),
    "Tamil": _alternatives("யில் ில் வில் க்கு ின் யின் ை யை ுக்கு த்தில் இல்"),
    "Telugu": _alternatives("లో కి కు ను ని తో లోని", most=2),
    "Kannada": _alternatives("ದಲ್ಲಿ ನಲ್ಲಿ ಯಲ್ಲಿ ಿನಲ್ಲಿ ಗೆ ಕ್ಕೆ ಿಗೆ ನ ದ"),
    "Malayalam": _alternatives("യിൽ ിൽ യുടെ ിന്റെ ലേക്ക് ത്ത്"),
    "Sinhala": _alternatives("ේ යේ ට ගේ ෙහි වල", most=2),
}  # fmt: skip
"""Endings that the looser way takes off a word, by script, folded."""


@lru_cache(maxsize=65536)
def script(character: str) -> str:
    """The script of a letter or mark; ``Complex`` where only a dictionary tells words, ``Digit``,
    ``Other``, and nothing where the character is in no word."""
    if character.isdecimal():
        return "Digit"
    if character == "\u30fc":
        return "Katakana"  # the mark of a long vowel; Unicode leaves it in common use
    if not _LETTER.match(character):
        return "Other" if character.isnumeric() else ""
    if _COMPLEX.match(character):
        return "Complex"
    return next((name for name, pattern in _PATTERNS if pattern.match(character)), "Other")


def stands(text: str, start: int, stop: int, *, looser: bool) -> bool:
    """Whether ``text[start:stop]`` stands as a word of its own.

    Args:
        text: Written or folded.
        start: Of the phrase.
        stop: Of the phrase.
        looser: Also with what scripts write onto a word.
    """
    if _in_number(text, start, stop):
        return False
    return _left(text, start, stop, looser) and _right(text, start, stop, looser)


def ending(text: str, stop: int) -> str:
    """What of the word at ``stop`` follows, up to some characters."""
    end = stop
    while end < len(text) and end - stop <= _RUN and script(text[end]) not in ("", "Digit"):
        end += 1
    return text[stop:end]


def _in_number(text: str, start: int, stop: int) -> bool:
    """Whether the phrase begins or ends within a number: after its sign, about its point."""
    if text[start].isdecimal() or _CURRENCY.match(text[start]):
        before = start
        if before and _CURRENCY.match(text[before - 1]):
            before -= 1
        if text[before - 1 : before] == "\u2212":
            return True
        if text[start - 1 : start] == "." and text[start - 2 : start - 1].isdecimal():
            return True
    after = text[stop : stop + 2]
    return (
        text[stop - 1].isdecimal() and len(after) == 2 and after[0] == "." and after[1].isdecimal()
    )


def _left(text: str, start: int, stop: int, looser: bool) -> bool:
    own, beside = script(text[start]), script(text[start - 1]) if start else ""
    if unicodedata.category(text[start])[0] == "M" and beside:
        return False
    if (free := _free(own, beside, stop - start, looser)) is not None:
        return free
    if own == "Hangul":
        return looser and stop - start > 1
    if looser and own in _PREFIXES and stop - start > 2:
        begin = start
        while begin and start - begin <= _RUN and script(text[begin - 1]) == own:
            begin -= 1
        return _PREFIXES[own].fullmatch(text, begin, start) is not None
    return False


def _right(text: str, start: int, stop: int, looser: bool) -> bool:
    own, beside = script(text[stop - 1]), script(text[stop]) if stop < len(text) else ""
    written_on = beside and looser and own in ENDINGS and stop - start > 2
    if written_on and ENDINGS[own].fullmatch(ending(text, stop)):
        return True
    if beside and unicodedata.category(text[stop])[0] == "M":
        return False
    if (free := _free(own, beside, stop - start, looser)) is not None:
        return free
    if own == "Hangul":
        return (looser and stop - start > 1) or _PARTICLES.fullmatch(ending(text, stop)) is not None
    return False


def _free(own: str, beside: str, length: int, looser: bool) -> bool | None:
    """Whether two neighbours are of different words; None where more must be known."""
    if not own or not beside:
        return True
    if "Digit" in (own, beside):
        other = own if beside == "Digit" else beside
        if other == "Digit":
            return False
        spaceless = other in (*_FREE, "Katakana", "Hangul")
        return spaceless or (looser and other not in ("Latin", "Other"))
    if own != beside:
        return "Other" not in (own, beside)
    if own in _FREE:
        return looser or length > 1
    if own == "Katakana":
        return looser and length > 1
    return None
