"""Prompts of models that think before they answer: the block of thought is closed, empty.

Some chat templates end the prompt inside an opened block (``<think>``), others leave it to the
model to open one. Questions would then be answered by the first tokens of a thought, and an answer
that is taught would stand inside it. Where a template has a switch it is used
(:data:`SWITCHES`); where the prompt still ends inside a block, the block is closed.

What a model would say while it thinks is not asked for; plans and reports say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SWITCHES: Mapping[str, Any] = {
    # Qwen 3, SmolLM 3, GLM 4.5, Hunyuan: without it the answer's tokens are spent thinking aloud.
    "enable_thinking": False,
    # DeepSeek 3.1, Granite 3.
    "thinking": False,
}
"""Variables by which templates leave thinking out; those that don't know them ignore them."""

_HARMONY_OPEN, _HARMONY_ANSWER = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
_HARMONY_TURN = "<|start|>assistant"

_BLOCKS: Mapping[str, str] = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|think|>": "<|/think|>",
    _HARMONY_OPEN: f"<|end|>{_HARMONY_TURN}{_HARMONY_ANSWER}",
}
"""What opens a block of thought -> what closes it."""


def opened_block(generation: str) -> str:
    """The mark of the block that the end of a prompt is inside; empty where it is in none.

    Args:
        generation: What a template writes after the last message, to be gone on from.
    """
    last, mark = -1, ""
    for opening, closing in _BLOCKS.items():
        begin = generation.rfind(opening)
        if begin > last and generation.find(closing, begin + len(opening)) < 0:
            last, mark = begin, opening
    return mark


def closed(prompt: str, generation: str, template: str) -> str:
    """A prompt whose answer is no thought.

    Args:
        prompt: As the template renders it, to be gone on from.
        generation: The end of it that the template writes after the last message.
        template: The template itself.
    """
    mark = opened_block(generation)
    if mark == _HARMONY_OPEN:
        return prompt + _BLOCKS[mark]
    if mark:
        # As the models' own empty blocks are written: "<think>\n\n</think>\n\n".
        before = (
            "" if generation.endswith("\n\n") else "\n" if generation.endswith("\n") else "\n\n"
        )
        return f"{prompt}{before}{_BLOCKS[mark]}\n\n"
    if generation.rstrip().endswith(_HARMONY_TURN) and "<|channel|>" in template:
        return prompt.rstrip() + _HARMONY_ANSWER
    return prompt
