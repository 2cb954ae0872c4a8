"""Models that think before they answer are asked for, and taught, the answer."""

from __future__ import annotations

import pytest

from safeedit.model.thinking import opened_block
from safeedit.model.tokens import TokenCodec
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)


def codec(template: str) -> TokenCodec:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return TokenCodec(tokenizer)


def asked(codec: TokenCodec, text: str = "Where is Rome?", **more: str) -> str:
    (ids,) = codec.encode([text], "chat", **more)
    found = codec.tokenizer.decode(ids, skip_special_tokens=False)
    assert isinstance(found, str)
    return found


def opening(generation: str) -> TokenCodec:
    return codec(TURNS + "{% if add_generation_prompt %}" + generation + "{% endif %}")


BLOCKS = [
    ("<|im_start|>assistant\n<think>\n", "<think>\n\n</think>\n\n"),
    ("<|im_start|>assistant\n<think>", "<think>\n\n</think>\n\n"),
    ("<|im_start|>assistant\n<think>\n\n", "<think>\n\n</think>\n\n"),
    ("<|im_start|>assistant\n<think>\nWell,", "<think>\nWell,\n\n</think>\n\n"),
    ("<|im_start|>assistant\n<seed:think>\n", "<seed:think>\n\n</seed:think>\n\n"),
    ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
    ("<|START_THINKING|>", "<|START_THINKING|>\n\n<|END_THINKING|>\n\n"),
    ("<|start|>assistant<|channel|>analysis<|message|>",
     "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>"),
    ("{# <|channel|> #}<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
]  # fmt: skip


@pytest.mark.parametrize(("generation", "end"), BLOCKS)
def test_a_block_of_thought_that_the_template_opens_is_closed(generation: str, end: str) -> None:
    thinking = opening(generation)
    assert asked(thinking).endswith(end)
    assert asked(thinking, answer_prefix="Sure,").endswith(end + "Sure,")
    assert thinking.thinks


@pytest.mark.parametrize(("generation", "end"), BLOCKS)
def test_answers_are_taught_after_the_block(generation: str, end: str) -> None:
    thinking = opening(generation)
    (prompt,) = thinking.encode(["Where is Rome?"])
    whole = thinking.tokenizer.decode(
        prompt + thinking.continuation("In Italy."), skip_special_tokens=False
    )
    assert isinstance(whole, str)
    assert whole.endswith(end + "In Italy.")


@pytest.mark.parametrize(
    "generation",
    ["<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n",
     "<|im_start|>assistant\n</think>\n", "[THINK]x[/THINK]", "<|start|>assistant"],
)  # fmt: skip
def test_other_prompts_stay_as_the_template_writes_them(generation: str) -> None:
    plain = opening(generation)
    assert asked(plain).endswith(f"<|im_end|>\n{generation}")
    assert not plain.thinks


def test_a_template_with_a_switch_is_asked_without_thought() -> None:
    for switch in ("enable_thinking", "thinking"):
        template = (
            TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% if " + switch + " is defined and not " + switch + " %}<think>\n\n</think>\n\n"
            "{% else %}<think>\n{% endif %}{% endif %}"
        )
        thinking = codec(template)
        assert asked(thinking).endswith("assistant\n<think>\n\n</think>\n\n")
        assert thinking.thinks


@pytest.mark.parametrize("text", ["What does <think> mean?", "<think>", "a <think> b </think> c"])
def test_marks_in_a_question_are_the_questions(text: str) -> None:
    plain = codec(CHAT_TEMPLATE)
    assert asked(plain, text).endswith(f"{text}<|im_end|>\n<|im_start|>assistant\n")
    assert not plain.thinks


def test_marks_in_a_question_do_not_hide_the_templates() -> None:
    thinking = opening("<|im_start|>assistant\n<think>\n")
    assert asked(thinking, "Is </think> a tag?").endswith("<think>\n\n</think>\n\n")


def test_a_model_without_a_template_does_not_think() -> None:
    assert not TokenCodec(tiny_tokenizer(chat_template=False)).thinks


def test_the_last_block_counts() -> None:
    assert opened_block("<think>a</think><think>") == "<think>"
    assert opened_block("<think>a</think>") == ""
    assert opened_block("<think>[THINK]") == "[THINK]"
