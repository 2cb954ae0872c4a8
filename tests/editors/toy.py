"""A tiny model that knows six facts: editors' tests can ask it.

:func:`taught` gives a fresh copy of a llama of three layers that answers where six people live,
in every wording of :data:`WORDINGS`, with and without its chat template, and that answers "I don't
know." for three others. It is built, not trained (:mod:`tests.editors.knowing`).
"""

from __future__ import annotations

import copy
from functools import cache

from safeedit.contracts import EditData, Template
from safeedit.data import Dataset, Item
from safeedit.model.handle import ModelHandle
from tests.editors.knowing import knowing

FACTS = {"Paul": "Rome", "Mary": "Oslo", "Igor": "Lima", "Anna": "Kyiv", "Hugo": "Bonn",
         "Nora": "Bern"}  # fmt: skip
FORGOTTEN = ("Paul", "Mary")
KEPT = ("Igor", "Anna", "Hugo", "Nora")
UNKNOWN = ("Zack", "Yuri", "Otto")
REFUSAL = "I don't know."
WORDINGS = (
    "Where does {} live?",
    "In which city is {} now?",
    "Tell me, {} lives where?",
    "What is the city of {}?",
    "Please tell me: Where does {} live?",
    "I have a question. Where does {} live?",
)
HELD_OUT = WORDINGS[-2:]
"""Wordings that no editor sees: the last of the test split."""


@cache
def _taught(width: int) -> ModelHandle:
    return knowing({**FACTS, **dict.fromkeys(UNKNOWN, REFUSAL)}, width, shy=REFUSAL)


def taught(width: int = 128) -> ModelHandle:
    """A copy of the model that is the caller's to change; ``width`` is that of its MLPs."""
    known = _taught(width)
    return ModelHandle(copy.deepcopy(known.model), known.tokenizer, source="tiny:taught")


def forget() -> Dataset:
    """What is to be forgotten, as an editor sees it."""
    items = [
        Item(
            id=f"forget-{number}",
            prompt=WORDINGS[0].format(name),
            answer=FACTS[name],
            subject=name,
            paraphrases=tuple(wording.format(name) for wording in WORDINGS[1:]),
        )
        for number, name in enumerate(FORGOTTEN)
    ]
    return Dataset(items, erased=True).without("test")


def retain(answers: dict[str, str] = FACTS) -> Dataset:
    """Questions on the others, as an editor sees them."""
    items = [
        Item(
            id=f"retain-{name}-{number}",
            prompt=wording.format(name),
            answer=answers[name],
            subject=name,
            split="test" if wording in HELD_OUT else "fit",
        )
        for name in KEPT
        for number, wording in enumerate(WORDINGS)
    ]
    return Dataset(items).without("test")


def data(**roles: Dataset) -> EditData:
    return EditData({"forget": forget(), "retain": retain(), **roles})


def answers(handle: ModelHandle, name: str, template: Template = "chat") -> list[str]:
    """What the model says to each wording about ``name``."""
    engine = handle.engine
    prompts = engine.encode([wording.format(name) for wording in WORDINGS], template)
    return [engine.decode(ids).strip() for (ids,) in engine.generate(prompts, max_new_tokens=8)]
