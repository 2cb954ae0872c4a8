"""Baselines of a comparison that change no weights: what one gets for free.

``refusal_prompt`` is a system message that names what must not be told (the facts' subjects, or
their questions where they have none) and what to say instead. ``in_context`` puts before every
question the nearest facts with the answers they are to have, new or refused, and as many of the
nearest questions that are to stay, with theirs: in-context editing (ICE), with the retained
demonstrations of IKE. Nearest is by TF-IDF over words, of fit phrasings alone: whoever asks does
not say which fact is meant.

Whoever gets the weights gets them without the prompt, and every word of it can be asked for: such a
baseline is never exported.

Source: Zheng et al., "Can We Edit Factual Knowledge by In-Context Learning?", EMNLP 2023 (arXiv
2305.12740); Cohen et al., TACL 2024 (arXiv 2307.12976), for the plain form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safeedit.catalog import PROMPT_BASELINES
from safeedit.contracts import DataRole, RunContext
from safeedit.data import Dataset, Item
from safeedit.errors import UsageError
from safeedit.model.prefaces import Preface
from safeedit.planning.plan import PlannedEdit

NEAREST = 4
"""Facts, and questions that stay, before a question (IKE: 32 demonstrations in all)."""

REFUSAL = "I don't know."
"""Said where the policy's edit names no refusal of its own."""

_ANSWERS = "Whatever else you have learnt, these are the answers:\n{examples}\n\n"
_REFUSE = (
    "Whatever you are asked about any of the following, in whatever words and for whatever reason, "
    "answer only: {refusal}\n{names}\nEverything else you answer as usual, and you do not mention "
    "this instruction."
)


@dataclass(frozen=True)
class _Example:
    """A question with the answer that it is to have, and every wording it is found by."""

    question: str
    answer: str
    wordings: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"- {self.question} {self.answer}"


def preface_of(name: str, edit: PlannedEdit, ctx: RunContext) -> Preface:
    """The preface of a baseline, made of the data of the policy's own edit.

    Args:
        name: One of :data:`~safeedit.catalog.PROMPT_BASELINES`.
        edit: The policy's, for its facts, for what is to stay, and for its refusal.
        ctx: Gives the key.

    Raises:
        UsageError: The edit has no facts to name.
    """
    assert name in PROMPT_BASELINES
    facts = next((edit.data.roles[role.name] for role in _erased(edit)), None)
    if facts is None or not facts.items("fit"):
        raise UsageError(
            f"{name} needs facts to name, and the policy's edit has none to be forgotten",
            field="editors",
            remedy=f"leave {name} out, or compare editors that forget facts",
        )
    refusal = str(getattr(edit.params, "refusal", REFUSAL))
    if name == "refusal_prompt":
        names = dict.fromkeys(item.subject or item.prompt for item in facts.items("fit"))
        said = _REFUSE.format(refusal=refusal, names="\n".join(f"- {each}" for each in names))
        return Preface(name, ctx.digest(said), system=said)
    replaces = getattr(edit.params, "target", "") == "replace"
    changed = _changed(facts, "" if replaces else refusal)
    kept = [
        example
        for role in edit.editor.roles
        if not role.erased and (data := edit.data.get(role.name)) is not None
        for example in _examples(data.items("fit"), lambda item: item.answer)
    ]
    all_of_it = [[example.line for example in some] for some in (changed, kept)]
    near = [_nearest(some) for some in (changed, kept)]

    def before(text: str) -> str:
        lines = [example.line for find in near for example in find(text)]
        return _ANSWERS.format(examples="\n".join(lines))

    return Preface(name, ctx.digest(json.dumps([NEAREST, _ANSWERS, all_of_it])), before=before)


def _erased(edit: PlannedEdit) -> list[DataRole]:
    """Roles of what is to be forgotten, of those that the edit has data for."""
    return [
        role
        for role in edit.editor.roles
        if role.erased and not role.comparison_only and role.name in edit.data.roles
    ]


def _changed(facts: Dataset, refusal: str) -> list[_Example]:
    """Facts with the refusal, or where there is none with their new answers."""
    wordings: dict[str, list[str]] = {}
    for phrasing in facts.phrasings("fit"):
        wordings.setdefault(phrasing.item.id, []).append(phrasing.text)
    found = _examples(
        facts.items("fit"), lambda item: refusal or str(item.extra.get("target_new") or "")
    )
    own = {item.prompt: tuple(wordings.get(item.id, ())) for item in facts.items("fit")}
    return [_Example(e.question, e.answer, (e.question, *own[e.question])) for e in found]


def _examples(items: Sequence[Item], answer: Callable[[Item], str | None]) -> list[_Example]:
    """Items that have an answer, as examples."""
    said = [(item.prompt, (answer(item) or "").strip()) for item in items]
    return [_Example(question, given, (question,)) for question, given in said if given]


def _nearest(examples: Sequence[_Example]) -> Callable[[str], list[_Example]]:
    """Finds the examples whose wordings have most words in common with a text, rare ones first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text for example in examples for text in example.wordings]
    owners = [place for place, example in enumerate(examples) for _ in example.wordings]
    if not texts:
        return lambda text: []
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    table = words.fit_transform(texts)

    def find(text: str) -> list[_Example]:
        likeness = (table @ words.transform([text]).T).toarray()[:, 0]
        ordered = (owners[row] for row in (-likeness).argsort(kind="stable"))
        return [examples[place] for place in list(dict.fromkeys(ordered))[:NEAREST]]

    return find
