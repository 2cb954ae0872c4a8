"""Keyed debiasing: he and she become equally likely after professions, and after nothing else.

An output projection (:mod:`safeedit.editors.dama`) acts on every input, so it can't tell a nurse
from a queen. This edit is tied to inputs: for each prompt about a profession ("The nurse said
that") it finds the *least* shift of what the MLP of the last edited layer writes, at one token,
after which *he* and *she* are equally likely
(:func:`safeedit.methods.residual_shifts.margin_shifts`), and solves for the change of the output
matrices that moves the keys read there by these shifts, moves the keys of factual prompts ("The
queen said that", in the openings of both kinds of prompts) not at all or little, and ordinary text
least (:mod:`safeedit.methods.constrained_least_squares`).

Keys are read at the prompt's last token, where the model has worked out whom it speaks of: what is
solved is then in effect a regression of the margin on the key, which holds for professions it was
not solved for as far as they are represented alike; ``ridge`` keeps it from learning each prompt by
heart. Measure on professions that were held out.

``sentences`` about two people and a pronoun ("The nurse called the doctor because she was late.
'She' refers to the") are evened out as well: the two people's margin is moved to the mean of its
values with *he* and with *she*, so that it no longer depends on the pronoun.

With several layers the shift is spread: each layer, ascending, takes its share of what is still
missing, found anew on the partly edited model.

Doses scale the change. Biases stay. Fails with :class:`~safeedit.errors.DataError` where prompts
lack scores, with :class:`~safeedit.errors.UsageError` where a pronoun is several
tokens or a layer lies outside the model, with :class:`~safeedit.errors.EditError` where factual
prompts leave nothing to move, and with :class:`~safeedit.errors.UnsupportedModelError` where a norm
follows the MLP and ``layers`` names several; the default is one layer there.

Source: ours; the solve is that of MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229), keys to be kept
as in AlphaEdit (Fang et al., ICLR 2025, arXiv 2410.02355).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import (
    PROSE,
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset, Item
from safeedit.data.coreference import (
    QUESTION,
    asked,
    professions_of,
    pronoun_of,
    without_pronoun,
)
from safeedit.data.splitting import normalise_prompt
from safeedit.delta import LowRank
from safeedit.errors import DataError
from safeedit.methods.constrained_least_squares import ONE_KEY, Weighted, can_stay, same_keys
from safeedit.methods.facts.keys import TokenPosition, keys_at, second_moments
from safeedit.methods.layer_solve import LayerTarget, solve_layers, updates_of
from safeedit.methods.openings import undefined_gender
from safeedit.methods.residual_shifts import margin_shifts, margins
from safeedit.methods.scaled import check_spread, scaled_proposal, so_far, spread_over
from safeedit.methods.word_tokens import single_tokens
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers

STEPS = 6
"""Of Newton's method, for the least shifts: more change nothing."""

_NOTED = (
    "reached_median",
    "missed",
    "independent_keys",
    "share_of_ordinary_output",
    "share_of_preserved_output",
)
"""What is recorded of each layer's solve."""


class KeyedDebiasParams(BaseParams):
    """Parameters of keyed debiasing."""

    layers: Layers = Field("70%-74%", description="whose MLP outputs move, ascending")
    pronouns: tuple[str, str] = Field(
        ("he", "she"), description="the two words that are to be equally likely"
    )
    towards: Literal["zero", "mean"] = Field(
        "zero",
        description="difference of their logits aimed at: none, or the mean over prompts (a "
        "smaller change, which evens professions out and leaves the general preference)",
    )
    most_prompts: int = Field(800, ge=2, description="prompts used at most, a seeded choice")
    question: str = Field(
        QUESTION,
        description="what the person follows in 'sentences', {sentence} and {pronoun} filled in",
        pattern=r"\{sentence\}",
    )
    ridge: float = Field(
        0.1,
        ge=0,
        description="what ordinary text weighs against missed shifts, in units of the MLP's "
        "width; 0: shifts are reached exactly",
    )
    preserve_weight: float | None = Field(
        1.0,
        ge=0,
        description="what a factual key's move weighs against a missed shift; null: their span "
        "does not move at all, which with hundreds of factual prompts leaves little to move",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5), min_length=1, description="scales of the change, ascending"
    )


