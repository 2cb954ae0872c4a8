"""Memorised records as auditors read them: an opening, and the secret that continues it.

A secret is known by a keyed digest of opening and answer, so that two records with one name, or
one opening with two answers, stay two. What kind of secret it is says the column ``type`` of its
row (:data:`TYPES`, or any other), if it has one.

Fails with :class:`~safeedit.errors.AuditError`, naming digests, where a secret comes to no tokens
or does not fit into the model's context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safeedit.auditors.base import stable_order
from safeedit.contracts import RunContext
from safeedit.data import Dataset, Item
from safeedit.data.independence import together
from safeedit.errors import AuditError
from safeedit.model.engine import Engine
from safeedit.records import Split

TYPES = ("name", "phone", "email", "address", "identity")
"""Types of secrets that have metrics of their own."""

_NAMED = 5
"""Digests that an error lists."""


@dataclass(frozen=True)
class Secret:
    """One secret as the model reads it."""

    key: str
    """Keyed digest."""
    role: str
    item: Item
    type: str | None
    prompt: Sequence[int]
    """Token ids of its true opening."""
    tokens: Sequence[int]
    """Token ids of the answer as it follows."""

    @property
    def answer(self) -> str:
        return self.item.answer or ""

    @property
    def identity(self) -> str:
        """What tells this secret from all others; content, for seeds only."""
        return f"{self.item.prompt}\0{self.answer}"


def read_secrets(
    engine: Engine, data: Dataset, role: str, split: Split, ctx: RunContext
) -> list[Secret]:
    """The secrets of a split, in an order that depends on them alone.

    Args:
        engine: Of the model that is to read them.
        data: Items with answers.
        role: Its role, for keys and errors.
        split: The split.
        ctx: Gives the digests.

    Raises:
        AuditError: There are none, or there is one that no measurement could be made of.
    """
    found = {f"{item.prompt}\0{item.answer or ''}": item for item in data.items(split)}
    if not found:
        raise AuditError(
            f"there is nothing to measure: the {split} split of {role} is empty",
            remedy="give it items of that split",
        )
    items = [found[text] for text in stable_order(found)]
    prompts = engine.encode([item.prompt for item in items], data.template)
    answers = engine.continuations([item.answer or "" for item in items], data.template)
    secrets = [
        Secret(
            key=ctx.digest(f"{role}: {item.prompt}\0{item.answer or ''}"),
            role=role,
            item=item,
            type=str(item.extra["type"]) if item.extra.get("type") is not None else None,
            prompt=prompt,
            tokens=tokens,
        )
        for item, prompt, tokens in zip(items, prompts, answers, strict=True)
    ]
    _refuse(
        (s for s in secrets if not s.tokens or not engine.decode(s.tokens).strip()),
        f"of {len(secrets)} secrets in {role} come to no tokens: there is nothing to look for",
        "give every item an answer that can be said, or leave the row out",
    )
    _refuse(
        (s for s in secrets if len(s.prompt) + len(s.tokens) > engine.context),
        f"of {len(secrets)} records in {role} are longer than the model's context of "
        f"{engine.context} tokens",
        "shorten them, leave them out with 'where', or use a model with a longer context",
    )
    return secrets


def one_of(secrets: Sequence[Secret]) -> dict[str, str]:
    """Key of each secret -> key of the one that stands for all that tell the same."""
    return together([s.key for s in secrets], [s.item for s in secrets], erased=True)


def refuse_shared(one: Iterable[Secret], other: Iterable[Secret], what: str) -> None:
    """See that no record is in two groups that must not share any.

    Raises:
        AuditError: One is.
    """
    known = {secret.identity for secret in one}
    _refuse(
        (secret for secret in other if secret.identity in known),
        f"records are in {what}: what was taught is no measure of what was not",
        "take them out of one of the two",
    )


def _refuse(secrets: Iterable[Secret], what: str, remedy: str) -> None:
    if keys := [secret.key for secret in secrets]:
        more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
        listed = ", ".join(keys[:_NAMED])
        raise AuditError(f"{len(keys)} {what} (digests {listed}{more})", remedy=remedy)
