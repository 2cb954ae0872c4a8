"""Tracing the facts of a planned edit, and holding what is found against editing itself.

Fails with :class:`~safeedit.errors.UsageError` where an edit has no facts or no ``layers``, and
with :class:`~safeedit.errors.DataError` where the model tells none of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from safeedit import __version__, catalog
from safeedit.contracts import EditData, RunContext
from safeedit.data import Dataset, Item
from safeedit.data.subjects import shared_span
from safeedit.errors import DataError, UsageError
from safeedit.methods.causal_tracing import (
    KINDS,
    PLACES,
    Effects,
    trace,
    usual_window,
)
from safeedit.methods.facts.answers import AnswerPosition, answer_probability, told_answers
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import Plan, PlannedEdit
from safeedit.records import Split
from safeedit.statistics.intervals import bootstrap_totals
from safeedit.statistics.ranks import rank_correlation
from safeedit.workflows.tracing.record import Check, Checked, Estimate, Recommendation, Trace

AGREE_FROM = 0.3
"""Rank correlation of effect and success below which they disagree."""

_NEARLY = 0.8
"""Share of the peak's effect from which a layer beside it is recommended too."""

_HELD_OUT = 2
"""Wordings of each fact that editing is checked in, at most."""


@dataclass(frozen=True)
class TracingSettings:
    """How to trace; see :func:`safeedit.methods.causal_tracing.trace`.

    Attributes:
        facts: At most so many.
        noise: In standard deviations of the subjects' embeddings.
        draws: Of the noise.
        window: Layers of MLPs or attentions put back at a time; None: a fifth of the model.
        seed: Of the choice of facts and of the noise.
    """

    facts: int = 20
    noise: float = 3.0
    draws: int = 3
    window: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TracedFact:
    """One fact the model tells."""

    item: Item
    subject: str
    told: AnswerPosition


def choose_edit(plan: Plan, name: str | None) -> PlannedEdit:
    """The edit of that id or number (from 1); by default the first that erases facts.

    Raises:
        UsageError: There is none.
    """
    numbered = {str(number): edit for number, edit in enumerate(plan.edits, start=1)}
    named = {edit.id: edit for edit in plan.edits}
    with_facts = [edit for edit in plan.edits if _role(edit) is not None]
    found = named.get(name, numbered.get(name)) if name is not None else None
    if name is None and with_facts:
        return with_facts[0]
    if found is None:
        raise UsageError(
            f"the policy has no edit {name!r}" if name else "no edit of the policy has facts",
            remedy=f"name one of {', '.join(named)}" if named else "add an edit to the policy",
        )
    return found


def trace_edit(
    model: ModelHandle, plan: Plan, edit: PlannedEdit, how: TracingSettings, ctx: RunContext,
    check: Sequence[int] = (),
) -> Trace:  # fmt: skip
    """Trace an edit's facts on the model as it is, and edit them at the layers to check.

    Args:
        model: The policy's, before any edit.
        plan: The policy's.
        edit: One of its edits.
        how: Settings.
        ctx: Of the run.
        check: Layers to run the edit at, one after the other.
    """
    data = _facts_of(edit)
    facts, not_told = _known(model, data, how, ctx)
    told = [fact.told for fact in facts]
    window = how.window or usual_window(model.n_layers)
    effects = trace(
        model, [one.prompt for one in told], answer_probability(told), window=window,
        noise=how.noise, draws=how.draws, seed=how.seed, progress=ctx.progress,
    )  # fmt: skip
    means = _means(effects)
    at_subject = means["mlp"]["last subject"]
    warnings = _doubts(effects, at_subject)
    found = None
    if check:
        found = _check(model, edit, data, facts, check, at_subject, ctx)
        warnings += _disagreement(found)
    for warning in warnings:
        ctx.warn(warning)
    return Trace(
        safeedit=__version__,
        policy=plan.loaded.policy.name,
        edit=edit.id,
        model=plan.loaded.policy.model.source,
        weights_digest=model.digest(),
        data_digest=data.digest,
        layers=model.n_layers,
        facts=len(facts),
        not_told=not_told,
        template=model.engine.codec.resolve(data.template),
        noise=how.noise,
        draws=how.draws,
        window=window,
        seed=how.seed,
        probability=_sure(effects.clean),
        under_noise=_sure(effects.noisy),
        lost=_sure(effects.clean - effects.noisy),
        effects=means,
        recommendation=recommend(at_subject, window),
        check=found,
        warnings=tuple(warnings),
    )