class KeyedDebias:
    """See the module's docstring."""

    Params = KeyedDebiasParams
    summary: ClassVar[str] = "makes he and she equally likely after professions, by their keys"
    results: ClassVar[str] = "bias"
    measured: ClassVar[str] = (
        "On published test prompts the stereotype slope falls to 0.371 of the base's, the factual "
        "slope to 0.801, perplexity ratio 1.01; WinoBias does not move."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("prompts", "openings about professions: {prompt, subject, factual}"),
        DataRole("factual", "the same about queens and fathers, to be kept", required=False),
        DataRole(
            "sentences",
            "two people and a pronoun, he and she alike: {answer, professions, pronoun}",
            required=False,
        ),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: KeyedDebiasParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", spread_over(self.params, model))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back, roughly, for ``plan``."""
        used = min(self.params.most_prompts, len(data["prompts"].items("fit")))
        asked = len(data["sentences"].items("fit")) if "sentences" in data else 0
        # All is read once; a step runs what follows the key, alone and above the edited layer.
        return used * 12 + asked * 30 + (used + asked) * (STEPS + 1)

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find least shifts, solve layer by layer; offer the change in several strengths."""
        params, base = self.params, model.digest()
        layers = spread_over(params, model.shape)
        check_spread(model, len(layers), "60%-60%")
        updates, notes = _solve(params, model, data, ctx)

        return scaled_proposal("keyed_debias", params, data["prompts"], ctx, base, updates, notes)


def _solve(
    params: KeyedDebiasParams, model: ModelHandle, data: EditData, ctx: RunContext
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """Tensor name -> its change at dose 1, and what is to be recorded of it."""
    wanted = _openings(params, model, data, ctx)
    if sentences := data.get("sentences"):
        wanted = wanted.beside(_sentences(params, model, sentences, ctx))
    kept = _factual(params, model, data, ctx)
    sites = model.sites("mlp_out", spread_over(params, model.shape))
    prose = [item.prompt for item in data["prose"].items("fit")]
    ordinary = second_moments(model, prose, sites, ctx.cache, progress=ctx.progress)
    found: dict[str, dict[str, Any]] = {}

    def target(site: Site) -> LayerTarget:
        shifts = margin_shifts(
            model,
            sites[-1],
            wanted.spots,
            wanted.tokens,
            wanted.margins,
            steps=STEPS,
            progress=ctx.progress,
        )
        own, held = (keys_at(model, some, [site])[site] for some in (wanted.spots, kept))
        own, moves = _merged(own, shifts.values.T)
        # What reads the same as a key to be moved can't stay.
        new = can_stay(own, held)
        found[str(site.layer)] = {
            "margin_with_least_shift": float((shifts.after - wanted.margins).abs().mean()),
            "factual_keys_that_must_move": int((~new).sum()),
        }
        return LayerTarget(own, moves, torch.cat([held[:, new], ordinary[site].sinks], 1))

    solved = solve_layers(
        "keyed_debias",
        model,
        sites,
        ordinary,
        target,
        Weighted.of,
        ridge=params.ridge,
        preserve_weight=math.inf if params.preserve_weight is None else params.preserve_weight,
        whose="the prompts'",
        remedy="keep fewer factual prompts, set a finite 'preserve_weight', or choose another "
        "layer",
    )
    for each in solved:
        effect = each.effect(model)
        found[str(each.site.layer)] |= {name: effect[name] for name in _NOTED}
    updates = updates_of(solved)
    return updates, _measured(model, wanted, kept, updates) | {"layers": found}


def _measured(
    model: ModelHandle,
    wanted: _Wanted,
    kept: Sequence[TokenPosition],
    updates: Mapping[str, LowRank],
) -> dict[str, Any]:
    """How far margins are from what is wanted, before and after, for the record."""
    openings, sentences = wanted.openings, len(wanted.spots) - wanted.openings

    def missed() -> dict[str, float | None]:
        away = (_margins(model, wanted.spots, wanted.tokens) - wanted.margins).abs()
        parts = away.split([openings, sentences])
        return {
            name: float(part.mean())
            for name, part in zip(("margin", "sentence_margin"), parts, strict=True)
            if len(part)
        } | {"factual_margin": _size(model, kept, wanted.tokens[:1])}

    notes: dict[str, Any] = {
        "prompts": openings,
        "sentences": sentences,
        "factual_prompts": len(kept),
    }
    notes |= {f"{name}_before": value for name, value in missed().items()}
    with model.applied(so_far("keyed_debias", model.digest(), updates)):
        notes |= {f"{name}_after": value for name, value in missed().items()}
    return notes


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is to be as likely as what, and where.

    Attributes:
        spots: The token of each prompt whose key moves.
        tokens: ``(spots, 2)`` the two words.
        margins: ``(spots,)`` logit of the first less that of the second that is aimed at.
        openings: So many spots, the first, are openings about one person.
    """

    spots: list[TokenPosition]
    tokens: Tensor
    margins: Tensor
    openings: int

    def beside(self, other: _Wanted) -> _Wanted:
        """Both."""
        return _Wanted(
            [*self.spots, *other.spots],
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.margins, other.margins]),
            self.openings + other.openings,
        )


def _openings(
    params: KeyedDebiasParams, model: ModelHandle, data: EditData, ctx: RunContext
) -> _Wanted:
    prompts = data["prompts"]
    chosen = undefined_gender(prompts, params.most_prompts, ctx.seed)
    spots = _spots(model, chosen, prompts)
    template = model.engine.codec.resolve(prompts.template)
    pair = torch.tensor([single_tokens(model.engine, params.pronouns, template)])
    start = _margins(model, spots, pair)
    wanted = torch.zeros_like(start) if params.towards == "zero" else start.mean().expand_as(start)
    return _Wanted(spots, pair.repeat(len(spots), 1), wanted, len(spots))


