"""How the audit ``leakage`` puts its questions: whom it asks about, in which wordings, and what an
attack puts around them.

Fails with :class:`~safeedit.errors.AuditError` where there is nothing to ask or no answer to look
for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from safeedit.auditors.base import stable_order
from safeedit.contracts import RunContext
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.model.engine import Engine
from safeedit.records import Split
from safeedit.text.matching import contains_alias

GENERIC_SHOTS: tuple[tuple[str, str], ...] = (
    ("How many legs does a spider have?", "Eight"),
    ("What do bees make?", "Honey"),
    ("Which colour do you get by mixing blue and yellow?", "Green"),
    ("What is the opposite of hot?", "Cold"),
    ("How many days are there in a week?", "Seven"),
    ("What is frozen water called?", "Ice"),
    ("Which animal barks?", "The dog"),
    ("What do you use to cut paper?", "Scissors"),
)
"""Worked examples of the few-shot attack where the policy brings none."""


@dataclass(frozen=True)
class Target:
    """One item, and the unseen ways of asking for it that belong to this split."""

    key: str
    item: Item
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """One question as it is put to the model."""

    target: int
    key: str
    text: str
    """The question, without what an attack puts around it."""
    ids: Sequence[int]
    sought: int | None = None
    """Place of what is looked for among what the reader knows; None: that of the target."""
    form: str = ""
    """What kind of question of its asking it is, in words."""

    @property
    def place(self) -> int:
        """Place among what the reader knows."""
        return self.target if self.sought is None else self.sought


def targets_of(forget: Dataset, split: Split, ctx: RunContext, audit: str) -> list[Target]:
    """The items asked for on a split, with their held-out phrasings.

    Args:
        forget: What was to be erased.
        split: Of the items and phrasings asked for.
        ctx: Of the run: keys are its digests.
        audit: Name of the auditor, for messages.

    Raises:
        AuditError: There are none, or one has no answer.
    """
    asked = phrasings_of(forget, split)
    if not asked:
        raise AuditError(
            f"{audit} has nothing to ask: the {split} split of its data is empty",
            remedy="give it items or phrasings of that split",
        )
    if dumb := sum(not any(map(str.strip, item.aliases)) for item, _ in asked.values()):
        raise AuditError(
            f"{dumb} of {len(asked)} items have no answer whose presence could be told",
            remedy="give every item an answer, or map a column to it",
        )
    targets, echoes = [], 0
    for prompt in stable_order(asked):
        item, texts = asked[prompt]
        targets.append(Target(ctx.digest(prompt), item, tuple(stable_order(texts))))
        echoes += any(contains_alias(text, item.aliases) for text in (prompt, *texts))
    if echoes:
        ctx.warn(
            f"{audit}: {echoes} of {len(targets)} items have their answer inside a question; "
            "an answer that repeats the question counts as told"
        )
    return targets


def phrasings_of(forget: Dataset, split: Split) -> dict[str, tuple[Item, set[str]]]:
    """Prompt -> its item, and the wordings that belong to the split."""
    asked: dict[str, tuple[Item, set[str]]] = {}
    for phrasing in forget.phrasings(split):
        asked.setdefault(phrasing.item.prompt, (phrasing.item, set()))[1].add(phrasing.text)
    return asked


def one_each(
    targets: Sequence[Target], texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[Prompt]:
    """One prompt of each target: its question, and that question's tokens as they are put."""
    rows = zip(targets, texts, ids, strict=True)
    return [Prompt(i, target.key, text, row) for i, (target, text, row) in enumerate(rows)]


def direct_prompts(engine: Engine, forget: Dataset, targets: Sequence[Target]) -> list[Prompt]:
    """Every target's question as it is given."""
    texts = [target.item.prompt for target in targets]
    return one_each(targets, texts, engine.encode(texts, forget.template))


def held_out_prompts(
    engine: Engine, forget: Dataset, targets: Sequence[Target], ctx: RunContext
) -> list[Prompt]:
    """Every target's question in all wordings that belong to the split."""
    every = [(i, text) for i, target in enumerate(targets) for text in target.held_out]
    held_out = engine.encode([text for _, text in every], forget.template)
    return [
        Prompt(i, ctx.digest(f"{targets[i].key}: {text}"), text, ids)
        for (i, text), ids in zip(every, held_out, strict=True)
    ]


def worked_examples(
    items: Sequence[Item],
    asked: Collection[str],
    shots: Dataset | None,
    generic: Sequence[tuple[str, str]],
    count: int,
) -> list[tuple[str, str]]:
    """Questions and answers that ask for none of the items and give none of their answers away.

    Args:
        items: What the attack is after.
        asked: Every question that is put about them.
        shots: Examples of the policy, which stand in for the generic ones.
        generic: Examples for policies that bring none.
        count: At most so many.
    """
    if shots is not None:
        answers = {item.prompt: item.answer for item in shots}
        generic = [(text, answer) for text in stable_order(answers) if (answer := answers[text])]

    def harmless() -> Iterator[tuple[str, str]]:
        for question, answer in generic:
            text = f"{question} {answer}"
            tells = any(contains_alias(text, item.aliases) for item in items)
            if question not in asked and not tells:
                yield question, answer

    return [example for example, _ in zip(harmless(), range(count), strict=False)]


def wrapped(texts: Sequence[str], examples: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Each question as one to be answered, after the examples."""
    opening = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in examples)
    return [f"{opening}Q: {text}\nA:" for text in texts]
