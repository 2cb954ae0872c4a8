"""REMEDI, compiled: what a context says of an entity becomes true of it, in plain weights.

A map from attributes to directions is trained on lessons (:mod:`safeedit.methods.remedi.mapping`).
For each entity to edit ("Anita has a legal office") it gives the direction that, added at the
entity's mentions, makes the model act as if the context had been read. Steering does that at run
time; this editor *compiles* it: the change of one MLP's output matrix that moves what it writes at
the entities' keys by their directions, keys of neighbours and attention sinks not at all, and
ordinary text least (:mod:`safeedit.methods.constrained_least_squares`). All entities are solved
jointly.

What is exported is an ordinary checkpoint, and an approximation: steering acts on every mention,
the checkpoint as far as a mention's key is like those it was solved for. How far that is, is
measured and recorded as the *response*: the share of an entity's shift that a key brings about, on
its own prompts, on phrasings held out, on neighbours (the greatest of any entity's) and on the
sinks (BOS). ``arrived`` is the share that really leaves the block, all norms included.

Doses scale the directions. Fails with :class:`~safeedit.errors.DataError` where an item lacks a
context, an attribute or its subject, with :class:`~safeedit.errors.UsageError` where several layers
are chosen or the last, with :class:`~safeedit.errors.EditError` where training diverges, two
entities contradict each other or neighbours leave nothing to move, and with
:class:`~safeedit.errors.UnsupportedModelError` where a norm follows the MLP.

Source: the map is that of Hernandez et al., arXiv 2304.00740; compiling it is ours, with the solve
of MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safeedit.code import code_digest
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
from safeedit.delta import LowRank, Origin, WeightDelta
from safeedit.errors import DataError, ModelError, UnsupportedModelError, UsageError
from safeedit.methods.constrained_least_squares import Change, Weighted, can_stay
from safeedit.methods.facts.keys import TokenPosition, keys_at, second_moments, subject_spot
from safeedit.methods.facts.settings import CONTEXTS
from safeedit.methods.layer_solve import LayerTarget, SolvedLayer, solve_layers
from safeedit.methods.remedi.examples import (
    AttributeExample,
    attribute_states,
    entity_states,
    lesson,
    opposite,
)
from safeedit.methods.remedi.mapping import Remedi
from safeedit.methods.remedi.training import TrainingConfig, train
from safeedit.methods.scaled import scaled_proposal
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy import DataSpec
from safeedit.policy.layers import Layers, resolve
from safeedit.private import private_folder

_OPENINGS = 3
"""Openings that an entity's key is read after."""

_NOTED = ("missed", "independent_keys", "share_of_ordinary_output")
"""What is recorded of the solve."""


class RemediParams(BaseParams):
    """Parameters of REMEDI."""

    layers: Layers = Field("36%-36%", description="the layer that is read and shifted; one")
    epochs: int = Field(20, ge=1, description="over the lessons, at most (published)")
    learning_rate: float = Field(
        3e-4, gt=0, description="AdamW's (published: 1e-3, for states as they are)"
    )
    ridge: float = Field(
        0.01,
        ge=0,
        description="what ordinary text weighs against missed shifts, in units of the MLP's "
        "width; 0: shifts are reached exactly",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5), min_length=1, description="scales of the shifts, ascending"
    )


