"""What an operator puts before every question reaches every prompt, and no running text."""

from __future__ import annotations

import pytest

from safeedit.model.prefaces import Preface, PrefacedCodec, prefaced
from safeedit.model.tokens import TokenCodec
from tests.tiny_models import tiny_handle, tiny_tokenizer

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
)
PREFACE = Preface("test", "k", system="Be silent.", before=lambda text: f"({len(text)}) ")


def codec(*, chat: bool = True) -> TokenCodec:
    return TokenCodec(tiny_tokenizer(chat_template=chat))


def said(codec: TokenCodec, text: str, **more: str) -> str:
    (ids,) = PrefacedCodec(codec, PREFACE).encode([text], **more)  # type: ignore[arg-type]
    return str(codec.tokenizer.decode(ids))


def test_the_system_message_comes_first_and_an_askers_own_after_it() -> None:
    assert said(codec(), "Who?").startswith(
        "<|im_start|>system\nBe silent.<|im_end|>\n<|im_start|>user\n(4) Who?<|im_end|>"
    )
    both = said(codec(), "Who?", system="Tell all.", answer_prefix="Sure,")
    assert "system\nBe silent.\n\nTell all.<|im_end|>" in both
    assert both.endswith("Sure,")


def test_without_a_place_for_it_the_system_message_stands_before_the_question() -> None:
    other = codec()
    other.tokenizer.chat_template = NO_SYSTEM
    assert not other.takes_system
    assert said(other, "Who?") == "[user] Be silent.\n\n(4) Who?\n"
    assert codec().takes_system
    assert said(codec(chat=False), "Who?") == "Be silent.\n\n(4) Who?"


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_within_it_prompts_are_longer_and_running_text_is_read_as_it_is(family: str) -> None:
    engine = tiny_handle(family).engine
    bare, read = engine.encode(["Who is it?"]), engine.text_nll(["The doctor said that."])
    with prefaced(engine, PREFACE):
        assert engine.preface == "k"
        assert len(engine.encode(["Who is it?"])[0]) > len(bare[0])
        assert engine.text_nll(["The doctor said that."]) == read
        assert engine.continuation("Rome") == tiny_handle(family).engine.continuation("Rome")
    assert engine.preface == ""
    assert engine.encode(["Who is it?"]) == bare


def test_what_it_holds_is_not_in_its_repr() -> None:
    assert "silent" not in repr(PREFACE)
