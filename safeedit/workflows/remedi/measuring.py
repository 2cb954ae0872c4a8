"""How well a map probes, steers and compiles, on lessons that taught it nothing.

* :func:`probe`: which of two attributes does the model hold of each entity? Accuracy, and that of a
  *control task*: the same questions with entities dealt to other lessons' attributes at random. A
  probe that only prefers some attributes does as well there.
* :func:`lift`: how much likelier the wanted word becomes after each prompt, steered at run time or
  in edited weights, and what happens to neighbours: one function for both, so that what compiling
  keeps of steering is a ratio of two of its figures.

Fails with :class:`~safeedit.errors.DataError` where lessons lack another attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from safeedit.contracts import RunContext, Template
from safeedit.data import Dataset, Item
from safeedit.errors import DataError
from safeedit.methods.remedi.examples import (
    COLUMNS,
    AttributeExample,
    attribute_states,
    entity_spots,
    entity_states,
    lesson,
    opposite,
)
from safeedit.methods.remedi.mapping import Remedi
from safeedit.model.handle import ModelHandle
from safeedit.records import Split


def lessons_of(data: Dataset, split: Split, *, both_ways: bool = False) -> list[AttributeExample]:
    """The lessons of a split; ``both_ways`` also those with the other attribute."""
    found = []
    for item in data.items(split):
        one = lesson(item.subject, item.prompt, item.extra)
        two = opposite(one, item.extra) if both_ways else None
        found += [one] if two is None else [one, two]
    return found


@dataclass(frozen=True)
class Probed:
    """What a probe finds.

    Attributes:
        accuracy: Share of entities of which the attribute of their lesson scores higher.
        control: The same with entities dealt to other lessons, mean over draws.
        entities: How many.
    """

    accuracy: float
    control: float
    entities: int

    @property
    def selectivity(self) -> float:
        """Accuracy less that of the control task."""
        return self.accuracy - self.control

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"selectivity": self.selectivity}


def probe(
    model: ModelHandle,
    learnt: Remedi,
    data: Dataset,
    split: Split,
    *,
    told: bool = False,
    draws: int = 20,
    seed: int = 0,
) -> Probed:
    """Which of two attributes does the model hold of each entity?

    Args:
        model: That the map was trained on.
        learnt: The map; its own statistics standardise.
        data: Lessons with two attributes each.
        split: Which of them.
        told: The context stands before the prompt: does the model hold what it has just read?
        draws: Of the control task.
        seed: Of its draws.
    """
    pairs = [
        (one, two)
        for item in data.items(split)
        for one in (lesson(item.subject, item.prompt, item.extra),)
        if (two := opposite(one, item.extra)) is not None
    ]
    if not pairs:
        raise DataError("no lesson names another attribute to tell apart", remedy=COLUMNS)
    own = [one for one, _ in pairs]
    spots = entity_spots(model, own, _template(model, data), told=told)
    states = entity_states(model, spots, learnt.probe_layer)
    both = [
        learnt(attribute_states(model, [pair[side] for pair in pairs], learnt.layer))
        for side in (0, 1)
    ]
    directions = torch.stack(both, 1)

    def accuracy(rows: Tensor) -> float:
        scores = learnt.scores(rows, directions)
        return float((scores[:, 0] > scores[:, 1]).double().mean())

    generator = torch.Generator().manual_seed(seed)
    dealt = [
        accuracy(states[torch.randperm(len(states), generator=generator)]) for _ in range(draws)
    ]
    return Probed(accuracy(states), sum(dealt) / max(1, len(dealt)), len(pairs))


@dataclass(frozen=True, eq=False)
class Odds:
    """Of each prompt, fp64: probability of the target, and its log-odds over the other word."""

    targets: Tensor
    margins: Tensor


def odds(model: ModelHandle, items: Sequence[Item], template: Template, ctx: RunContext) -> Odds:
    """What the model, as it is now, expects after each prompt; whole words, per token."""
    engine = model.engine
    prompts = engine.encode([item.prompt for item in items], template)
    words = [str(item.extra[name]) for name in ("target", "other") for item in items]
    scores = engine.score(
        [*prompts, *prompts], engine.continuations(words, template), progress=ctx.progress
    )
    totals = torch.tensor([score.total for score in scores], dtype=torch.float64)
    counts = torch.tensor([max(1, len(score.log_probs)) for score in scores])
    nats = totals / counts
    return Odds(totals[: len(items)].exp(), nats[: len(items)] - nats[len(items) :])


@dataclass(frozen=True)
class Lift:
    """What a change does.

    Attributes:
        margin: Mean rise of the target's log-odds over the other word, nats per token.
        probability: Mean rise of the target's probability.
        accuracy: Share of prompts after which the target is the likelier of the two.
        raised: Share of prompts after which the target is likelier than before.
        locality: Share of neighbours of whose two words the same is likelier as before.
    """

    margin: float
    probability: float
    accuracy: float
    raised: float
    locality: float | None


def lift(
    model: ModelHandle,
    changed: AbstractContextManager[object],
    items: Sequence[Item],
    neighbours: Sequence[Item],
    template: Template,
    ctx: RunContext,
) -> Lift:
    """Held against the model as it is, within ``changed``: steering, or weights applied.

    Args:
        model: Untouched at this time.
        changed: Entered once.
        items: Prompts with a target and another word.
        neighbours: The same, which are to stay.
        template: How prompts are put.
        ctx: For progress.
    """
    everything = [*items, *neighbours]
    before = odds(model, everything, template, ctx)
    with changed:
        after = odds(model, everything, template, ctx)
    own = slice(0, len(items))
    same = (before.margins > 0) == (after.margins > 0)
    return Lift(
        margin=float((after.margins - before.margins)[own].mean()),
        probability=float((after.targets - before.targets)[own].mean()),
        accuracy=float((after.margins > 0)[own].double().mean()),
        raised=float((after.targets > before.targets)[own].double().mean()),
        locality=float(same[len(items) :].double().mean()) if neighbours else None,
    )


def _template(model: ModelHandle, data: Dataset) -> Template:
    return model.engine.codec.resolve(data.template)