def _means(effects: Effects) -> dict[str, dict[str, tuple[Estimate | None, ...]]]:
    """By kind, place and layer."""
    return {
        kind: {place: tuple(map(estimate, effects.restored[kind, place].T)) for place in PLACES}
        for kind in KINDS
    }


def estimate(values: Tensor) -> Estimate | None:
    """Mean over the facts that have a value, with its bootstrap interval; None without any."""
    known = values[~values.isnan()].double().numpy()
    if not len(known):
        return None
    interval = None
    if len(known) > 1:
        totals = np.stack([known, np.ones_like(known)], axis=1)
        interval = bootstrap_totals(totals, lambda sums: sums[..., 0] / sums[..., 1])
    return Estimate(value=float(known.mean()), interval=interval, n=len(known))


def _sure(values: Tensor) -> Estimate:
    found = estimate(values)
    assert found is not None
    return found


def recommend(effects: Sequence[Estimate | None], window: int) -> Recommendation | None:
    """Layers by the MLPs' effects at the subject; None where none is surely above zero.

    Args:
        effects: Per layer.
        window: At most so many layers for editors of several.
    """
    values = [-np.inf if one is None else one.value for one in effects]
    peak = int(np.argmax(values))
    best = effects[peak]
    if best is None or best.value <= 0 or (best.interval and best.interval.low <= 0):
        return None
    first = last = peak
    while last - first + 1 < max(2, window):
        before = values[first - 1] if first else -np.inf
        after = values[last + 1] if last + 1 < len(values) else -np.inf
        if max(before, after) < _NEARLY * best.value:
            break
        first, last = (first - 1, last) if before >= after else (first, last + 1)
    return Recommendation(
        peak=peak, one=f"layers: [{peak}]", several=f"layers: {first}-{last}"
    )  # fmt: skip


# Facts ---------------------------------------------------------------------------------


def _role(edit: PlannedEdit) -> str | None:
    names = [role.name for role in edit.editor.roles if role.erased and not role.comparison_only]
    return next((name for name in names if edit.data.get(name) is not None), None)


def _facts_of(edit: PlannedEdit) -> Dataset:
    role = _role(edit)
    if role is None:
        raise UsageError(
            f"edit {edit.id} has no facts to forget, so that there is nothing to trace",
            remedy="name an edit with 'forget' data",
        )
    return edit.data[role]


def _known(
    model: ModelHandle, data: Dataset, how: TracingSettings, ctx: RunContext
) -> tuple[list[TracedFact], int]:
    """Facts that the model tells, in a seeded order, and how many asked it does not."""
    items = list(data.items("fit"))
    random.Random(how.seed).shuffle(items)
    wordings = _wordings(data, "fit")
    found: list[TracedFact] = []
    asked = 0
    while len(found) < how.facts and asked < len(items):
        some = items[asked : asked + max(how.facts - len(found), 8)]
        subjects = [_subject(item, wordings.get(id(item), [])) for item in some]
        told = told_answers(
            model.engine,
            [(item.prompt, subject, item.aliases)
             for item, subject in zip(some, subjects, strict=True)],
            data.template,
            progress=ctx.progress,
        )  # fmt: skip
        asked += len(some)
        found += [
            TracedFact(item, subject, one)
            for item, subject, one in zip(some, subjects, told, strict=True)
            if one is not None
        ]
    if not found:
        raise DataError(
            f"the model tells none of {len(items)} facts when asked, or they don't name their "
            "subjects: there is nothing to trace",
            remedy="give facts that the model knows, each with its subject as its prompt writes it",
        )
    return found[: how.facts], asked - len(found)


def _wordings(data: Dataset, split: Split) -> dict[int, list[str]]:
    """``id`` of an item -> its wordings in a split."""
    found: dict[int, list[str]] = {}
    for phrasing in data.phrasings(split):
        found.setdefault(id(phrasing.item), []).append(phrasing.text)
    return found


def _subject(item: Item, wordings: Sequence[str]) -> str:
    return (item.subject or "").strip() or shared_span(wordings)


# Editing -------------------------------------------------------------------------------


