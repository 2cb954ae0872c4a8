"""What a model's card tells of its training: on how many tokens.

Cards are written by people, for people. A number counts where the sentence says that the model was
trained, and where all such sentences tell the same one; else nobody knows.
"""

from __future__ import annotations

import re
from pathlib import Path

from safeedit.model.builtin import BUILTIN

_CARD = "README.md"
_MOST_READ = 1_000_000
"""Bytes of a card that are looked at."""
_SCALE = {"t": 10**12, "trillion": 10**12, "b": 10**9, "billion": 10**9}
_TOKENS = re.compile(
    r"\btrain\w*\b[^.\n]{0,120}?\b(\d{1,4}(?:[.,]\d{1,3})?)\s?(t|trillion|b|billion)\+?\s+"
    r"(?:[\w-]+\s+){0,2}?tokens\b",
    re.IGNORECASE,
)


def trained_on(source: str, folder: Path | None) -> int | None:
    """Tokens that a model was trained on, as its card has it; None where it doesn't tell, or tells
    several numbers.

    Args:
        source: As the policy names the model.
        folder: Where its files are.
    """
    if source.startswith("builtin:"):
        builtin = BUILTIN.get(source.removeprefix("builtin:"))
        return None if builtin is None else builtin.training_tokens
    if folder is None or not (folder / _CARD).is_file():
        return None
    try:
        with (folder / _CARD).open("rb") as file:
            text = file.read(_MOST_READ).decode("utf-8", "replace")
    except OSError:
        return None
    found = {
        round(float(number.replace(",", ".")) * _SCALE[unit.lower()])
        for number, unit in _TOKENS.findall(re.sub(r"\bpre-?train", "train", text, flags=re.I))
    }
    return found.pop() if len(found) == 1 else None
