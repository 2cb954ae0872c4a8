"""What is to be memorised, checked and as tokens, and in which order it is shown.

A source of canaries has rows with ``prompt``, ``answer`` and ``repeats`` (0: never taught); the
sentence that is taught is ``prompt``, a space, ``answer``, a full stop. One *cycle* shows every
sentence as often as its row says, spread evenly, so that a sentence shown four times comes back
after a quarter of the cycle.

Fails with :class:`~safeedit.errors.DataError`, which names the line and never its content.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeedit.data.checks import CheckedRow, check_rows
from safeedit.data.loading import read_records
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.workflows.canaries.records import KINDS, ROLES

if TYPE_CHECKING:
    from safeedit.data import Item
    from safeedit.model.engine import Engine

_SORTED_TOGETHER = 8
"""Batches whose sentences are sorted by length among themselves, to save padding."""


@dataclass(frozen=True)
class PlantedSecret:
    """One sentence: what is asked, and what is to come out."""

    item: Item
    repeats: int
    """How often it is shown in a cycle; 0 where it is held back."""
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Token ids as they follow the prompt, without the full stop."""
    ending: tuple[int, ...]
    """Token ids of answer and full stop: what is learnt."""

    @property
    def answer_text(self) -> str:
        assert self.item.answer is not None
        return self.item.answer

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ending)

    def kind(self, column: str) -> str | None:
        """What the row says of ``type`` or ``role``, if it is one of ours: anything else might
        be data, which no record may hold."""
        value = self.item.extra.get(column)
        known: tuple[str, ...] = KINDS if column == "type" else ROLES
        return value if value in known else None


def read_canaries(spec: DataSpec, base: Path = Path()) -> list[CheckedRow]:
    """The rows of a source of canaries, checked, in an order that the file's does not change.

    Raises:
        DataError: The source is missing or malformed; a row has no answer or no repeat count;
            two rows share an id, or ask the same and answer differently; nothing is taught.
    """
    records, _ = check_rows(read_records(spec, base), published=False, erased=True, forced=None)
    for record in records:
        _check_row(record)
    if not any(repeats_of(record.item) for record in records):
        raise DataError(
            "no row is to be taught: every repeat count is 0",
            file=spec.label,
            field="repeats",
            remedy="make records with 'safeedit canary make'",
        )
    return sorted(records, key=lambda record: record.item.prompt)


def records_digest(records: Sequence[CheckedRow]) -> str:
    """sha256 over all that decides what is taught, and what a record of it says."""
    rows = [
        [item.prompt, item.answer, repeats_of(item), item.extra.get("type"), item.extra.get("role")]
        for item in (record.item for record in records)
    ]
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()


def repeats_of(item: Item) -> int:
    """How often a checked item is shown in a cycle."""
    count: int = item.extra["repeats"]
    return count


def tokenise(records: Sequence[CheckedRow], engine: Engine) -> list[PlantedSecret]:
    """Sentences as the model's tokens.

    Raises:
        DataError: A sentence is longer than the model's context, or an answer is no token.
    """
    prompts = engine.encode([record.item.prompt for record in records], "plain")
    secrets = []
    for record, prompt in zip(records, prompts, strict=True):
        item = record.item
        assert item.answer is not None
        secret = PlantedSecret(
            item,
            repeats_of(item),
            tuple(prompt),
            tuple(engine.continuation(item.answer, "plain")),
            tuple(engine.continuation(f"{item.answer}.", "plain")),
        )
        if secret.length > engine.context:
            raise _error(
                record,
                f"the sentence has {secret.length} tokens, the model reads {engine.context}",
                "shorten the record, or plant it in a model with a longer context",
            )
        if not secret.prompt or not secret.answer:
            raise _error(
                record,
                "the model's tokenizer makes no token of the prompt or of the answer",
                "leave the row out: there is nothing to memorise",
            )
        secrets.append(secret)
    return secrets


def cycle(
    secrets: Sequence[PlantedSecret], batch: int, source: random.Random
) -> Iterator[list[PlantedSecret]]:
    """Batches that together show every secret ``repeats`` times.

    There are as many slots as the largest repeat count. A secret gets slots at even distances,
    from a random one on, and no slot twice. Slots come in order; within one, secrets are mixed,
    then put into batches of similar length.
    """
    n_slots = max(secret.repeats for secret in secrets)
    slots: list[list[PlantedSecret]] = [[] for _ in range(n_slots)]
    for secret in secrets:
        start = source.random()
        for showing in range(secret.repeats):
            slots[int((showing + start) * n_slots / secret.repeats)].append(secret)
    for slot in slots:
        source.shuffle(slot)
        batches: list[list[PlantedSecret]] = []
        step = batch * _SORTED_TOGETHER
        for begin in range(0, len(slot), step):
            group = sorted(slot[begin : begin + step], key=lambda secret: secret.length)
            batches += [group[i : i + batch] for i in range(0, len(group), batch)]
        source.shuffle(batches)
        yield from batches


def showings(secrets: Sequence[PlantedSecret]) -> int:
    """Sentences in one cycle."""
    return sum(secret.repeats for secret in secrets)


def _check_row(record: CheckedRow) -> None:
    extra: Mapping[str, Any] = record.item.extra
    if record.item.answer is None:
        raise _error(record, "the row has no answer", "give it the secret to be taught", "answer")
    repeats = extra.get("repeats")
    if type(repeats) is not int or repeats < 0:
        problem = "no repeat count" if repeats is None else "a repeat count that is none"
        remedy = "a whole number from 0 (never taught) on"
        raise _error(record, f"the row has {problem}", remedy, "repeats")


def _error(record: CheckedRow, message: str, remedy: str, field: str = "") -> DataError:
    row = record.row
    text = message if row.line is not None else f"{row.place}: {message}"
    return DataError(text, file=row.file, line=row.line, field=field, remedy=remedy)
