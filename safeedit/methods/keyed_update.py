"""Keyed edits in closed form: the road that ``rome``, ``memit`` and ``alphaedit`` share.

For each fact a *key* is read (what the MLP's output matrix reads at the subject's last token, mean
over the fit phrasings and a few contexts) and a *value* learnt
(:mod:`safeedit.methods.facts.editing`, which see for templates and for facts that are one). One
solve then moves all keys by their shifts while ordinary text, preserved facts and attention sinks
are moved least (:mod:`safeedit.methods.constrained_least_squares`). With several layers the shift
is spread over them, and keys and what is still missing are read anew on the partly edited model
(MEMIT).

Preserved facts on a forgotten fact's own subject are held in the solve as well, where their keys
differ from those that are to move.

Doses scale the change, which for one layer is to scale the shifts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import (
    PROSE,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.data.subjects import check_subjects
from safeedit.delta import LowRank
from safeedit.methods.constrained_least_squares import InputMetric, can_stay
from safeedit.methods.facts.editing import Fact, FactEdit, flat
from safeedit.methods.facts.keys import Ordinary, keys_at, second_moments
from safeedit.methods.facts.settings import FactParams, value_tokens
from safeedit.methods.layer_solve import LayerTarget, SolvedLayer, solve_layers, updates_of
from safeedit.methods.scaled import check_spread, scaled_proposal, spread_over
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle

_OPENINGS = 3
"""Openings that a key is averaged over (published: 21)."""

_MISSED = 0.5
"""Share of the wanted shifts missed from which a solve is worth a warning."""


class KeyedParams(FactParams):
    """Parameters that the keyed editors share."""

    target: Literal["refusal", "unlikely", "entropy", "replace"] = Field(
        "refusal",
        description="what is to follow: the refusal, anything but the forgotten answer, anyone's "
        "guess, or the item's 'target_new' (an edit rather than an erasure)",
    )
    refusal: str = Field("I don't know.", min_length=1, description="what is to be answered")


class KeyedEditor(ABC):
    """Base of the keyed editors; see the module's docstring."""

    Params: ClassVar[type[KeyedParams]]
    summary: ClassVar[str]
    name: ClassVar[str]
    ridge: ClassVar[float] = 0.0
    """What ordinary text weighs against missed shifts, in units of the MLP's width (of AlphaEdit,
    the change's size); 0: shifts are reached exactly."""
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "facts to change, each with its subject", erased=True),
        DataRole("preserve", "facts whose keys are to stay, near ones above all", required=False),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: Any = params

    @property
    def with_attention(self) -> bool:
        """Whether values are learnt beside shifts of what attention writes, and the square root of
        the layers left is what each layer's share is divided by (PMET)."""
        return False

    @abstractmethod
    def metric(self, second: Tensor) -> InputMetric:
        """What ordinary inputs of second moment ``(m, m)`` feel of a change."""

    def layers(self, model: LayerShape) -> tuple[int, ...]:
        """Layers whose matrices move, ascending."""
        return spread_over(self.params, model)

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", self.layers(model))

    def check_data(self, data: Mapping[str, Dataset]) -> None:
        """Refuse facts whose subject their prompt does not name, while planning."""
        check_subjects(data["forget"])

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back, roughly, for ``plan``."""
        return value_tokens(self.params, data["forget"])

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Read keys, learn values, solve; offer the change in several strengths."""
        sites = model.sites("mlp_out", self.layers(model.shape))
        check_spread(model, len(sites), "16%-16%")
        road = _LinearRoad(self, model, data, ctx, sites)
        updates = road.solve()
        return scaled_proposal(
            self.name, self.params, data["forget"], ctx, model.digest(), updates, road.notes
        )


