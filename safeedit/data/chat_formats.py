"""Rows of instruction tuning: Alpaca's, and conversations as chats keep them.

They can be nothing else, so that files of them need no ``format``. A conversation is read where
it is one question and its answer; more turns would make the answer depend on what came before,
which no item holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safeedit.data.reading import UnreadableRow

Columns = Mapping[str, Any]

_TURNS = ("messages", "conversations", "conversation")
_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
"""What a speaker is called (OpenAI's, ShareGPT's and others' names) -> what that is."""


def is_alpaca(columns: Columns) -> bool:
    """{instruction, input, output}; Sanitation's rows have an ``output_gold`` besides."""
    return (
        isinstance(columns.get("instruction"), str)
        and isinstance(columns.get("output"), str)
        and "prompt" not in columns
        and "output_gold" not in columns
    )


def alpaca(columns: Columns) -> dict[str, Any]:
    """An instruction and, below it, the input it is about; its ``text`` repeats them."""
    asked = str(columns["instruction"])
    given = columns.get("input") or ""
    if not isinstance(given, str):
        raise UnreadableRow("has an 'input' that is no text", "write it as text, or leave it out")
    used = ("instruction", "input", "output", "text")
    return {
        **{name: value for name, value in columns.items() if name not in used},
        "prompt": f"{asked}\n\n{given}" if given.strip() else asked,
        "answer": str(columns["output"]),
    }


def is_chat(columns: Columns) -> bool:
    """A list of turns where the prompt would stand."""
    return "prompt" not in columns and "text" not in columns and _turns(columns) is not None


def _turns(columns: Columns) -> Sequence[Any] | None:
    for name in _TURNS:
        turns = columns.get(name)
        if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
            return turns
    return None


def chat(columns: Columns) -> dict[str, Any]:
    """One question and its answer; a system message is kept beside them and not asked."""
    turns = _turns(columns)
    if turns is None:
        raise UnreadableRow(
            "has no list of turns",
            'rows look like {"messages": [{"role": "user", "content": "..."}, ...]}',
        )
    said = [(_speaker(turn), _words(turn)) for turn in turns]
    system = [words for speaker, words in said if speaker == "system"]
    said = [(speaker, words) for speaker, words in said if speaker != "system"]
    speakers = [speaker for speaker, _ in said]
    if speakers not in (["user"], ["user", "assistant"]):
        raise UnreadableRow(
            f"is a conversation of {len(said)} turns, not one question with its answer",
            "give each question a row of its own, with what it needs from before written into it",
        )
    rest = {name: value for name, value in columns.items() if name not in _TURNS}
    return {
        **rest,
        "prompt": said[0][1],
        "answer": said[1][1] if len(said) > 1 else None,
        **({"system": "\n".join(system)} if system else {}),
    }


def _speaker(turn: Mapping[str, Any]) -> str:
    name = turn.get("role", turn.get("from"))
    found = _ROLES.get(name.casefold()) if isinstance(name, str) else None
    if found is None:
        raise UnreadableRow(
            "has a turn whose speaker is neither user, assistant nor system",
            "leave calls of tools and their results out",
        )
    return found


def _words(turn: Mapping[str, Any]) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # OpenAI's parts
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise UnreadableRow("has a turn without text", "leave images and calls of tools out")
    return content


def is_multiple_choice(columns: Columns) -> bool:
    """{question, choices, answer}, the answer being the place of a choice."""
    place, choices = columns.get("answer"), columns.get("choices")
    return (
        isinstance(choices, list)
        and isinstance(columns.get("question"), str)
        and isinstance(place, int)
        and not isinstance(place, bool)
        and "prompt" not in columns
    )


def multiple_choice(columns: Columns) -> dict[str, Any]:
    """The question alone; the right choice is the answer, counted from 0 (MMLU, WMDP)."""
    choices, place = columns["choices"], columns["answer"]
    if not 0 <= place < len(choices):
        raise UnreadableRow(
            f"has {len(choices)} choices and none at the place of its answer",
            "places are counted from 0",
        )
    rest = {n: v for n, v in columns.items() if n not in ("question", "answer", "choices")}
    return {
        **rest,
        "prompt": columns["question"],
        "answer": choices[place],
        "options": list(choices),
    }
