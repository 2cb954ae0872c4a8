"""DEPN: find the MLP neurons that make secrets likely, and zero them.

Neurons are attributed to every secret (:mod:`safeedit.methods.attribution`) and ranked over all of
them (:mod:`safeedit.methods.votes`); the columns of the first become zero: a vanilla checkpoint,
whose old columns are all that undoing needs. Doses are numbers of neurons.

What departs from the publication, and why:

* The log-odds of a token are attributed: its probability, or the logarithm of that, has next to no
  gradient where a secret is known by heart.
* Attributions are divided by what a neuron is worth to ordinary text (``spare``), to first and
  second order. Subtracting what it does there (``generic_weight``) is the cruder way.
* Neurons that write an attention sink stay (``sinks``): attributions, taken where tokens are
  predicted, do not see what all attention rests on.
* Neurons are taken by the sum of their attributions (``order: gain``), not by votes.
* Neurons are taken in rounds: after ``round`` of them the rest is attributed anew, on the model
  without them, to the secrets it still knows and to ordinary text. What one neuron lets go others
  hold, and what ordinary text lost it leans on the more elsewhere.
* Gradient times activation at the model as it is, all layers in one pass, decides; integrated
  gradients layer by layer, as published, are ``exact_layers``. The first-order pass then chooses
  the layers, and the record says how far the two agree.
* The neuron's signed activation after the gate counts, at the positions that predict the secret;
  points 1..m rather than 0..m-1; columns are zeroed whatever the kind of secret.

Zeroing a neuron is felt by every text that uses it: audit untouched secrets beside the named ones,
for protecting some may expose others. Judge it against the runner's controls, which zero as many
random neurons in the same layers, and against zeroing the top neurons of ``others``, secrets that
are not named.

Fails with :class:`~safeedit.errors.DataError` where there is no secret to find or one is longer
than the context, and with :class:`~safeedit.errors.EditError` where no neuron supports any.

Source: Wu et al., "DEPN: Detecting and Editing Privacy Neurons in Pretrained Language Models",
EMNLP 2023 (arXiv 2310.20138), for BERT.
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

from safeedit import __version__
from safeedit.contracts import (
    BaseParams,
    Control,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset, Item
from safeedit.delta import Columns, Origin, Update, WeightDelta
from safeedit.errors import DataError, EditError, UsageError
from safeedit.methods.attribution import Attribution, Attributor, Measure
from safeedit.methods.tuning import Example
from safeedit.methods.votes import Ranking, rank
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_SINK_TEXTS = 8
"""Texts read to find neurons that write an attention sink; all texts have the same."""

_ANY = 1e-9
"""Share of the greatest sum that puts a neuron in the order: any that is positive."""

_PROSE_START = 8
"""Tokens of a generic text that are read before neurons are attributed to the rest."""


class DepnParams(BaseParams):
    """Parameters of DEPN."""

    layers: Layers = Field("0%-100%", description="where neurons are looked for (published: all)")
    exact_layers: int | None = Field(
        0,
        ge=0,
        description="layers attributed by integrated gradients, chosen by the first-order pass; "
        "null: all of 'layers' (published), 0: none, first-order scores decide",
    )
    points: int = Field(20, ge=1, description="points of the Riemann sum (published)")
    measure: Measure = Field(
        "log_odds",
        description="what is attributed (published: probability); the odds of a token keep their "
        "gradient where it is almost certain, as in a secret known by heart",
    )
    positions: Literal["predicting", "all"] = Field(
        "predicting", description="where neurons are attributed (published code: predicting)"
    )
    threshold: float = Field(
        0.1,
        gt=0,
        le=1,
        description="order votes: share of a secret's greatest attribution that makes its vote "
        "(published code)",
    )
    paraphrases: bool = Field(
        False, description="attribute to every fit phrasing of a prompt, not to the prompt alone"
    )
    known_above: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="mean probability per token (geometric) below which a secret counts as not "
        "known and has no vote",
    )
    generic_weight: float = Field(
        0.0,
        ge=0,
        description="of what neurons do for generic text, subtracted per token; 'spare' divides "
        "by it instead",
    )
    spare: float | None = Field(
        1.0,
        gt=0,
        description="attributions are divided by what zeroing a neuron costs a generic token (to "
        "second order, see Attribution.damage), plus so many times the mean second-order cost; "
        "null: not",
    )
    sinks: float | None = Field(
        10.0,
        gt=0,
        description="neurons stay that write to a text's first token so many times what their "
        "layer's whole MLP writes to others: attention rests on it (an attention sink), which "
        "attributions do not see; null: none do",
    )
    order: Literal["votes", "gain"] = Field(
        "gain",
        description="votes: by how many secrets a neuron supports, in turn for each kind of "
        "secret (published); gain: by the sum of its attributions",
    )
    round: int | None = Field(
        50,
        ge=1,
        description="neurons taken before the rest is attributed anew, on the model without them "
        "and to the secrets it still knows; null: all by one attribution (published)",
    )
    until: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="mean probability per token (geometric) below which a secret counts as gone "
        "and has no vote in later rounds",
    )
    generic_texts: int = Field(24, ge=1, description="generic texts used at most")
    generic_tokens: int = Field(512, ge=1, description="tokens of each attributed, at most")
    generic_points: int = Field(4, ge=1, description="'points' for generic text, which is not sure")
    others_texts: int = Field(
        24, ge=1, description="of 'others', so many are attributed for the control, at most"
    )
    doses: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (25, 50, 100, 200, 400, 800),
        min_length=1,
        description="numbers of neurons (published: 10 to 500)",
    )


class Depn:
    """See the module's docstring."""

    Params = DepnParams
    summary: ClassVar[str] = "zeroes the MLP neurons that make secrets likely"
    results: ClassVar[str] = "privacy"
    measured: ClassVar[str] = (
        "Twenty memorised records: extraction falls from 1 to 0, exposure above records never "
        "taught from 3.86 to 0.635 bits, perplexity ratio 1.02; records that nobody named go as "
        "well."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "secrets: what comes before one, and the secret as answer", erased=True),
        DataRole("generic", "ordinary text or questions whose neurons stay", required=False),
        DataRole(
            "others",
            "secrets that are not named: zeroing their neurons instead is a control",
            required=False,
            erased=True,
            comparison_only=True,
        ),
    )

    def __init__(self, params: Any) -> None:
        self.params: DepnParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back through half a model, roughly, for ``plan``."""
        secrets = len(data["forget"].phrasings("fit"))
        return secrets * 10 * self.params.points * (self.params.exact_layers or 16)

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Rank neurons; offer to zero the first few or more."""
        params = self.params
        secrets, notes = _secrets(params, model, data["forget"], ctx)
        generic = _generic(params, model, data.get("generic"))
        neurons = _Neurons(params, model, secrets, generic, ctx)
        known = len(neurons.order)
        if not known:
            raise EditError(
                "no neuron makes any of the secrets likelier",
                remedy="choose other 'layers', or lower 'generic_weight'",
            )
        offered = sorted({z for z in params.doses if z <= known})
        doses = offered or [known]
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if dose != int(dose) or not 1 <= dose <= known:
                raise UsageError(
                    f"a dose of {dose:g} is no number of neurons from 1 to {known}, "
                    "which is how many the secrets vote for",
                    field="dose",
                    remedy="choose one of these, or lower 'threshold' for more",
                )
            origin = Origin(
                editor="depn",
                params=params.model_dump(mode="json"),
                data_digest=data["forget"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, neurons.zeroed(int(dose)), origin)

        def controls(dose: float) -> tuple[Control, ...]:
            if data.get("others") is None:
                ctx.warn("depn: without 'others' there is no control with another set's neurons")
                return ()
            unrelated = _Neurons(
                params.model_copy(update={"round": None}),
                model,
                _others(params, model, data, ctx),
                generic,
                ctx,
                neurons.rounds[0].generic,
            )
            count = int(dose)
            shared = len(unrelated.top(count) & neurons.top(count))
            if not len(unrelated.order):
                ctx.warn("depn: no neuron makes the other secrets likelier: no control with them")
                return ()
            delta = WeightDelta(base, unrelated.zeroed(count), Origin(editor="depn", seed=ctx.seed))
            name = f"top {count} neurons of other secrets ({shared} of them the same)"
            return (Control(name, delta),)

        notes |= {"generic_texts": len(generic)} | neurons.notes(doses)
        return Proposal(tuple(map(float, doses)), at, notes, controls)


@dataclass(frozen=True, eq=False)
class _Secrets:
    texts: tuple[Example, ...]
    kinds: tuple[str | None, ...]


def _secrets(
    params: DepnParams, model: ModelHandle, forget: Dataset, ctx: RunContext
) -> tuple[_Secrets, dict[str, Any]]:
    """What is to be found, and how many records were left out and why."""
    engine, template = model.engine, model.engine.codec.resolve(forget.template)
    phrasings = forget.phrasings("fit")
    if not params.paraphrases:
        # An item of a split of its own may have paraphrases alone to fit on.
        bare = {phrasing.item.id for phrasing in phrasings if phrasing.text == phrasing.item.prompt}
        phrasings = tuple(p for p in phrasings if p.text == p.item.prompt or p.item.id not in bare)
    found: list[tuple[Example, str | None]] = []
    for phrasing, prompt in zip(
        phrasings, engine.encode([p.text for p in phrasings], template), strict=True
    ):
        answer = engine.continuation(phrasing.item.answer or "", template)
        if (phrasing.item.answer or "").strip() and prompt and answer:
            found.append((Example(prompt, answer), _kind(phrasing.item)))
    if missing := len(phrasings) - len(found):
        ctx.warn(f"{missing} forget texts have no secret: no answer, or one of no tokens")
    if not found:
        raise DataError("no forget text has a secret", remedy="give each an 'answer'")
    if long := sum(len(text.ids) > engine.context for text, _ in found):
        raise DataError(
            f"{long} secrets are, with their prompts, longer than the model's context of "
            f"{engine.context} tokens",
            remedy="shorten their prompts, or remove them",
        )
    scores = engine.score(
        [text.prompt for text, _ in found],
        [text.answer for text, _ in found],
        progress=ctx.progress,
        description="reading secrets",
    )
    known = [
        pair
        for pair, score in zip(found, scores, strict=True)
        if score.total / len(pair[0].answer) >= math.log(params.known_above or 1e-300)
    ]
    if not known:
        ctx.warn(
            f"the model knows none of the {len(found)} secrets (mean token probability of "
            f"{params.known_above:g} or more): there may be nothing to erase"
        )
    elif len(known) < len(found):
        ctx.warn(f"{len(found) - len(known)} secrets are not known to the model and have no vote")
    used = known or found
    notes = {
        "secrets": len(used),
        "secrets_without_tokens": missing,
        "secrets_not_known": len(found) - len(known),
        "kinds_of_secrets": len({kind for _, kind in used}),
    }
    return _Secrets(tuple(text for text, _ in used), tuple(kind for _, kind in used)), notes


def _others(params: DepnParams, model: ModelHandle, data: EditData, ctx: RunContext) -> _Secrets:
    """A seeded choice of the secrets that are not named, each once."""
    found, _ = _secrets(
        params.model_copy(update={"paraphrases": False}), model, data["others"], ctx
    )
    places = list(range(len(found.texts)))
    random.Random(ctx.seed).shuffle(places)
    chosen = sorted(places[: params.others_texts])
    return _Secrets(tuple(found.texts[i] for i in chosen), tuple(found.kinds[i] for i in chosen))


def _kind(item: Item) -> str | None:
    kind = item.extra.get("type")
    return None if kind is None else str(kind)


def _generic(params: DepnParams, model: ModelHandle, data: Dataset | None) -> tuple[Example, ...]:
    """Ordinary texts: questions with their answers, or the beginnings of prose."""
    if data is None:
        return ()
    engine, found = model.engine, []
    for item in data.items("fit"):
        if item.answer:
            template = engine.codec.resolve(data.template)
            (prompt,) = engine.encode([item.prompt], template)
            answer = engine.continuation(item.answer, template)[: params.generic_tokens]
        else:
            (ids,) = engine.encode([item.prompt], "plain")
            cut = min(_PROSE_START, max(2, len(ids) // 2))
            prompt, answer = ids[:cut], ids[cut : cut + params.generic_tokens]
        if prompt and answer and len(prompt) + len(answer) <= engine.context:
            found.append(Example(prompt, answer))
        if len(found) == params.generic_texts:
            break
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Generic:
    """What neurons do for generic text in one round."""

    first: Attribution
    """First order, over all layers looked at."""
    damage: Tensor
    """``(layers, d_mlp)``, see :meth:`Attribution.damage`."""
    exact: Attribution | None = None
    """In the layers ranked, where those are attributed exactly."""


@dataclass(frozen=True, eq=False)
class _Round:
    """One attribution of some secrets, and the vote that came of it."""

    texts: tuple[Example, ...]
    kinds: tuple[str | None, ...]
    generic: _Generic | None
    first: Attribution
    """First order, over all layers looked at."""
    everywhere: Ranking
    """... and its vote."""
    exact: Attribution | None
    layers: tuple[int, ...]
    """Layers whose neurons ``ranking`` numbers."""
    ranking: Ranking


class _Neurons:
    """The neurons in the order in which to zero them, and how it came about."""

    def __init__(
        self,
        params: DepnParams,
        model: ModelHandle,
        secrets: _Secrets,
        generic: Sequence[Example],
        ctx: RunContext,
        read: _Generic | None = None,
    ) -> None:
        self.params, self.model, self.progress = params, model, ctx.progress
        self.width = model.shape.d_mlp
        self.layers = resolve(params.layers, model.n_layers)
        self._generic_texts = generic
        # Of generic text, its loss: most of its tokens are uncertain, where odds say the same.
        loss: Measure = "probability" if params.measure == "probability" else "log_probability"
        used = generic and (params.generic_weight or params.spare)
        self._generic = self._attributor(generic, loss) if used else None
        self._sinks = self._attention_sinks([text.ids for text in secrets.texts[:_SINK_TEXTS]])
        self._read = read
        """What the untouched model does with generic text, where it is known already."""
        self.rounds: list[_Round] = []
        self.order = self._ordered(secrets)

    def _ordered(self, secrets: _Secrets) -> Tensor:
        """``(k,)`` numbers of neurons over all :attr:`layers`, best first."""
        wanted = max(self.params.doses)
        size = self.params.round or wanted
        chosen: list[int] = []
        fresh: list[int] = []
        while len(chosen) < wanted:
            with self.model.applied(self._delta(torch.tensor(chosen, dtype=torch.long))):
                if chosen:
                    secrets = _still_known(self.params.until, self.model, secrets)
                if not secrets.texts:  # nothing is left to vote: on as the last vote had it
                    chosen += fresh[size : size + wanted - len(chosen)]
                    break
                found = self._attribute(secrets)
            self.rounds.append(found)
            taken = set(chosen)
            fresh = [neuron for neuron in self._numbered(found) if neuron not in taken]
            chosen += fresh[: min(size, wanted - len(chosen))]
            if len(fresh) <= size:
                break
        return torch.tensor(chosen, dtype=torch.long)

    def _attributor(self, texts: Sequence[Example], measure: Measure) -> Attributor:
        return Attributor(self.model, texts, measure=measure, positions=self.params.positions)

    def _attribute(self, secrets: _Secrets) -> _Round:
        """Attribute secrets and generic text to the neurons that are there now."""
        attributor = self._attributor(secrets.texts, self.params.measure)
        first = attributor.first_order(self.layers, self.progress)
        generic = self._read_generic()
        everywhere = self._rank(first, secrets, generic)
        exact, layers, ranking = None, self.layers, everywhere
        if self.params.exact_layers != 0:
            layers = self._promising(everywhere)
            exact = attributor.integrated(layers, self.params.points, self.progress)
            if generic is not None and self._generic is not None and self.params.generic_weight:
                found = self._generic.integrated(
                    layers, self.params.generic_points, self.progress, "attributing generic text"
                )
                generic = replace(generic, exact=found)
            ranking = self._rank(exact, secrets, generic)
        return _Round(
            secrets.texts, secrets.kinds, generic, first, everywhere, exact, layers, ranking
        )

    def _read_generic(self) -> _Generic | None:
        if self._generic is None:
            return None
        if self._read is not None and not self.rounds:
            return replace(self._read, exact=None)
        first = self._generic.first_order(
            self.layers, self.progress, "gradients on generic text", squares=True
        )
        return _Generic(first, first.damage(self._generic_texts).view(len(self.layers), -1))

    def _rank(self, own: Attribution, secrets: _Secrets, generic: _Generic | None) -> Ranking:
        scores = own.per_token(secrets.texts)
        places = [self.layers.index(layer) for layer in own.layers]
        if generic is not None:
            if self.params.generic_weight:
                # Only what helps generic text speaks for a neuron; what harms it is no reason.
                same = generic.exact or Attribution(own.layers, generic.first.scores[:, places])
                mean = same.per_token(self._generic_texts).mean(0).clamp(min=0)
                scores -= self.params.generic_weight * mean
            if self.params.spare is not None:
                scores /= self._costs(generic)[places].flatten()
        scores[:, self._sinks[places].flatten()] = 0
        if self.params.order == "gain":
            return rank(scores.sum(0, keepdim=True), threshold=_ANY)
        return rank(scores, threshold=self.params.threshold, kinds=secrets.kinds)

    def _costs(self, generic: _Generic) -> Tensor:
        """``(layers, d_mlp)`` nats per token that zeroing a neuron is likely to cost, and more."""
        assert self.params.spare is not None
        first = generic.first.per_token(self._generic_texts).mean(0).view_as(generic.damage)
        second = generic.damage / 2
        return (first + second).clamp(min=0) + self.params.spare * second.mean()

    def _attention_sinks(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """``(layers, d_mlp)`` whether a neuron stays, see ``sinks``."""
        sites = self.model.sites("mlp_out", self.layers)
        greatest = torch.zeros(len(sites), self.width)
        if self.params.sinks is None:
            return greatest.bool()
        usual: list[list[Tensor]] = [[] for _ in sites]
        weights = [self.model.weight(site).float() for site in sites]
        for _, captured in self.model.engine.activations(texts, sites):
            for place, (site, weight) in enumerate(zip(sites, weights, strict=True)):
                read = captured[site].float()
                written = (read[0].abs() * weight.norm(dim=0)).cpu()
                greatest[place] = torch.maximum(greatest[place], written)
                usual[place].append((read[1:] @ weight.T).norm(dim=1).cpu())
        medians = torch.stack([torch.cat(lengths).median() for lengths in usual])
        return greatest > self.params.sinks * medians[:, None]

    def _promising(self, everywhere: Ranking) -> tuple[int, ...]:
        """The layers that hold most of what the first-order pass would zero at the top dose."""
        count = self.params.exact_layers
        if count is None or count >= len(self.layers):
            return self.layers
        best = everywhere.order[: max(self.params.doses)]
        held = torch.zeros(len(self.layers), dtype=torch.float64)
        held.index_add_(0, best // self.width, everywhere.shares[best])
        return tuple(sorted(self.layers[i] for i in held.argsort(descending=True)[:count].tolist()))

    def _numbered(self, found: _Round) -> list[int]:
        """A round's order with neurons numbered over all layers."""
        places = torch.tensor([self.layers.index(layer) for layer in found.layers])
        order = found.ranking.order
        numbers: list[int] = (
            places[order // self.width] * self.width + order % self.width
        ).tolist()
        return numbers

    def zeroed(self, count: int) -> dict[str, Update]:
        """Updates that silence the first ``count`` neurons."""
        return dict(self._delta(self.order[:count]).updates)

    def _delta(self, neurons: Tensor) -> WeightDelta:
        updates: dict[str, Update] = {}
        for layer, columns in self._by_layer(neurons).items():
            (site,) = self.model.sites("mlp_out", [layer])
            updates[site.weight] = Columns.zeroed(columns.sort().values, self.model.d_model)
        return WeightDelta(self.model.digest(), updates, Origin(editor="depn"))

    def top(self, count: int) -> frozenset[int]:
        """The first ``count`` neurons."""
        return frozenset(self.order[:count].tolist())

    def _by_layer(self, neurons: Tensor) -> dict[int, Tensor]:
        places = neurons // self.width
        return {
            self.layers[place]: neurons[places == place] % self.width
            for place in places.unique().tolist()
        }

    def notes(self, doses: Sequence[int]) -> dict[str, Any]:
        """For the record; what is told of attributions and votes is the first round's."""
        begun, most = self.rounds[0], max(doses)
        best = begun.ranking.order[:most]
        found: dict[str, Any] = {
            "neurons_voted_for": len(begun.ranking.order),
            "secrets_without_vote": begun.ranking.abstained,
            "secrets_voting_by_round": [len(each.texts) for each in self.rounds],
            "layers_ranked": list(begun.layers),
            "neurons_per_layer": {
                str(layer): len(columns)
                for layer, columns in self._by_layer(self.order[:most]).items()
            },
            # Of what supports a secret in the layers ranked, how much sits in the neurons zeroed.
            "share_of_attribution": {str(z): _share(begun, z) for z in doses},
        }
        if len(best) and self.params.order == "votes":
            found["votes_of_first_and_last"] = [int(begun.ranking.votes[best[i]]) for i in (0, -1)]
        if begun.exact is not None and begun.exact.change is not None:
            found |= self._agreement(begun, doses)
            scale = begun.exact.change.abs().sum()
            found["completeness_gap"] = float(begun.exact.gaps().sum() / scale) if scale else 0.0
        return found

    def _agreement(self, begun: _Round, doses: Sequence[int]) -> dict[str, Any]:
        """How far the first-order pass names the neurons that the exact one names."""
        places = [self.layers.index(layer) for layer in begun.layers]
        secrets = _Secrets(begun.texts, begun.kinds)
        first = Attribution(begun.layers, begun.first.scores[:, places])
        generic = None if begun.generic is None else replace(begun.generic, exact=None)
        ranking = self._rank(first, secrets, generic)
        inside = torch.isin(
            begun.everywhere.order[: max(doses)] // self.width, torch.tensor(places)
        )
        return {
            "agreement_of_first_order": {
                str(z): ranking.agreement(begun.ranking, z) for z in doses
            },
            "first_order_candidates_in_layers_ranked": float(inside.double().mean()),
        }


def _still_known(until: float, model: ModelHandle, secrets: _Secrets) -> _Secrets:
    """The secrets that the model still knows: whose tokens are likelier than ``until``."""
    scores = model.engine.score(
        [text.prompt for text in secrets.texts], [text.answer for text in secrets.texts]
    )
    kept = [
        (text, kind)
        for text, kind, score in zip(secrets.texts, secrets.kinds, scores, strict=True)
        if score.total / len(text.answer) >= math.log(until)
    ]
    return _Secrets(tuple(text for text, _ in kept), tuple(kind for _, kind in kept))


def _share(found: _Round, count: int) -> float:
    scores = (found.exact or found.first).per_token(found.texts).clamp(min=0).sum(0)
    total = float(scores.sum())
    return float(scores[found.ranking.order[:count]].sum()) / total if total else 0.0