def _check(
    model: ModelHandle,
    edit: PlannedEdit,
    data: Dataset,
    facts: Sequence[TracedFact],
    layers: Sequence[int],
    effects: Sequence[Estimate | None],
    ctx: RunContext,
) -> Check:
    if "layers" not in type(edit.params).model_fields:
        raise UsageError(
            f"{edit.spec.use} has no 'layers' to check",
            remedy="leave --check out, or trace an edit by rome, memit or alphaedit",
        )
    held_out = _held_out(model, data, facts, ctx)
    before = _probabilities(model, held_out)
    roles = {**edit.data.roles, _role(edit) or "": _only(data, [fact.item for fact in facts])}
    kind = catalog.editor(edit.spec.use)
    given = edit.params.model_dump()
    found: list[Checked] = []
    dose = 1.0
    for layer in ctx.progress(layers, "editing layers", len(layers)):
        params = kind.Params.model_validate({**given, "layers": [layer]})
        proposal = kind(params).propose(model, EditData(roles), ctx)
        near_one = min(proposal.doses, key=lambda offered: abs(offered - 1))
        dose = near_one if edit.spec.dose == "auto" else edit.spec.dose
        with model.applied(proposal.at(dose)):
            after = _probabilities(model, held_out)
        fall = ((before - after) / before).clamp(min=-1)
        success = torch.stack(
            [fall[[owner == fact for owner, _ in held_out]].mean() for fact in range(len(facts))]
        )
        effect = effects[layer]
        assert effect is not None
        found.append(Checked(layer=layer, effect=effect.value, success=_sure(success)))
    return Check(
        editor=edit.spec.use,
        dose=dose,
        layers=tuple(found),
        rank_correlation=rank_correlation(
            [one.effect for one in found], [one.success.value for one in found]
        ),
    )


def _held_out(
    model: ModelHandle, data: Dataset, facts: Sequence[TracedFact], ctx: RunContext
) -> list[tuple[int, AnswerPosition]]:
    """Fact and prompt, of wordings that no editor sees and in which the model tells the fact;
    where a fact has none, as it was traced."""
    wordings = _wordings(data, "validation")
    asked = [
        (number, (text, fact.subject, fact.item.aliases))
        for number, fact in enumerate(facts)
        for text in wordings.get(id(fact.item), [])[:_HELD_OUT]
    ]
    told = told_answers(
        model.engine, [question for _, question in asked], data.template, progress=ctx.progress
    )
    found = [(number, one) for (number, _), one in zip(asked, told, strict=True) if one is not None]
    without = set(range(len(facts))) - {number for number, _ in found}
    return [*found, *((number, facts[number].told) for number in sorted(without))]


def _probabilities(model: ModelHandle, asked: Sequence[tuple[int, AnswerPosition]]) -> Tensor:
    """``(prompts,)`` fp64, of the tokens that tell the answers."""
    scores = model.engine.score(
        [one.prompt.ids for _, one in asked], [[one.token] for _, one in asked]
    )
    return torch.tensor([score.total for score in scores], dtype=torch.float64).exp()


def _only(data: Dataset, items: Sequence[Item]) -> Dataset:
    """These items with their fit wordings, as an editor sees them."""
    wordings = _wordings(data, "fit")
    kept = [
        replace(
            item,
            paraphrases=tuple(p for p in item.paraphrases if p in wordings.get(id(item), [])),
        )
        for item in items
    ]
    return Dataset(
        kept, name=data.name, source=data.source, template=data.template, erased=True, split="fit"
    ).without("test")


# Doubts --------------------------------------------------------------------------------


def _doubts(effects: Effects, at_subject: Sequence[Estimate | None]) -> list[str]:
    lost = _sure(effects.clean - effects.noisy)
    if lost.interval is not None and lost.interval.low <= 0:
        return [
            "trace: noise on the subjects does not surely lower the answers' probability, so that "
            "there is nothing to bring back: more noise, more facts, or subjects that matter"
        ]
    if recommend(at_subject, 1) is None:
        return [
            "trace: no layer's MLPs surely bring back anything at the subjects' last tokens: the "
            "map recommends no layers"
        ]
    return []


def _disagreement(check: Check) -> list[str]:
    found = check.rank_correlation
    if found is None:
        return [
            "trace: effect and editing success can't be ranked against each other: check three "
            "layers or more, whose success differs"
        ]
    if found < AGREE_FROM:
        return [
            f"trace: tracing and editing success disagree over {len(check.layers)} layers (rank "
            f"correlation {found:.2f}): choose layers by the success measured, not by the map"
        ]
    return []
