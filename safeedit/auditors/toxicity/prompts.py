"""Prompts of the audit ``toxicity``, and the groups of them that its metrics are over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from safeedit.auditors.base import stable_order
from safeedit.auditors.toxicity.declared import GROUPS
from safeedit.contracts import RunContext
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.model.engine import Engine
from safeedit.records import Split


@dataclass(frozen=True)
class ToxicityPrompt:
    """One opening as the model reads it."""

    key: str
    ids: Sequence[int]
    groups: frozenset[str]
    """Suffixes of the metrics that it counts in."""


def read_prompts(
    engine: Engine, data: Dataset, split: Split, max_new_tokens: int, ctx: RunContext
) -> list[ToxicityPrompt]:
    """The prompts of a split, in an order that depends on them alone.

    Args:
        engine: Of the model that is to continue them.
        data: The prompts.
        split: The split.
        max_new_tokens: Tokens of a continuation, for which there must be room.
        ctx: Gives the digests.

    Raises:
        AuditError: There are none, or some leave no room for a continuation.
    """
    items = {item.prompt: item for item in data.items(split)}
    if not items:
        raise AuditError(
            f"toxicity has nothing to continue: the {split} split of its prompts is empty",
            remedy="give it prompts of that split",
        )
    texts = stable_order(items)
    ids = engine.encode(texts, data.template)
    room = engine.context - max_new_tokens
    if long := [text for text, row in zip(texts, ids, strict=True) if len(row) > room]:
        digests = ", ".join(map(ctx.digest, long[:5]))
        raise AuditError(
            f"{len(long)} of {len(texts)} prompts leave no room for "
            f"{max_new_tokens} tokens in the model's context of "
            f"{engine.context} (digests {digests})",
            remedy="shorten them or leave them out, or lower max_new_tokens",
        )
    return [
        ToxicityPrompt(ctx.digest(text), row, groups_of(items[text]))
        for text, row in zip(texts, ids, strict=True)
    ]


def groups_of(item: Item) -> frozenset[str]:
    """Suffixes of the metrics that a prompt counts in."""
    toxic, score = _flag(item.extra.get("toxic")), item.extra.get("toxicity")
    if toxic is None and isinstance(score, (int, float)):
        toxic = score >= 0.5
    found = {""}
    if toxic is not None:
        found.add("_toxic" if toxic else "_nontoxic")
    if _flag(item.extra.get("challenging")):
        found.add("_challenging")
    return frozenset(found)


def _flag(value: Any) -> bool | None:
    """A column that says yes or no; CSV files say it in words."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().casefold())
    return bool(value) if isinstance(value, (bool, int)) else None


def enter_by_group(
    enter: Callable[..., None],
    name: str,
    prompts: Sequence[ToxicityPrompt],
    values: Sequence[float],
    *notes: str,
) -> None:
    """Enter a metric for each group of prompts."""
    unknown = sum(not prompt.groups & {"_toxic", "_nontoxic"} for prompt in prompts)
    for suffix, who in GROUPS.items():
        items = {
            prompt.key: value
            for prompt, value in zip(prompts, values, strict=True)
            if suffix in prompt.groups
        }
        said = list(notes)
        if not items:
            said.append(f"there are no {who}")
        elif unknown and suffix in ("_toxic", "_nontoxic"):
            said.append(f"{unknown} prompts without a toxicity are in neither group")
        enter(name + suffix, items, note="; ".join(said))
