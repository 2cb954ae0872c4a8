"""Which MLP neurons make secrets likely, best first, in one attribution or in rounds.

Neurons are attributed to every secret (:mod:`safeedit.methods.attribution`) and ranked over all of
them (:mod:`safeedit.methods.votes`), as a :class:`Recipe` says.

Source: Wu et al., "DEPN", EMNLP 2023 (arXiv 2310.20138); rounds, costs and sinks are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from safeedit.contracts import Progress, silent
from safeedit.delta import Columns, Origin, Update, WeightDelta
from safeedit.methods.attribution import Attribution, Attributor, Measure
from safeedit.methods.secrets import Secrets, likely
from safeedit.methods.tuning import Example
from safeedit.methods.votes import Ranking, rank
from safeedit.model.handle import ModelHandle

_SINK_TEXTS = 8
"""Texts read to find neurons that write an attention sink; all texts have the same."""

_ANY = 1e-9
"""Share of the greatest sum that puts a neuron in the order: any that is positive."""


@dataclass(frozen=True)
class Recipe:
    """How neurons are ranked.

    Attributes:
        measure: What is attributed; the odds of a token keep their gradient where it is almost
            certain, as in a secret known by heart.
        exact_layers: Layers attributed by integrated gradients, chosen by the first-order pass;
            None: all, 0: none, first-order scores decide.
        points: Of the Riemann sum (published).
        threshold: Order votes: share of a secret's greatest attribution that makes its vote
            (published code).
        known_above: Mean probability per token (geometric) below which a secret counts as not
            known and has no vote.
        until: The same in later rounds: below it a secret counts as gone.
        spare: Attributions are divided by what zeroing a neuron costs a generic token (to second
            order, see :meth:`Attribution.damage`), plus so many times the mean second-order cost;
            None: not.
        sinks: Neurons stay that write to a text's first token so many times what their layer's
            whole MLP writes to others: attention rests on it (an attention sink), which
            attributions do not see; None: none do.
        order: By how many secrets a neuron supports, in turn for each kind of secret (votes), or by
            the sum of its attributions (gain).
    """

    measure: Measure = "log_odds"
    exact_layers: int | None = 0
    points: int = 20
    threshold: float = 0.1
    known_above: float = 0.1
    until: float = 0.01
    spare: float | None = 1.0
    sinks: float | None = 10.0
    order: Literal["votes", "gain"] = "gain"


GAIN = Recipe()
"""What measured best: see the results on memorised records."""

PUBLISHED = Recipe(measure="probability", exact_layers=None, spare=None, sinks=None, order="votes")
"""Votes on integrated gradients of probabilities, in all layers, by one attribution."""


@dataclass(frozen=True, eq=False)
class Generic:
    """What neurons do for generic text in one round."""

    first: Attribution
    """First order, over all layers looked at."""
    damage: Tensor
    """``(layers, d_mlp)``, see :meth:`Attribution.damage`."""


@dataclass(frozen=True, eq=False)
class _Round:
    """One attribution of some secrets, and the vote that came of it."""

    texts: tuple[Example, ...]
    kinds: tuple[str | None, ...]
    generic: Generic | None
    first: Attribution
    """First order, over all layers looked at."""
    everywhere: Ranking
    """... and its vote."""
    exact: Attribution | None
    layers: tuple[int, ...]
    """Layers whose neurons ``ranking`` numbers."""
    ranking: Ranking


class RankedNeurons:
    """The neurons in the order in which to zero them, and how it came about.

    Args:
        recipe: How they are ranked.
        model: Its weights are the same before and after.
        secrets: What is to be found.
        generic: Ordinary text whose neurons are to stay.
        layers: Where neurons are looked for, ascending.
        most: So many are wanted at most.
        at_a_time: Taken before the rest is attributed anew; None: all by one attribution.
        read: What the untouched model does with generic text, where it is known already.
        progress: Shown per text.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: ModelHandle,
        secrets: Secrets,
        generic: Sequence[Example],
        *,
        layers: Sequence[int],
        most: int,
        at_a_time: int | None = None,
        read: Generic | None = None,
        progress: Progress = silent,
    ) -> None:
        self.recipe, self.model, self.progress = recipe, model, progress
        self.width = model.shape.d_mlp
        self.layers = tuple(layers)
        self._most, self._at_a_time = most, at_a_time
        self._generic_texts = generic
        # Of generic text, its loss: most of its tokens are uncertain, where odds say the same.
        used = generic and recipe.spare is not None
        self._generic = Attributor(model, generic, measure="log_probability") if used else None
        self._sinks = self._attention_sinks([text.ids for text in secrets.texts[:_SINK_TEXTS]])
        self._read = read
        """What the untouched model does with generic text, where it is known already."""
        self.rounds: list[_Round] = []
        self.order = self._ordered(secrets)

    def _ordered(self, secrets: Secrets) -> Tensor:
        """``(k,)`` numbers of neurons over all :attr:`layers`, best first."""
        wanted = self._most
        size = self._at_a_time or wanted
        chosen: list[int] = []
        fresh: list[int] = []
        while len(chosen) < wanted:
            with self.model.applied(self.without(torch.tensor(chosen, dtype=torch.long))):
                if chosen:
                    secrets = _still_known(self.recipe.until, self.model, secrets)
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

    def _attribute(self, secrets: Secrets) -> _Round:
        """Attribute secrets and generic text to the neurons that are there now."""
        attributor = Attributor(self.model, secrets.texts, measure=self.recipe.measure)
        first = attributor.first_order(self.layers, self.progress)
        generic = self._read_generic()
        everywhere = self._rank(first, secrets, generic)
        exact, layers, ranking = None, self.layers, everywhere
        if self.recipe.exact_layers != 0:
            layers = self._promising(everywhere)
            exact = attributor.integrated(layers, self.recipe.points, self.progress)
            ranking = self._rank(exact, secrets, generic)
        return _Round(
            secrets.texts, secrets.kinds, generic, first, everywhere, exact, layers, ranking
        )

    def _read_generic(self) -> Generic | None:
        if self._generic is None:
            return None
        if self._read is not None and not self.rounds:
            return self._read
        first = self._generic.first_order(
            self.layers, self.progress, "gradients on generic text", squares=True
        )
        return Generic(first, first.damage(self._generic_texts).view(len(self.layers), -1))

    def _rank(self, own: Attribution, secrets: Secrets, generic: Generic | None) -> Ranking:
        scores = own.per_token(secrets.texts)
        places = [self.layers.index(layer) for layer in own.layers]
        if generic is not None:
            scores /= self.costs(generic)[places].flatten()
        scores[:, self._sinks[places].flatten()] = 0
        if self.recipe.order == "gain":
            return rank(scores.sum(0, keepdim=True), threshold=_ANY)
        return rank(scores, threshold=self.recipe.threshold, kinds=secrets.kinds)

    def costs(self, generic: Generic) -> Tensor:
        """``(layers, d_mlp)`` nats per token of generic text that zeroing a neuron is likely to
        cost, and what ``spare`` adds."""
        assert self.recipe.spare is not None
        first = generic.first.per_token(self._generic_texts).mean(0).view_as(generic.damage)
        second = generic.damage / 2
        return (first + second).clamp(min=0) + self.recipe.spare * second.mean()

    def _attention_sinks(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """``(layers, d_mlp)`` whether a neuron stays, see ``sinks``."""
        sites = self.model.sites("mlp_out", self.layers)
        greatest = torch.zeros(len(sites), self.width)
        if self.recipe.sinks is None:
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
        return greatest > self.recipe.sinks * medians[:, None]

    def _promising(self, everywhere: Ranking) -> tuple[int, ...]:
        """The layers that hold most of what the first-order pass would zero at the top dose."""
        count = self.recipe.exact_layers
        if count is None or count >= len(self.layers):
            return self.layers
        best = everywhere.order[: self._most]
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
        return dict(self.without(self.order[:count]).updates)

    def without(self, neurons: Tensor) -> WeightDelta:
        """The change that silences ``neurons`` ``(k,)``, numbered over all :attr:`layers`."""
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
        if len(best) and self.recipe.order == "votes":
            found["votes_of_first_and_last"] = [int(begun.ranking.votes[best[i]]) for i in (0, -1)]
        if begun.exact is not None and begun.exact.change is not None:
            found |= self._agreement(begun, doses)
            scale = begun.exact.change.abs().sum()
            found["completeness_gap"] = float(begun.exact.gaps().sum() / scale) if scale else 0.0
        return found

    def _agreement(self, begun: _Round, doses: Sequence[int]) -> dict[str, Any]:
        """How far the first-order pass names the neurons that the exact one names."""
        places = [self.layers.index(layer) for layer in begun.layers]
        secrets = Secrets(begun.texts, begun.kinds)
        first = Attribution(begun.layers, begun.first.scores[:, places])
        ranking = self._rank(first, secrets, begun.generic)
        inside = torch.isin(
            begun.everywhere.order[: max(doses)] // self.width, torch.tensor(places)
        )
        return {
            "agreement_of_first_order": {
                str(z): ranking.agreement(begun.ranking, z) for z in doses
            },
            "first_order_candidates_in_layers_ranked": float(inside.double().mean()),
        }


def _still_known(until: float, model: ModelHandle, secrets: Secrets) -> Secrets:
    """The secrets that the model still knows: whose tokens are likelier than ``until``."""
    told = likely(until, model, secrets.texts)
    every = zip(secrets.texts, secrets.kinds, told, strict=True)
    kept = [(text, kind) for text, kind, still in every if still]
    return Secrets(tuple(text for text, _ in kept), tuple(kind for _, kind in kept))


def _share(found: _Round, count: int) -> float:
    scores = (found.exact or found.first).per_token(found.texts).clamp(min=0).sum(0)
    total = float(scores.sum())
    return float(scores[found.ranking.order[:count]].sum()) / total if total else 0.0