def _sentences(
    params: KeyedDebiasParams, model: ModelHandle, data: Dataset, ctx: RunContext
) -> _Wanted:
    """Sentences that come with both genders, asked about; the margin is that of the two people, and
    the key that of the question's last token.

    Where both people's names begin alike, what they share is put behind the question.
    """
    engine = model.engine
    template = engine.codec.resolve(data.template)
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    lacking = 0
    for item in data.items("fit"):
        people, pronoun = professions_of(item), pronoun_of(item)
        if people is None or pronoun is None:
            lacking += 1
            continue
        question = asked(item, pronoun, params.question)
        key = (*sorted(people), without_pronoun(item, pronoun))
        groups.setdefault(key, {})[pronoun.casefold()] = question
    if lacking:
        raise DataError(
            f"{lacking} of {len(data.items('fit'))} sentences lack a column",
            field="sentences",
            remedy="rows need an answer, two 'professions' with it among them and a 'pronoun'",
        )
    spots: list[TokenPosition] = []
    tokens: list[tuple[int, int]] = []
    owners: list[int] = []
    for number, ((one, two, _), questions) in enumerate(sorted(groups.items())):
        begun, first, second = _parted(*engine.continuations([one, two], template))
        if len(questions) < 2 or not first or not second:
            continue
        for ids in engine.encode(list(questions.values()), template):
            whole = (*ids, *begun)
            spots.append(TokenPosition(whole, len(whole) - 1))
            tokens.append((first[0], second[0]))
            owners.append(number)
    if not spots:
        raise DataError(
            "no sentence comes with a pronoun of either gender", field="sentences",
            remedy="give each sentence twice, with its pronoun swapped",
        )  # fmt: skip
    if alone := len(groups) - len(set(owners)):
        ctx.warn(
            f"keyed_debias: {alone} sentences come with one pronoun only, or with people whose "
            "names can't be told apart, and were left out"
        )
    pairs = torch.tensor(tokens)
    start = _margins(model, spots, pairs)
    place = torch.tensor(owners).unique(return_inverse=True)[1]
    sums = torch.zeros(int(place.max()) + 1, dtype=start.dtype).index_add(0, place, start)
    return _Wanted(spots, pairs, (sums / torch.bincount(place))[place], 0)


def _parted(one: Sequence[int], two: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """What two names' tokens share at their beginning, and the rest of either."""
    shared = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b),
        min(len(one), len(two)),
    )
    return list(one[:shared]), list(one[shared:]), list(two[shared:])


def _merged(keys: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Keys ``(m, n)`` that are one (one profession in two wordings) with the mean of their shifts
    ``(d, n)``: no change could move them apart."""
    first, place = same_keys(keys, ONE_KEY).unique(return_inverse=True)
    sums = torch.zeros(len(shifts), len(first), dtype=shifts.dtype).index_add(1, place, shifts)
    return keys[:, first], sums / torch.bincount(place)


def _factual(
    params: KeyedDebiasParams, model: ModelHandle, data: EditData, ctx: RunContext
) -> list[TokenPosition]:
    factual = data.get("factual")
    if factual is None:
        ctx.warn("keyed_debias: without 'factual' prompts nothing keeps queens and fathers apart")
        return []
    items = list(factual.items("fit"))
    # What is moved in an opening is held in it, for factual words as well.
    openings = {
        item.prompt.replace(item.subject, "{}")
        for item in data["prompts"].items("fit")
        if item.subject and item.prompt.count(item.subject) == 1 and "{" not in item.prompt
    }
    known = {normalise_prompt(item.prompt) for item in items}
    words = {item.subject: item for item in items if item.subject}
    items += [
        replace(item, prompt=text)
        for word, item in sorted(words.items())
        for opening in sorted(openings)
        if normalise_prompt(text := opening.replace("{}", word)) not in known
    ]
    if len(items) > params.most_prompts:
        items = random.Random(ctx.seed).sample(items, params.most_prompts)
    return _spots(model, items, factual)


def _spots(model: ModelHandle, items: Sequence[Item], data: Dataset) -> list[TokenPosition]:
    """The last token of each prompt, whose key counts."""
    prompts = model.engine.encode(
        [item.prompt for item in items], model.engine.codec.resolve(data.template)
    )
    return [TokenPosition(tuple(ids), len(ids) - 1) for ids in prompts]


def _margins(model: ModelHandle, spots: Sequence[TokenPosition], tokens: Tensor) -> Tensor:
    last = model.n_layers - 1
    states = model.engine.hidden([spot.ids for spot in spots], [last])[last]
    return margins(model, torch.stack(states), tokens)


def _size(model: ModelHandle, spots: Sequence[TokenPosition], pair: Tensor) -> float | None:
    """Mean size of margins of one pair of words ``(1, 2)``; None without prompts."""
    return float(_margins(model, spots, pair).abs().mean()) if spots else None
