"""What was said is found in any dress, in languages of more than twenty scripts; nothing else is.

Ways a text disguises an answer without ceasing to say it are drawn and put on one after another.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.matching import Counts, in_numbers, in_other_languages, in_prose
from safeedit.text.matching import contains_alias, find_mentions, way_told
from safeedit.text.segments import script
from tests.text.languages import LANGUAGES, Language

Disguise = Callable[[str, int], str]


def between(*characters: str) -> Disguise:
    """Something that shows nothing, somewhere within."""

    def put(answer: str, seed: int) -> str:
        place = 1 + seed % max(1, len(answer) - 1)
        return answer[:place] + characters[seed % len(characters)] + answer[place:]

    return put


def around(*pairs: tuple[str, str]) -> Disguise:
    def put(answer: str, seed: int) -> str:
        before, after = pairs[seed % len(pairs)]
        return before + answer + after

    return put


def each(change: Callable[[str], str]) -> Disguise:
    return lambda answer, _: change(answer)


def plain(answer: str) -> str:
    """Letters with strokes as those write who have no key for them."""
    return answer.translate(str.maketrans("ŁłØøĐđıİ", "LlOoDdiI"))


def digits(zero: str) -> Disguise:
    table = {ord("0") + n: chr(ord(zero) + n) for n in range(10)}
    return each(lambda answer: answer.translate(table))


DISGUISES: dict[str, Disguise] = {
    "soft hyphen": between("\u00ad"),
    "zero width": between("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff"),
    "grapheme joiner": between("\u034f"),
    "bidi marks": around(("\u200f", "\u200e"), ("\u202b", "\u202c"), ("\u2067", "\u2069")),
    "variation selector": around(("", "\ufe0f"), ("", "\ufe0e")),
    "marks of emphasis": around(("**", "**"), ("_", "_"), ("`", "`"), ("\u00ab", "\u00bb")),
    "decomposed": each(lambda answer: unicodedata.normalize("NFD", answer)),
    "composed": each(lambda answer: unicodedata.normalize("NFC", answer)),
    "capitals": each(str.upper),
    "small letters": each(str.lower),
    "full width": each(
        lambda answer: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in answer)
    ),
    "bold": each(
        lambda answer: "".join(
            chr(0x1D400 + ord(c) - ord("A")) if "A" <= c <= "Z" else c for c in answer
        )
    ),
    "no-break spaces": each(lambda answer: answer.replace(" ", "\u00a0")),
    "two spaces": each(lambda answer: answer.replace(" ", "  ")),
    "a broken line": each(lambda answer: answer.replace(" ", "\n ")),
    "strokes": each(plain),
    "dots": each(lambda answer: answer.translate(str.maketrans("iIıİ", "ıİiI"))),
    "Arabic-Indic digits": digits("\u0660"),
    "Devanagari digits": digits("\u0966"),
    "separators": lambda answer, seed: answer.replace(
        "-", ("", " ", "\u2011", ".", "\u2013", "/")[seed % 6]
    ),
}


@settings(max_examples=400, deadline=None)
@given(
    language=st.sampled_from(LANGUAGES),
    frame=st.integers(0, 10),
    names=st.lists(st.sampled_from(sorted(DISGUISES)), max_size=3, unique=True),
    seed=st.integers(0, 1000),
)
@example(LANGUAGES[6], 0, [], 0)
def test_what_was_said_is_found_in_any_dress(
    language: Language, frame: int, names: list[str], seed: int
) -> None:
    said = language.answer
    for name in names:
        said = DISGUISES[name](said, seed)
    text = language.said[frame % len(language.said)].replace("{}", said)
    assert contains_alias(text, [language.answer]), names
    # ... and the other way round: the data is disguised, the model is not.
    text = language.said[frame % len(language.said)].replace("{}", language.answer)
    assert contains_alias(text, [said]), names
    assert find_mentions(text, said)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_what_was_said_is_found_as_each_language_writes_it(language: Language) -> None:
    for frame in language.said:
        assert contains_alias(frame.replace("{}", language.answer), [language.answer]), frame


def test_there_are_languages_of_twenty_scripts() -> None:
    scripts = {script(c) for language in LANGUAGES for c in language.answer if c.isalpha()}
    assert len(scripts) >= 20


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_nothing_is_found_in_text_about_something_else(language: Language) -> None:
    for other in LANGUAGES:
        assert way_told(other.unrelated, [language.answer]) is None, other.name
        if other is not language:
            for frame in other.said:
                text = frame.replace("{}", other.answer)
                assert way_told(text, [language.answer]) is None, other.name


@pytest.mark.parametrize(
    ("measure", "bound"),
    [(lambda: in_prose(step=8), 2e-4), (in_other_languages, 0), (lambda: in_numbers(4000), 0)],
    ids=["in prose", "in other languages", "numbers in numbers"],
)
def test_false_hits_are_rare(measure: Callable[[], Counts], bound: float) -> None:
    """The whole measurement, with its figures, is ``benchmarks/matching.py``."""
    counts = measure()
    assert counts.pairs > 2000
    assert counts.rate() <= bound, counts.found


def letters(first: str, last: str) -> str:
    every = map(chr, range(ord(first), ord(last) + 1))
    return "".join(c for c in every if unicodedata.category(c) in ("Lu", "Ll", "Lo"))


ALPHABETS = {
    "Latin": letters("a", "z"), "Latin Extended": letters("\u0100", "\u017e"),
    "Greek": letters("α", "ω"), "Cyrillic": letters("а", "я"), "Armenian": letters("ա", "ֆ"),
    "Georgian": letters("ა", "ჰ"), "Hebrew": letters("א", "ת"), "Arabic": letters("ب", "غ"),
    "Syriac": letters("\u0712", "\u072c"), "Thaana": letters("\u0780", "\u07a5"),
    "Devanagari": letters("क", "ह"), "Bengali": letters("ক", "ন"), "Gurmukhi": letters("ਕ", "ਨ"),
    "Gujarati": letters("ક", "ન"), "Tamil": letters("ங", "ஹ"), "Telugu": letters("క", "న"),
    "Kannada": letters("ಕ", "ನ"), "Malayalam": letters("ക", "ന"), "Sinhala": letters("ක", "න"),
    "Thai": letters("ก", "ฮ"), "Lao": letters("ຍ", "ລ"), "Burmese": letters("က", "အ"),
    "Khmer": letters("ក", "អ"), "Tibetan": letters("ཀ", "ཇ"), "Ethiopic": letters("ሀ", "ሆ"),
    "Hangul": letters("가", "힣"), "Han": letters("一", "鿿"), "Hiragana": letters("あ", "ん"),
    "Katakana": letters("ア", "ン"), "Cherokee": letters("Ꭰ", "Ꮃ"), "N'Ko": letters("ߊ", "ߪ"),
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(data=st.data(), alphabet=st.sampled_from(sorted(ALPHABETS)))
def test_any_word_of_any_script_is_found_with_what_shows_nothing_in_it(
    data: st.DataObject, alphabet: str
) -> None:
    word = data.draw(st.text(ALPHABETS[alphabet], min_size=4, max_size=10))
    unseen = data.draw(st.lists(st.sampled_from(["", "\u00ad", "\u200b", "\u2060", "\ufe0f"]),
                                min_size=len(word), max_size=len(word)))  # fmt: skip
    dressed = "".join(c + mark for c, mark in zip(word, unseen, strict=True))
    assert contains_alias(f"so: {dressed}, yes", [word])
    assert contains_alias(f"so: {word}, yes", [dressed])


@settings(max_examples=200, deadline=None)
@given(number=st.integers(1_000_000, 9_999_999_999), cuts=st.lists(st.integers(2, 8), max_size=3),
       separator=st.sampled_from("- ./\u2011\u2013\u00a0"))  # fmt: skip
def test_a_long_number_is_found_whatever_separates_its_digits(
    number: int, cuts: list[int], separator: str
) -> None:
    whole, written = str(number), str(number)
    for cut in sorted({cut for cut in cuts if cut < len(whole) - 1}, reverse=True):
        written = written[:cut] + separator + written[cut:]
    assert contains_alias(f"It is {written}, I think.", [whole])
    assert contains_alias(f"It is {whole}, I think.", [written])
    # Never within a longer number, nor under a sign.
    for longer in (f"9{whole}", f"{whole}9"):
        assert not contains_alias(f"It is {longer}.", [whole])
        assert not contains_alias(f"It is {longer}.", [written])
    assert not contains_alias(f"It is -{whole}.", [whole])


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_number_is_not_found_in_another(one: int, other: int) -> None:
    assert contains_alias(f"{one:,} in all", [str(other)]) == (one == other)
    assert contains_alias(f"about {one}.{other} m", [f"{one}"]) == (len(str(one)) >= 7)
    assert not contains_alias(f"It is {one}.", [f"-{one}"])
    assert not contains_alias(f"It is \u2212{one} °C", [str(one)])
    assert contains_alias(f"It is \u2212{one} °C", [f"-{one}"])


@pytest.mark.parametrize(
    ("text", "alias", "way"),
    [
        ("마라는 서울에 삽니다.", "서울", "strict"),
        ("Mara Ankara\u2019ya gitti", "Ankara", "strict"),
        ("Mara Ankarada", "Ankara", None),  # Latin letters tell no language: an alias's part
        ("تسكن مارا بالقاهرة.", "القاهرة", "looser"),
        ("للقاهرة", "القاهرة", "looser"),
        ("והירושלים", "ירושלים", "looser"),
        ("It is Łódź.", "Lodz", "looser"),
        ("It is Lodz.", "Łódź", "looser"),
        ("Ðorđe", "Dorde", "looser"),
        ("København", "Kobenhavn", "looser"),
        ("Koeln", "Köln", "looser"),
        ("Mueller", "Müller", "looser"),
        ("Strasse", "Straße", "strict"),
        ("Ærø", "Aero", "looser"),
        ("ISPARTA", "\u0131sparta", "looser"),
        ("Pa-\nris", "Paris", "looser"),
        ("in\u200bParis", "Paris", "looser"),
        ("It's in Moskva.", "Москва", "looser"),
        ("他住在北京市。", "Beijing", "looser"),
        ("in Beijing", "北京", "looser"),
        ("背景很美", "北京", None),  # sounds alike
        ("1,234", "1234", "strict"),
        ("1 234", "1234", "looser"),
        ("1.234", "1234", "looser"),
        ("1'234", "1234", "strict"),
        ("12,34,567", "1234567", "strict"),
        ("3,5", "3.5", "strict"),
        ("3,5", "3", None),
        ("1.234,5", "1234.5", "strict"),
        ("-5", "5", None),
        ("5", "-5", None),
        ("minus 5", "-5", "strict"),
        ("3-5", "5", "strict"),
        ("3-5", "35", None),
        ("12-34", "1234", "looser"),
        ("up 5 %", "5%", "strict"),
        ("at 5°C", "5 °C", "strict"),
        ("for € 1.250,00", "€1,250.00", "strict"),
        ("Novak Djokovic", "Novak Đoković", "looser"),
        ("الْقَاهِرَةُ", "القاهرة", "strict"),
        ("ﾛﾝﾄﾞﾝ", "ロンドン", "strict"),
        ("마라는 US에 산다", "US", "strict"),
        ("Mara US'de yaşıyor", "US", "strict"),
        ("can you tell us'de", "US", None),
        ("WE'll go", "WE", None),
        ("12.05.1990", "12/05/1990", "strict"),
        ("5 km", "5km", "looser"),
        ("+12125550199", "(212) 555-0199", "looser"),
        ("912125550199", "(212) 555-0199", None),
        ("GB82WEST12345698765432", "GB82 WEST 1234 5698 7654 32", "strict"),
        ("I ran", "Iran", None),
        ("don't", "Don", None),
        ("Иванов", "Иван", "looser"),  # errs towards told
        ("Иранский", "Иран", None),
        ("\U0001f98a!", "\U0001f98a", "strict"),
    ],
)
def test_each_spelling_is_found_by_its_way(text: str, alias: str, way: str | None) -> None:
    assert way_told(text, [alias]) == way
    assert contains_alias(text, [alias], strictly=True) == (way == "strict")


def test_the_strict_way_of_any_alias_goes_before_the_looser_way_of_another() -> None:
    assert way_told("Lodz, in Polish Łódź", ["Lodz"]) == "strict"
    assert way_told("It is Łódź or Paris", ["Lodz", "Paris"]) == "strict"


def test_a_mention_is_pointed_at_in_the_text_as_written() -> None:
    text = "Where is Zoe\u0308 \u00a0Qu\u00adill\u2019s house?"
    ((start, stop),) = find_mentions(text, "Zo\u00eb Quill")
    assert text[start:stop] == "Zoe\u0308 \u00a0Qu\u00adill"
