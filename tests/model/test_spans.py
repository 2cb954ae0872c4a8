"""Mentions are found by what the tokens say, whatever the tokenizer does to the text.

The oracle is independent of the code: the offsets that fast tokenizers keep for themselves.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safeedit.model.engine import TokenCodec
from safeedit.model.spans import last_tokens
from safeedit.text.matching import contains_alias
from tests.tiny_models import FAMILIES, SENTENCES, family_tokenizer, tiny_tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are part of words, unknown characters fall back to bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trained.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], show_progress=False),
    )
    learnt = json.loads(trained.to_str())["model"]
    vocab = dict(learnt["vocab"])
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=False
    )


TOKENIZERS = {
    "byte-level": tiny_tokenizer(chat_template=False),
    "byte-level with BOS": tiny_tokenizer(bos=True, chat_template=False),
    "SentencePiece-like": sentencepiece_like(),
}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def found(kind: str, text: str, phrase: str) -> tuple[int, ...]:
    tokenizer = TOKENIZERS[kind]
    return last_tokens(tokenizer, tokenizer(text)["input_ids"], phrase)


def by_offsets(kind: str, text: str, stops: list[int]) -> tuple[int, ...]:
    """The last token that holds part of the character before each of ``stops``."""
    offsets = TOKENIZERS[kind](text, return_offsets_mapping=True)["offset_mapping"]
    return tuple(
        max(i for i, (start, end) in enumerate(offsets) if start < stop <= end) for stop in stops
    )


def stops_of(text: str, phrase: str) -> list[int]:
    return [
        i + len(phrase) for i in range(len(text)) if text[i : i + len(phrase)] == phrase
    ]  # fmt: skip


@every_tokenizer
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Who wrote about the prince of Denmark?", "prince of Denmark"),
        ("Paris is the capital. Paris, again Paris", "Paris"),
        ("Zbigniew Brzeziński was asked.", "Zbigniew Brzeziński"),
        ("I like Zoë today", "Zoë"),
        ("the 😀🎉 sign", "😀🎉"),
        ("a 👩‍👩‍👧 family", "👩‍👩‍👧"),
        ("صباح كرة القدم اليوم", "كرة القدم"),
        ("where is ירושלים today", "ירושלים"),
        ("東京の首都", "東京"),
        ("서울은 크다", "서울"),
        ("I use C++ and C#.", "C++"),
        ("e-mail jean-paul@example.org now", "jean-paul@example.org"),
        ("Mary's book, said O'Brien", "O'Brien"),
    ],
)
def test_each_mention_ends_at_its_last_token(kind: str, text: str, phrase: str) -> None:
    positions = found(kind, text, phrase)
    assert positions == by_offsets(kind, text, stops_of(text, phrase))
    assert positions


def test_a_subject_of_several_tokens_ends_at_the_last_of_them() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer("Where did Zbigniew live?")["input_ids"]
    (position,) = found("byte-level", "Where did Zbigniew live?", "Zbigniew")
    assert tokenizer.decode(ids[: position + 1]) == "Where did Zbigniew"
    assert len(tokenizer(" Zbigniew")["input_ids"]) > 1


@every_tokenizer
@pytest.mark.parametrize(
    ("text", "phrase", "count"),
    [
        ("Nigeria lies south of Niger", "Niger", 1),
        ("Nigeria and the Nigerians", "Niger", 0),
        ("mcDonald", "Donald", 0),
        ("route 66 and 660", "66", 1),
        ("रामायण", "राम", 0),  # a vowel sign follows
        ("राम और रामायण", "राम", 1),
        ("Jose\u0301 and Jose", "Jose", 1),  # an accent of its own follows
        ("Parisian, comparison, PARISH", "Paris", 0),
        ("snow-Paris, 'Paris' (Paris) Paris's", "Paris", 4),
    ],
)
def test_parts_of_longer_words_are_no_mentions(
    kind: str, text: str, phrase: str, count: int
) -> None:
    assert len(found(kind, text, phrase)) == count


@every_tokenizer
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Is PARIS large?", "Paris"),
        ("is paris large?", "Paris"),
        ("İİİ saw PARIS here", "paris"),  # lowering İ makes two characters of one
    ],
)
def test_case_is_disregarded_where_nothing_matches_as_written(
    kind: str, text: str, phrase: str
) -> None:
    stop = text.casefold().replace("i̇", "i").index("paris") + 5
    assert found(kind, text, phrase) == by_offsets(kind, text, [stop])


@every_tokenizer
@pytest.mark.parametrize(
    ("text", "phrase", "stop"),
    [
        ("Where is Zoe\u0308 Quill now?", "Zo\u00eb Quill", "Quill"),
        ("Where is O\u2019Brien now?", "O'Brien", "Brien"),
        ("Where is Ada\u00a0Lovelace now?", "Ada Lovelace", "Lovelace"),
        ("Where is Ada  Lovelace now?", "Ada Lovelace", "Lovelace"),
        ("Where is Ada Love\u00adlace now?", "Ada Lovelace", "lace"),
        ("Where is Lodz now?", "\u0141\u00f3d\u017a", "Lodz"),
        ("Mara Ankara\u2019da now", "ankara", "Ankara"),
        ("\ub9c8\ub77c\ub294 \uc11c\uc6b8\uc5d0", "\uc11c\uc6b8", "\uc11c\uc6b8"),
        ("\u0628\u0642\u0637\u0631", "\u0642\u0637\u0631", "\u0642\u0637\u0631"),
    ],
    ids=["NFD", "curly", "no-break", "spaces", "hyphen", "stroke", "suffix", "Korean", "Arabic"],
)  # fmt: skip
def test_a_mention_is_found_in_the_dress_in_which_auditors_find_it(
    kind: str, text: str, phrase: str, stop: str
) -> None:
    assert contains_alias(text, [phrase])
    assert found(kind, text, phrase) == by_offsets(kind, text, [text.index(stop) + len(stop)])


@every_tokenizer
def test_a_mention_as_written_goes_before_one_in_another_case(kind: str) -> None:
    text = "Tell us about the US"
    assert found(kind, text, "US") == by_offsets(kind, text, [len(text)])


@every_tokenizer
@pytest.mark.parametrize(("text", "phrase"), [("Rome", "Paris"), ("", "Paris"), ("Rome", "")])
def test_what_is_not_there_is_not_found(kind: str, text: str, phrase: str) -> None:
    assert found(kind, text, phrase) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mention_is_found_inside_each_familys_own_prompt(family: str) -> None:
    tokenizer = family_tokenizer(family)
    (ids,) = TokenCodec(tokenizer).encode(["Where did Ada Lovelace live?"], "auto")
    (position,) = last_tokens(tokenizer, ids, "Ada Lovelace")
    assert tokenizer.decode(ids[: position + 1]).endswith("Where did Ada Lovelace")
    assert not tokenizer.decode(ids[:position]).endswith("Lovelace")


def test_the_same_words_are_found_in_the_template_of_a_chat() -> None:
    tokenizer = family_tokenizer("qwen2")
    (ids,) = TokenCodec(tokenizer).encode(["Which user?"], "chat")
    # The template itself says "user": told apart from the question's only by its place.
    assert len(last_tokens(tokenizer, ids, "user")) == 2


WORDS = st.lists(
    st.sampled_from(["Ada", "Adam", "naïve", "😀", "東京", "x", "Paris", "कमल", "42", "e\u0301"]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(before=WORDS, after=WORDS, kind=st.sampled_from(sorted(TOKENIZERS)))
@pytest.mark.parametrize("phrase", ["Grace Hopper", "Björk", "🎉", "नेहरू"])
def test_among_any_words_a_mention_is_found_where_it_is(
    before: list[str], after: list[str], kind: str, phrase: str
) -> None:
    text = " ".join([*before, phrase, *after])
    stop = len(" ".join([*before, phrase]))
    assert found(kind, text, phrase) == by_offsets(kind, text, [stop])
