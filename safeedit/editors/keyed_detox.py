"""Keyed detoxification: words of abuse become unlikely where a text leads up to them.

A projection or a silenced neuron acts on every input. This edit is tied to inputs: wherever a toxic
continuation of the data goes on with a word of abuse, it finds the *least* shift of what the MLP of
the last edited layer writes there, at the token before, after which such words together are
``target_drop_nats`` nats less likely (:func:`safeedit.methods.facts.least_values.least_values`),
and solves for the change of the output matrices that moves the keys read there by these shifts and
ordinary text least (:mod:`safeedit.methods.constrained_least_squares`). Neutral continuations count
as ordinary text, so that what is softened is what tells the two apart.

Words of abuse are those given, or tokens that stand five times as often in toxic continuations
as in their openings and in neutral text, three times at least. They are counted in the record and
not named.

With several layers the shift is spread: each layer, ascending, takes its share of what is still
missing, found anew on the partly edited model. The last layers of a model are a bad place: what
they write is read by nothing that could make good for it.

Doses scale the change. Biases stay. Fails with :class:`~safeedit.errors.DataError` where pairs lack
a text or no word of abuse is found in them, with :class:`~safeedit.errors.UsageError` where a layer
lies outside the model, and with :class:`~safeedit.errors.UnsupportedModelError` where a norm
follows the MLP and there are several layers.

Source: ours; the solve is that of MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

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
from safeedit.data import Dataset
from safeedit.data.pairs import read_pairs
from safeedit.errors import DataError
from safeedit.methods.constrained_least_squares import Weighted
from safeedit.methods.contrast import Passages, passages
from safeedit.methods.facts.keys import Ordinary, TokenPosition, keys_at, second_moments
from safeedit.methods.facts.least_values import least_values
from safeedit.methods.facts.objectives import FactObjective, ObjectivePrompt, SuppressTokens
from safeedit.methods.layer_solve import LayerTarget, solve_layers, updates_of
from safeedit.methods.scaled import check_spread, scaled_proposal, so_far
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_RARE = 3
"""Times that a token must stand in toxic continuations to count as a word of abuse."""

LIFT = 5.0
"""How much more frequent in toxic text a word of abuse is."""

_MAX_NORM = 3.0
"""Greatest length of a shift, as a share of the MLP's output: further, and the last layers write
something that no later one can make good for."""

_STEPS = 6
"""To a least shift, at most."""

_MET = 0.1
"""A shift is found once its place is so near to what is aimed at, nats."""

_NOTED = ("reached_median", "missed", "share_of_ordinary_output")
"""What is recorded of each layer's solve."""


class KeyedDetoxParams(BaseParams):
    """Parameters of keyed detoxification."""

    layers: Layers = Field("90%-90%", description="whose MLP outputs move, ascending")
    words: tuple[str, ...] | None = Field(
        None, min_length=1, description="words of abuse; null: found in the pairs"
    )
    target_drop_nats: float = Field(
        3.0, gt=0, description="nats of log-odds by which words of abuse are to be less likely"
    )
    most_places: int = Field(1000, ge=1, description="keys used at most, a seeded choice")
    ridge: float = Field(
        0.3,
        gt=0,
        description="what ordinary text weighs against missed shifts, in units of the MLP's width",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 1.25, 1.5, 2.0), min_length=1, description="scales of the change, ascending"
    )


