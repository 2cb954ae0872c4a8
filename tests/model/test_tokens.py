"""Templates, BOS and how answers join their prompts."""

from __future__ import annotations

import pytest

from safeedit.contracts import Template
from safeedit.errors import AuditError, UsageError
from safeedit.model.tokens import TokenCodec
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

BOS = 1


def codec(*, bos: bool = False, chat: bool = False) -> TokenCodec:
    return TokenCodec(tiny_tokenizer(bos=bos, chat_template=chat))


def text_of(codec: TokenCodec, ids: list[int]) -> str:
    text = codec.tokenizer.decode(ids, skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def test_plain_prompts_are_the_text_itself() -> None:
    plain = codec()

    assert [text_of(plain, ids) for ids in plain.encode(["Paris is", "Rome"])] == [
        "Paris is",
        "Rome",
    ]


def test_bos_stands_first_where_the_tokenizer_adds_one_and_is_never_doubled() -> None:
    with_bos = codec(bos=True)

    bare, dressed = with_bos.encode(["Paris", "<bos>Paris"], "plain")

    assert bare[0] == BOS
    assert bare.count(BOS) == 1
    assert dressed == bare
    assert BOS not in codec().encode(["Paris"], "plain")[0]


def test_a_template_that_writes_bos_itself_gets_no_second_one() -> None:
    both = codec(bos=True, chat=True)
    both.tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE

    (ids,) = both.encode(["Paris"], "chat")

    assert ids.count(BOS) == 1


def test_auto_is_chat_where_there_is_a_template_and_plain_elsewhere() -> None:
    assert codec(chat=True).resolve("auto") == "chat"
    assert codec(chat=True).resolve("plain") == "plain"
    assert codec().resolve("auto") == "plain"
    with pytest.raises(UsageError, match="no chat template"):
        codec().encode(["Paris"], "chat")


def test_chat_prompts_end_where_the_answer_begins() -> None:
    chat = codec(chat=True)

    (ids,) = chat.encode(["Where is Rome?"], system="Be brief.", answer_prefix="Sure,")

    assert text_of(chat, ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is Rome?<|im_end|>\n"
        "<|im_start|>assistant\nSure,"
    )


def test_plain_prompts_take_system_text_and_answer_prefix_too() -> None:
    plain = codec()

    (ids,) = plain.encode(["Where is Rome?"], "plain", system="Be brief.", answer_prefix="Sure,")

    assert text_of(plain, ids) == "Be brief.\n\nWhere is Rome? Sure,"


@pytest.mark.parametrize("answer", ["Paris", "I don't know.", "1929", "Ünïcode", "é"])
@pytest.mark.parametrize("bos", [False, True])
def test_plain_answers_get_the_space_that_parts_them_from_the_prompt(
    answer: str, bos: bool
) -> None:
    plain = codec(bos=bos)

    ids = plain.continuation(answer, "plain")

    assert text_of(plain, ids) == f" {answer}"
    (prompt,), (whole,) = plain.encode(["It is:"], "plain"), plain.encode([f"It is: {answer}"])
    assert prompt + ids == whole


@pytest.mark.parametrize("answer", ["Paris", "I don't know.", "\nand a line break"])
def test_chat_answers_follow_the_template_as_a_whole_conversation_would(answer: str) -> None:
    chat = codec(chat=True)

    ids = chat.continuation(answer)

    assert text_of(chat, ids) == answer


def test_chat_answers_get_the_space_their_template_puts_before_them() -> None:
    chat = codec(chat=True)
    chat.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )

    assert text_of(chat, chat.continuation("Paris")) == " Paris"


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_many_answers_are_tokenised_as_one_by_one(template: Template) -> None:
    codec = TokenCodec(tiny_tokenizer())
    texts = ["Paris", "", "(212) 555-0143", "\u05d3\u05e0\u05d4 \U0001f98a", "Paris"]
    together = codec.continuations(texts, template)
    assert together == [codec.continuation(text, template) for text in texts]
    assert codec.continuations([], template) == []


def test_an_answer_that_merges_with_its_context_does_not_change_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = TokenCodec(tiny_tokenizer())
    expected = codec.continuations(["Rome", "Paris"], "plain")
    tokenise = codec.token_ids

    def merging(texts: list[str]) -> list[list[int]]:
        """Whatever ends on Rome begins with another token when it has something before it."""
        return [
            [3, *ids[1:]] if text.endswith("Rome") and text != " Rome" else ids
            for text, ids in zip(texts, tokenise(texts), strict=True)
        ]

    monkeypatch.setattr(codec, "token_ids", merging)
    assert codec.continuations(["Rome", "Paris"], "plain") == expected


def test_thinking_aloud_is_switched_off_and_the_date_stands_still() -> None:
    chat = codec(chat=True)
    chat.tokenizer.chat_template = (
        "{{ date_string }} {{ messages[0]['content'] }}"
        "{% if enable_thinking is defined and not enable_thinking %}<no thinking>{% endif %}"
    )

    (ids,) = chat.encode(["Hello"])

    assert text_of(chat, ids) == "26 Jul 2024 Hello<no thinking>"


def test_a_template_that_refuses_a_system_message_says_so_without_quoting_it() -> None:
    chat = codec(chat=True)
    chat.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}"
        "{% endif %}{{ messages[0]['content'] }}"
    )

    with pytest.raises(AuditError, match="with a system message: No system role") as caught:
        chat.encode(["secret question"], system="secret rule")
    assert "secret" not in str(caught.value)


def test_decoding_leaves_special_tokens_out() -> None:
    chat = codec(chat=True)

    (ids,) = chat.encode(["<|im_end|>Rome is a city."], "plain")

    assert chat.decode(ids) == "Rome is a city."