class RemediEditor:
    """See the module's docstring."""

    Params = RemediParams
    summary: ClassVar[str] = "gives entities attributes that contexts state, keyed to their names"
    results: ClassVar[str] = "attributes"
    measured: ClassVar[str] = (
        "Twenty-four persons: the stated occupation gains 1.24 nats on a wrong one, 21 of 21 "
        "neighbours stay who they were, perplexity ratio 1.003; what the model says seldom "
        "changes."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole(
            "entities", "who is given what: {subject, context, attribute, prompt, target}",
            erased=True, comparison_only=True,
        ),
        DataRole("neighbours", "prompts about others, who must stay as they are", required=False),
        DataRole(
            "lessons", "what the map is learnt from", required=False,
            default=DataSpec(dataset="attributes", where={"role": "lesson"}, template="plain"),
        ),
        PROSE,
    )  # fmt: skip

    def __init__(self, params: Any) -> None:
        self.params: RemediParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLP of the chosen layer writes with; no bias."""
        return model.tensors("mlp_out", [self._layer(model.n_layers)])

    def _layer(self, n_layers: int) -> int:
        layers = resolve(self.params.layers, n_layers)
        if len(layers) != 1:
            raise UsageError(
                f"{len(layers)} layers were chosen, and the map reads and shifts one",
                field="layers",
                remedy="choose one layer, such as 'layers: 36%-36%'",
            )
        return layers[0]

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back, roughly, for ``plan``."""
        lessons = data["lessons"].counts()["fit"]
        return 2 * lessons * 10 * 3 * self.params.epochs

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Train the map, solve; offer the change in several strengths."""
        params, base = self.params, model.digest()
        if model.architecture.post_mlp_norm:
            raise UnsupportedModelError(
                f"in {model.architecture.family} models a norm follows the MLP: a direction of the "
                "residual stream can't be written by it",
                remedy="steer at run time instead: safeedit remedi steer",
            )
        layer = self._layer(model.n_layers)
        change, site, notes = _Road(params, model, data, ctx, layer).solve()

        updates = {site.weight: LowRank(change.left, change.right)}
        return scaled_proposal("remedi", params, data["entities"], ctx, base, updates, notes)


@dataclass(frozen=True)
class _Entity:
    given: AttributeExample
    spots: tuple[TokenPosition, ...]
    """In the fit phrasings, after each opening."""
    held_out: tuple[TokenPosition, ...]
    """In the validation phrasings."""


class _Road:
    """One proposal on its way."""

    def __init__(
        self, params: RemediParams, model: ModelHandle, data: EditData, ctx: RunContext, layer: int
    ) -> None:
        self.params, self.model, self.data, self.ctx, self.layer = params, model, data, ctx, layer
        (self.site,) = model.sites("mlp_out", [layer])

    def solve(self) -> tuple[Change, Site, dict[str, Any]]:
        """The change at dose 1, of which matrix, and what is to be recorded."""
        entities = self._entities()
        learnt = self._map()
        shifts = learnt(
            attribute_states(self.model, [one.given for one in entities], self.layer)
        ).double()
        ordinary = second_moments(
            self.model, self._prose(), [self.site], self.ctx.cache,
            progress=self.ctx.progress,
        )[self.site]  # fmt: skip
        keys = self._mean_keys([one.spots for one in entities])
        neighbours = self._neighbours()
        near = self._keys(neighbours["fit"])
        new = can_stay(keys, near)
        held = torch.cat([near[:, new], ordinary.sinks], 1)
        (solved,) = solve_layers(
            "remedi",
            self.model,
            [self.site],
            {self.site: ordinary},
            lambda _: LayerTarget(keys, shifts.T, held),
            Weighted.of,
            ridge=self.params.ridge,
            whose="the entities'",
            remedy="keep fewer neighbours, or choose another layer",
        )
        change = solved.change
        notes = {
            "neighbours": len(neighbours["fit"]),
            "neighbours_that_share_a_key": int((~new).sum()),
            "map": dict(learnt.notes),
        } | self._noted(solved, entities, shifts, near, neighbours["validation"])
        if change.missed > 0.5:
            self.ctx.warn(
                f"remedi: {change.missed:.0%} of the wanted shifts are missed: neighbours have "
                "keys like the entities', or 'ridge' is high"
            )
        return change, self.site, notes

    def _noted(
        self,
        solved: SolvedLayer,
        entities: Sequence[_Entity],
        shifts: Tensor,
        near: Tensor,
        held_out: Sequence[TokenPosition],
    ) -> dict[str, Any]:
        """How far the change is what steering does, for the record; ``near`` ``(m, n)`` keys of
        neighbours it was solved with, ``held_out`` mentions of those it was not."""
        change, effect = solved.change, solved.effect(self.model)
        return {
            "exported": "compile: a plain checkpoint, keyed to the entities' names; steering at "
            "run time is a side-car and is not in it",
            "layer": self.layer,
            "entities": len(entities),
            "shift_over_state": self._relative(entities, shifts),
            **{name: effect[name] for name in _NOTED},
            "response": {
                "subject": self._own_response(change, [one.spots for one in entities], shifts),
                "paraphrases": self._own_response(
                    change, [one.held_out for one in entities], shifts
                ),
                "neighbours": _response(change, near, shifts),
                "neighbours_held_out": _response(change, self._keys(held_out), shifts),
                "bos": _response(change, solved.ordinary.sinks, shifts),
            },
            "arrived": self._arrived(change, entities, shifts),
        }

    # Data ---------------------------------------------------------------------------------

    def _entities(self) -> list[_Entity]:
        data = self.data["entities"]
        template = self.model.engine.codec.resolve(data.template)
        texts: dict[str, dict[int, list[str]]] = {"fit": {}, "validation": {}}
        items = {id(item): item for item in data.items("fit")}
        for split in ("fit", "validation"):
            for phrasing in data.phrasings(split):
                texts[split].setdefault(id(phrasing.item), []).append(phrasing.text)
        if not items:
            raise DataError("no entity is left to edit", remedy="give rows of 'split: fit'")
        found, absent = [], 0
        for number, item in items.items():
            given = lesson(item.subject, item.prompt, item.extra)
            openings = CONTEXTS[:_OPENINGS]
            fit = [o.format(text) for text in texts["fit"].get(number, ()) for o in openings]
            spots, others = (
                [
                    subject_spot(self.model, ids, given.subject)
                    for ids in self.model.engine.encode(some, template)
                ]
                for some in (fit, texts["validation"].get(number, []))
            )
            own = tuple(spot for spot in spots if spot is not None)
            if not own:
                raise DataError(
                    f"the subject of item {self.ctx.digest(item.prompt)} does not stand in its "
                    "prompts",
                    field="subject",
                    remedy="write the subject as the prompts do",
                )
            absent += spots.count(None)
            found.append(_Entity(given, own, tuple(s for s in others if s is not None)))
        if absent:
            self.ctx.warn(f"remedi: {absent} phrasings do not mention their subject; left out")
        return found

    def _neighbours(self) -> dict[str, list[TokenPosition]]:
        """Split -> the last mention of each neighbour, in its prompt."""
        data = self.data.get("neighbours")
        if data is None:
            self.ctx.warn("remedi: without 'neighbours' nothing keeps similar names apart")
            return {"fit": [], "validation": []}
        template = self.model.engine.codec.resolve(data.template)
        found: dict[str, list[TokenPosition]] = {"fit": [], "validation": []}
        lost = 0
        for split, spots in found.items():
            items = data.items(split)  # type: ignore[arg-type]
            encoded = self.model.engine.encode([item.prompt for item in items], template)
            for item, ids in zip(items, encoded, strict=True):
                spot = subject_spot(self.model, ids, item.subject) if item.subject else None
                # Without a name, what the prompt ends in stands for it.
                spots.append(spot or TokenPosition(tuple(ids), len(ids) - 1))
                lost += spot is None
        if lost:
            self.ctx.warn(f"remedi: {lost} neighbours name no subject; their last token counts")
        return found

    def _prose(self) -> list[str]:
        data = self.data["prose"]
        return [item.prompt for item in data.items("fit")]

    # The map ------------------------------------------------------------------------------

    def _map(self) -> Remedi:
        """Trained here, or kept in the run's cache from the same lessons on the same weights."""
        data = self.data["lessons"]
        template = self.model.engine.codec.resolve(data.template)
        lessons = [
            each
            for item in data.items("fit")
            for one in (lesson(item.subject, item.prompt, item.extra),)
            for each in (one, opposite(one, item.extra))
            if each is not None
        ]
        params = self.params
        schooling = TrainingConfig(
            epochs=params.epochs, learning_rate=params.learning_rate, seed=self.ctx.seed
        )
        made_of = json.dumps(
            [code_digest(__name__), self.model.digest(), data.digest, self.layer, template,
             asdict(schooling)]
        )  # fmt: skip
        name = hashlib.sha256(made_of.encode()).hexdigest()[:32]
        file = self.ctx.cache / "remedi" / f"{name}.safetensors"
        with suppress(ModelError):  # not there yet, or cut short: it is made again
            return Remedi.load(file)
        learnt = train(
            self.model, lessons, self.layer, template, schooling, progress=self.ctx.progress
        )
        with suppress(OSError):  # a cache that can't be written costs time, nothing else
            private_folder(file.parent)
            learnt.save(file)
        return learnt

    # Keys and what moves them -------------------------------------------------------------

    def _keys(self, spots: Sequence[TokenPosition]) -> Tensor:
        return keys_at(self.model, spots, [self.site], self.ctx.progress)[self.site]

    def _mean_keys(self, spots: Sequence[Sequence[TokenPosition]]) -> Tensor:
        """``(m, entities)``."""
        keys = self._keys([spot for some in spots for spot in some])
        parts = keys.split([len(some) for some in spots], 1)
        return torch.stack([part.mean(1) for part in parts], 1)

    def _own_response(
        self, change: Change, spots: Sequence[Sequence[TokenPosition]], shifts: Tensor
    ) -> dict[str, float] | None:
        """Share of its own shift that each key brings about; None without keys."""
        keys = self._keys([spot for some in spots for spot in some])
        if not keys.shape[1]:
            return None
        owner = torch.tensor([n for n, some in enumerate(spots) for _ in some])
        own = shifts[owner]
        found = (change.on(keys).T * own).sum(1) / own.square().sum(1).clamp(min=1e-300)
        return {"mean": float(found.mean()), "least": float(found.min())}

    def _arrived(
        self, change: Change, entities: Sequence[_Entity], shifts: Tensor
    ) -> dict[str, float]:
        """Share of each shift that leaves the block at the entity."""
        spots = [spot for one in entities for spot in one.spots]
        owner = torch.tensor([n for n, one in enumerate(entities) for _ in one.spots])
        before = entity_states(self.model, spots, self.layer)
        delta = WeightDelta(
            self.model.digest(),
            {self.site.weight: LowRank(change.left, change.right)},
            Origin(editor="remedi"),
        )
        with self.model.applied(delta):
            moved = (entity_states(self.model, spots, self.layer) - before).double()
        own = shifts[owner]
        found = (moved * own).sum(1) / own.square().sum(1).clamp(min=1e-300)
        return {"mean": float(found.mean()), "least": float(found.min())}

    def _relative(self, entities: Sequence[_Entity], shifts: Tensor) -> float:
        """Mean length of a shift over that of the state it is added to."""
        states = entity_states(self.model, [one.spots[0] for one in entities], self.layer)
        return float((shifts.norm(dim=1) / states.double().norm(dim=1)).mean())


def _response(change: Change, keys: Tensor, shifts: Tensor) -> dict[str, float] | None:
    """Over keys that are to stay: how much of any entity's shift they bring about, at most."""
    if not keys.shape[1]:
        return None
    share = change.on(keys).T @ shifts.T / shifts.square().sum(1).clamp(min=1e-300)
    found = share.abs().max(1).values
    return {"mean": float(found.mean()), "most": float(found.max())}