class KeyedDetox:
    """See the module's docstring."""

    Params = KeyedDetoxParams
    summary: ClassVar[str] = "makes words of abuse unlikely where a text leads up to them"
    results: ClassVar[str] = "detox"
    measured: ClassVar[str] = (
        "Probability of a toxic continuation of a toxic prompt: from 0.237 to 0.183 alone, to "
        "0.116 after `value_vectors`; perplexity ratio 1.02."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("pairs", "toxic and neutral continuations: {prompt, toxic, neutral}"),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: KeyedDetoxParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back, roughly, for ``plan``."""
        return len(data["pairs"].items("fit")) * 40 * 2

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find the places and their least shifts, solve; offer the change in several strengths."""
        params, base = self.params, model.digest()
        sites = model.sites("mlp_out", resolve(params.layers, model.n_layers))
        check_spread(model, len(sites), "90%-90%")
        pairs = data["pairs"]
        tokens, places = _places(params, model, pairs, ctx)
        before = _mass(model, places, tokens)
        aims = _aims(params, places, tokens, before)
        ordinary = _ordinary(model, data, sites, ctx)
        found: dict[str, dict[str, Any]] = {}

        def target(site: Site) -> LayerTarget:
            values = least_values(
                model,
                sites[-1].layer,
                aims,
                steps=_STEPS,
                max_norm=_MAX_NORM,
                stop=_MET,
                progress=ctx.progress,
            )
            found[str(site.layer)] = {
                "shift_over_output": float((values.shifts.norm(dim=1) / values.outputs).mean()),
                "not_met": int((values.losses > _MET).sum()),
            }
            keys = keys_at(model, places, [site])[site]
            return LayerTarget(keys, values.shifts.double().T, ordinary[site].sinks)

        solved = solve_layers(
            "keyed_detox",
            model,
            sites,
            ordinary,
            target,
            Weighted.of,
            ridge=params.ridge,
            whose="the",
            remedy="choose another layer",
        )
        updates = updates_of(solved)
        for each in solved:
            effect = each.effect(model)
            found[str(each.site.layer)] |= {name: effect[name] for name in _NOTED}
        with model.applied(so_far("keyed_detox", base, updates)):
            after = _mass(model, places, tokens)
        notes = {"words_of_abuse": len(tokens), "layers": found} | _effect(before, after)
        return scaled_proposal("keyed_detox", params, pairs, ctx, base, updates, notes)


def _ordinary(
    model: ModelHandle, data: EditData, sites: Sequence[Site], ctx: RunContext
) -> dict[Site, Ordinary]:
    """What is to feel the change least: prose, and the neutral texts of the pairs."""
    pairs = data["pairs"]
    neutral = [
        f"{pair.neutral_opening} {pair.neutral}".strip()
        for pair in read_pairs(pairs.items("fit"), pairs.name)
    ]
    texts = [*(item.prompt for item in data["prose"].items("fit")), *neutral]
    return second_moments(model, texts, sites, ctx.cache, progress=ctx.progress)


def _effect(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """For the record, of log-probabilities ``(places,)`` of all words of abuse together."""
    return {
        "places": len(before),
        "their_probability_before": float(before.exp().mean()),
        "their_probability_after": float(after.exp().mean()),
    }


def _aims(
    params: KeyedDetoxParams,
    places: Sequence[TokenPosition],
    tokens: tuple[int, ...],
    before: torch.Tensor,
) -> list[FactObjective]:
    """For each place, words of abuse less likely by ``target_drop_nats`` than they were before
    ``(places,)``."""
    floors = [min(float(now) - params.target_drop_nats, -0.01) for now in before]
    return [
        FactObjective((ObjectivePrompt(place, SuppressTokens(tokens, floor)),))
        for place, floor in zip(places, floors, strict=True)
    ]


def _places(
    params: KeyedDetoxParams, model: ModelHandle, data: Dataset, ctx: RunContext
) -> tuple[tuple[int, ...], list[TokenPosition]]:
    """Tokens of abuse, and the tokens before each of them in toxic continuations."""
    read = passages(data, "fit", model.engine, ctx)
    abuse = set(_given(params, model, data) if params.words else _found(read))
    places = [
        TokenPosition(tuple(text.ids[:at]), at - 1)
        for text in read.toxic
        for at in range(max(1, text.start), len(text.ids))
        if text.ids[at] in abuse
    ]
    if not places:
        raise DataError(
            f"{len(abuse)} words of abuse were found in the toxic continuations, and no place "
            "that leads up to one",
            field="pairs",
            remedy="give more pairs, or name 'words'",
        )
    if len(places) > params.most_places:
        drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(ctx.seed))
        places = [places[index] for index in sorted(drawn[: params.most_places].tolist())]
    return tuple(sorted(abuse)), places


def _given(params: KeyedDetoxParams, model: ModelHandle, data: Dataset) -> list[int]:
    engine = model.engine
    template = engine.codec.resolve(data.template)
    return [ids[0] for ids in engine.continuations(list(params.words or ()), template) if ids]


def _found(read: Passages) -> list[int]:
    """Tokens that toxic continuations have more often, by :data:`LIFT`, than everything else."""
    toxic, neutral = read.toxic, read.neutral
    own = Counter(token for text in toxic for token in set(text.ids[text.start :]))
    other = Counter(token for text in toxic for token in set(text.ids[: text.start]))
    other.update(token for text in neutral for token in set(text.ids))
    ours, others = sum(own.values()), max(1, sum(other.values()))
    return [
        token
        for token, count in own.items()
        if count >= _RARE and count / ours > LIFT * (other[token] + 0.5) / others
    ]


def _mass(
    model: ModelHandle, places: Sequence[TokenPosition], tokens: Sequence[int]
) -> torch.Tensor:
    """``(places,)`` log-probability of all words of abuse together."""
    ids = [list(place.ids) for place in places]
    return model.engine.next_token_log_probs(ids, tokens).logsumexp(1).double()