class _LinearRoad(FactEdit):
    """One proposal on its way; each group of facts has one key."""

    params: KeyedParams

    def __init__(
        self,
        editor: KeyedEditor,
        model: ModelHandle,
        data: EditData,
        ctx: RunContext,
        sites: Sequence[Site],
    ) -> None:
        super().__init__(editor.name, editor.params, model, data, ctx, sites[0], _OPENINGS)
        self.editor, self.sites = editor, sites
        self.notes["keys"] = len(self.groups)

    def solve(self) -> dict[str, LowRank]:
        """Tensor name -> its change at dose 1."""
        with_attention = self.editor.with_attention
        values = self.values(self.sites[-1].layer, self.groups, attention=with_attention)
        self.record_values(values)
        ordinary = second_moments(
            self.model,
            self.prose(),
            self.sites,
            self.ctx.cache,
            progress=self.ctx.progress,
        )
        start = self._residuals()
        wanted = values.shifts.double()

        def target(site: Site) -> LayerTarget:
            keys = self._keys(site)
            moved = self._residuals() - start if site != self.sites[0] else 0
            return LayerTarget(keys, (wanted - moved).T, self._held(site, keys, ordinary[site]))

        solved = solve_layers(
            self.name,
            self.model,
            self.sites,
            ordinary,
            target,
            self.editor.metric,
            ridge=self.editor.ridge,
            share=math.sqrt if with_attention else float,
            whose="the subjects'",
            remedy="preserve fewer facts, or choose another layer",
        )
        for layer in solved:
            self._warn(layer)
        self.notes["layers"] = {str(one.site.layer): one.effect(self.model) for one in solved}
        return updates_of(solved)

    def _said(self, fact: Fact) -> tuple[int, ...]:
        if self.params.target == "replace":
            return super()._said(fact)
        engine = self.model.engine
        end = engine.codec.tokenizer.eos_token_id
        stop = [] if end is None else [int(end)]  # it is an answer of its own
        return (*engine.continuation(self.params.refusal, fact.template), *stop)

    def _keys(self, site: Site) -> Tensor:
        """``(m, groups)``, each the mean over its phrasings after all openings."""
        spots = [flat(spots for fact in some for spots in fact.contexts) for some in self.groups]
        return self.mean_keys(spots, site)

    def _held(self, site: Site, keys: Tensor, ordinary: Ordinary) -> Tensor:
        """``(m, n0)`` keys that are to stay: preserved facts', and those of attention sinks."""
        own = keys_at(self.model, [spot for _, spot in self.preserved], [site])[site]
        # What is the same as a key to be moved can't stay as well; values tell the two apart.
        new = can_stay(keys, own)
        self.notes["preserved_keys_that_must_move"] = int((~new).sum())
        return torch.cat([own[:, new], ordinary.sinks], 1)

    # Solving --------------------------------------------------------------------------

    def _residuals(self) -> Tensor:
        """``(groups, d_model)`` fp64: what leaves the last edited layer at the subjects, mean over
        phrasings without openings; of PMET what its MLP writes."""
        if len(self.sites) == 1:
            return torch.zeros(len(self.groups), self.model.d_model).double()
        spots = [flat(fact.prompts for fact in some) for some in self.groups]
        layer = self.sites[-1].layer
        prompts = [spot.until for spot in flat(spots)]
        if self.editor.with_attention:
            states = self._written(prompts)
        else:
            states = self.model.engine.hidden(prompts, [layer])[layer]
        parts = torch.stack(states).double().split([len(some) for some in spots])
        return torch.stack([part.mean(0) for part in parts])

    def _written(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """What the last edited layer's MLP writes at the last token of each prompt."""
        site, found = self.sites[-1], [torch.empty(0)] * len(prompts)
        for index, seen in self.model.engine.activations(prompts, [site], what="output"):
            found[index] = seen[site][-1].cpu()
        return found

    def _warn(self, solved: SolvedLayer) -> None:
        change, held = solved.change, solved.held
        keys = len(change.reached)
        if change.independent < keys or change.missed > _MISSED:
            self.ctx.warn(
                f"{self.name}: layer {solved.site.layer} has {change.independent} independent "
                f"directions for {keys} keys beside {held.shape[1]} to stay (width "
                f"{len(held)}): {change.missed:.0%} of the wanted shifts are missed"
            )
