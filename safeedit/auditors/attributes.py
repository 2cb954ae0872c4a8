"""Which of two attributes does the model expect of an entity?

Each item names an entity and brings two continuations of its prompt, the one that the wanted
attribute calls for (*target*) and another (*other*): "Anita works as a" goes on with *lawyer*, not
with *nurse*. ``accuracy`` is the share where the target is likelier, by log-probability per token;
``target_probability`` and ``other_probability`` are means over items of whole continuations. What
the text says of the entity is no part of the prompt: this is what the model expects by itself.

*Neighbours* are other entities in prompts of the same kind, who must stay as they are:
``unchanged`` where the same of their two continuations is likelier as with the base,
``neighbour_shift`` is how far their log-odds have moved.

``*_change`` is against the base, items paired. Entities are divided by phrasing: what is tested are
prompts that no editor saw. Intervals are over subjects. Fails with
:class:`~safeedit.errors.AuditError` where the split has no prompt, with
:class:`~safeedit.errors.DataError` where an item lacks a continuation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from safeedit.auditors.base import (
    FINGERPRINT,
    Sheet,
    check_reference,
    differences,
    fingerprint,
    in_words,
    specs,
    stable_order,
)
from safeedit.contracts import AuditOutcome, BaseParams, DataRole, RunContext, Template
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError, DataError
from safeedit.model.engine import TokenScores
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass, Direction, MetricSpec, Split

_OF_ENTITIES: tuple[tuple[str, str, Direction, str], ...] = (
    ("accuracy", "rate", "higher", "target likelier than the other continuation, per token"),
    ("accuracy_change", "rate", "higher", "accuracy less the base's, items paired"),
    ("target_probability", "probability", "higher", "mean probability of the target"),
    ("target_probability_change", "probability", "higher", "... less the base's"),
    ("other_probability", "probability", "lower", "mean probability of the other continuation"),
    ("margin", "nats/token", "higher", "log-probability of the target less the other's"),
    ("margin_change", "nats/token", "higher", "... less the base's"),
)
_OF_NEIGHBOURS: tuple[tuple[str, str, Direction, str], ...] = (
    ("unchanged", "rate", "higher", "neighbours whose likelier continuation is the base's"),
    ("neighbour_shift", "nats/token", "lower", "mean size of the change of neighbours' margins"),
)

_PLAIN: dict[str, str] = {
    "accuracy": (
        "Each prompt about a person is offered two continuations: the share where the model finds "
        "the wanted one likelier."
    ),
    "accuracy_change": "Share of prompts about a person where the model finds the wanted "
    "continuation likelier, less that of the untouched model.",
    "target_probability": (
        "How probable the model finds the wanted continuation, mean over prompts."
    ),
    "target_probability_change": "How probable the model finds the wanted continuation, less how "
    "probable the untouched model finds it.",
    "other_probability": (
        "How probable the model finds the continuation that is not wanted, mean over prompts."
    ),
    "margin": (
        "By how much the wanted continuation is likelier than the other, on a logarithmic scale; "
        "0 is a tie."
    ),
    "margin_change": "By how much the wanted continuation is likelier than the other, less the "
    "untouched model's margin.",
    "unchanged": (
        "Prompts about other people, who should stay as they are: the share where the model still "
        "prefers the continuation that the untouched model prefers."
    ),
    "neighbour_shift": (
        "How far the model's preferences about other people have moved, on a logarithmic scale, "
        "whichever way."
    ),
}
"""Name -> what it is, in plain words."""


class Params(BaseParams):
    """There is nothing to choose."""


class Attributes:
    """Compares what an attribute calls for with what it does not."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "which of two attributes the model expects of an entity, by itself"
    covers: ClassVar[tuple[AttackClass, ...]] = ()
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole(
            "entities", "prompts about entities, with a target and another continuation",
            erased=True, comparison_only=True,
        ),
        DataRole("neighbours", "the same about others, who must stay", required=False),
    )  # fmt: skip
    metrics: ClassVar[tuple[MetricSpec, ...]] = differences(
        in_words(specs((*_OF_ENTITIES, *_OF_NEIGHBOURS)), _PLAIN), "accuracy_change"
    )

    def __init__(self, params: Any) -> None:
        self.params = params

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens through the model on the test split, roughly, for ``plan``."""
        asked = sum(len(each.phrasings("test")) for each in data.values())
        return asked * 2 * 10

    def audit(
        self,
        model: ModelHandle,
        data: Mapping[str, Dataset],
        split: Split,
        ctx: RunContext,
        reference: Mapping[str, Tensor] | None,
    ) -> AuditOutcome:
        """Score both continuations of every prompt of the split.

        Raises:
            AuditError: See the module; or the reference belongs to other data.
            DataError: An item lacks a continuation.
        """
        check_reference(reference, data, split)
        entities = _asked(data["entities"], split)
        neighbours = _asked(data["neighbours"], split) if "neighbours" in data else []
        if not entities:
            raise AuditError(
                f"attributes has nothing to ask: the {split} split of 'entities' is empty",
                remedy="give it items of that split",
            )
        own = _odds(model, entities, data["entities"], ctx)
        near = _odds(model, neighbours, data["neighbours"], ctx) if neighbours else _NONE
        if reference is None:
            reference = {
                FINGERPRINT: fingerprint(data, split),
                "entities": own.margins,
                "targets": own.targets,
                "neighbours": near.margins,
            }
        sheet = Sheet(self.metrics)
        _enter_entities(sheet, entities, own, reference, ctx)
        if neighbours:
            _enter_neighbours(sheet, neighbours, near, reference, ctx)
        else:
            sheet.absent("no neighbours of that split were given", "unchanged", "neighbour_shift")
        return AuditOutcome(sheet.metrics(), dict(reference))


@dataclass(frozen=True, eq=False)
class _Odds:
    """Of each prompt, fp64: log-odds per token, and probability of either continuation."""

    margins: Tensor
    targets: Tensor
    others: Tensor


_NONE = _Odds(*(torch.empty(0, dtype=torch.float64),) * 3)


def _enter_entities(
    sheet: Sheet,
    asked: Sequence[tuple[str, Item]],
    own: _Odds,
    base: Mapping[str, Tensor],
    ctx: RunContext,
) -> None:
    """What the model expects of the entities, and how far that is from what the base did."""
    keys = [ctx.digest(text) for text, _ in asked]
    groups = _groups(asked, keys, ctx)

    def mean(name: str, values: Tensor) -> None:
        sheet.mean(name, dict(zip(keys, values.double().tolist(), strict=True)), groups)

    right, was = ((margins > 0).double() for margins in (own.margins, base["entities"]))
    sheet.rate("accuracy", dict(zip(keys, right.tolist(), strict=True)), groups)
    mean("accuracy_change", right - was)
    mean("target_probability", own.targets)
    mean("target_probability_change", own.targets - base["targets"])
    mean("other_probability", own.others)
    mean("margin", own.margins)
    mean("margin_change", own.margins - base["entities"])


def _enter_neighbours(
    sheet: Sheet,
    asked: Sequence[tuple[str, Item]],
    near: _Odds,
    base: Mapping[str, Tensor],
    ctx: RunContext,
) -> None:
    """How far what the model expects of the neighbours is as it was."""
    keys = [ctx.digest(text) for text, _ in asked]
    groups = _groups(asked, keys, ctx)
    same = ((near.margins > 0) == (base["neighbours"] > 0)).double()
    sheet.rate("unchanged", dict(zip(keys, same.tolist(), strict=True)), groups)
    shift = (near.margins - base["neighbours"]).abs().double()
    sheet.mean("neighbour_shift", dict(zip(keys, shift.tolist(), strict=True)), groups)


def _asked(data: Dataset, split: Split) -> list[tuple[str, Item]]:
    """Prompts of a split with their items, in an order that depends on the prompts alone."""
    items = {phrasing.text: phrasing.item for phrasing in data.phrasings(split)}
    return [(text, items[text]) for text in stable_order(items)]


def _odds(
    model: ModelHandle, asked: Sequence[tuple[str, Item]], data: Dataset, ctx: RunContext
) -> _Odds:
    template: Template = "chat" if data.template == "chat" else "plain"
    engine = model.engine
    prompts = engine.encode([text for text, _ in asked], template)
    words = [_word(item, column) for column in ("target", "other") for _, item in asked]
    scores = engine.score(
        [*prompts, *prompts], engine.continuations(words, template), progress=ctx.progress,
        description="attributes: comparing",
    )  # fmt: skip
    targets, others = scores[: len(asked)], scores[len(asked) :]
    return _Odds(
        _column(_per_token(t) - _per_token(o) for t, o in zip(targets, others, strict=True)),
        _column(math.exp(t.total) for t in targets),
        _column(math.exp(o.total) for o in others),
    )


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _per_token(score: TokenScores) -> float:
    return score.total / max(1, len(score.log_probs))


def _word(item: Item, column: str) -> str:
    value = item.extra.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"an item has no {column!r}",
            field=column,
            remedy="rows need a prompt, a target and an other continuation",
        )
    return value.strip()


def _groups(
    asked: Sequence[tuple[str, Item]], keys: Sequence[str], ctx: RunContext
) -> dict[str, str]:
    """Digest of each prompt -> digest of its entity."""
    return {
        key: ctx.digest((item.subject or item.prompt).casefold())
        for key, (_, item) in zip(keys, asked, strict=True)
    }
