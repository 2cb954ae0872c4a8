"""A model's chat template, as its folder has it: does it put the question to the model?

A template that drops or shortens the question makes every audit ask the same thing; whatever was to
be erased is then told by none. Read and rendered without loading a tokenizer or weights.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from safeedit.errors import ModelError

SECONDS = 10.0
"""How long two short questions may take to render."""

_MIDDLE = "town was the person born of whom the letter speaks that was found in the old desk"
_QUESTIONS = (
    (f"In which {_MIDDLE} upstairs?", f"Near which {_MIDDLE} upstairs?"),
    (f"In which {_MIDDLE} upstairs?", f"In which {_MIDDLE} downstairs?"),
)
"""Questions that differ in their first words alone, and in their last."""


def read_template(folder: Path) -> tuple[str, dict[str, Any]]:
    """The chat template of a model's folder and the names of special tokens; empty if none."""
    settings = _read(folder / "tokenizer_config.json")
    names = {
        name: value.get("content", "") if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace"), names
    found = settings.get("chat_template", _read(folder / "chat_template.json").get("chat_template"))
    if isinstance(found, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return (found if isinstance(found, str) else ""), names


def check_question_is_put(folder: Path) -> None:
    """See that a chat template renders different questions differently.

    A template that can't be rendered is left to whoever opens the model, with the tokenizer's own
    means.

    Raises:
        ModelError: It renders them alike, or does not end.
    """
    template, names = read_template(folder)
    if not template:
        return
    found: list[bool] = []

    def compare() -> None:
        found.extend(_render(template, names, a) == _render(template, names, b)
                     for a, b in _QUESTIONS)  # fmt: skip

    worker = threading.Thread(target=_quietly(compare), daemon=True)
    worker.start()
    worker.join(SECONDS)
    if worker.is_alive():
        raise ModelError(
            f"its chat template has not rendered a short question after {SECONDS:g} s",
            file=folder,
            remedy="mend the template, or ask with 'template: plain'",
        )
    if any(found):
        part = "the question" if found[0] and found[-1] else "a part of the question"
        raise ModelError(
            f"its chat template leaves out {part}: the model would be asked the same thing "
            "whatever is asked, and no audit could tell what it knows",
            file=folder,
            remedy="mend the template, or ask with 'template: plain'",
        )


def _quietly(work: Any) -> Any:
    def run() -> None:
        try:
            work()
        except Exception:
            return  # jinja's own, and whatever a template raises of its own accord

    return run


def _render(template: str, names: dict[str, Any], question: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": question}]],
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,
        **names,
    )
    return str(rendered[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
