"""Keyed edits in closed form: the road that ``rome``, ``memit`` and ``alphaedit`` share.

For each fact a *key* is read (what the MLP's output matrix reads at the subject's last token, mean
over the fit phrasings and a few contexts) and a *value* learnt (the shift of what the MLP writes
there that meets the target; :mod:`safeedit.model.values`). One solve then moves all keys by their
shifts while ordinary text, preserved facts and attention sinks are moved least
(:mod:`safeedit.numerics.least_change`). With several layers the shift is spread over them, and keys
and what is still missing are read anew on the partly edited model (MEMIT).

With ``key: each`` a fact has a key for each phrasing instead of their mean, all moved by its one
shift; a phrasing in which facts can't be told apart (the subject begins it) moves by their mean.

A fact's key depends on the template, so each fact has a key and a value in each of ``templates``.
Facts whose keys are one (same subject, same words before it) share one value, learnt for all of
them. Preserved facts on the same subject are held by divergence while the value is learnt, and in
the solve as well, where their keys differ from those that are to move.

Doses scale the change, which for one layer is to scale the shifts.
"""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from torch import Tensor

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset, Item
from safeedit.data.loading import load_dataset
from safeedit.data.splitting import normalise_prompt
from safeedit.data.subjects import shared_span
from safeedit.delta import LowRank
from safeedit.editors._scaled import check_spread, scaled_proposal, so_far
from safeedit.errors import DataError, EditError, UsageError
from safeedit.layers import Layers, resolve
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.model.keys import Ordinary, Spot, keys_at, second_moments, subject_spot
from safeedit.model.least_values import least_values
from safeedit.model.tracing import answer_probability, told_answers, trace, usual_window
from safeedit.model.values import Aim, Avoid, Keep, Row, Say, Spread, Unit, Values, learn_values
from safeedit.numerics.least_change import Change, Metric, least_change, same_keys
from safeedit.policy import DataSpec

CONTEXTS = (
    "{}",
    "Yesterday I read about this. {}",
    "Now to something else. {}",
    "It was late, and they were still talking. {}",
    "Let me think about that for a moment. {}",
    "There is one more point on the list: {}",
)
"""What prompts are read after, beside nothing, for their keys; our own."""

_ONE_KEY = 1e-3
"""Relative distance within which two facts' keys are one."""

_TELLING = 24
"""Tokens of the model's own answer in which the forgotten one is looked for."""

_KEPT_ROWS = 4
"""Preserved facts on a unit's own subject that its value is held to, at most."""

_TRACED, _DRAWS = 20, 3
"""Facts traced, at most, and draws of the noise."""

_LEAST_STEPS = 12
"""Steps to a least value at most; a few do."""

_MISSED = 0.5
"""Share of the wanted shifts missed from which a solve is worth a warning."""


_SHARE = r"^(100|\d{1,2}(\.\d+)?)%$"


def _one_layer(value: Any) -> Any:
    if re.match(_SHARE, value) if isinstance(value, str) else type(value) is int and value >= 0:
        return value
    raise ValueError("should be a layer such as 18, or a share of the depth such as 60%")


LensLayer = Annotated[
    int | str,
    BeforeValidator(_one_layer),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SHARE}]}
    ),
]
"""A layer, or a share of the depth."""


class KeyedParams(BaseParams):
    """Parameters that the keyed editors share."""

    layers: Layers = Field("16%-16%", description="whose MLP outputs move")
    target: Literal["refusal", "unlikely", "entropy", "replace"] = Field(
        "refusal",
        description="what is to follow: the refusal, anything but the forgotten answer, anyone's "
        "guess, or the item's 'target_new' (an edit rather than an erasure)",
    )
    refusal: str = Field("I don't know.", min_length=1, description="what is to be answered")
    floor: float | None = Field(
        -8.0,
        lt=0,
        description="unlikely: log-probability to get below, nats; null: -log(1-p) instead "
        "(arXiv 2309.17410)",
    )
    entropy: float = Field(
        0.7, gt=0, le=1, description="entropy: share of the greatest possible entropy aimed at"
    )
    lens: tuple[LensLayer, ...] = Field(
        (),
        description="entropy: layers such as 18 or 60%, after the edited ones, whose residual "
        "stream is to be anyone's guess too when read as the last one is (arXiv 2309.17410)",
    )
    templates: tuple[Literal["data", "chat", "plain"], ...] = Field(
        ("data",),
        min_length=1,
        description="how facts are put; a key differs between templates, so [chat, plain] edits "
        "both in one solve; data: as the data says",
    )
    key: Literal["mean", "each"] = Field(
        "mean",
        description="mean: a fact has one key, over its fit phrasings (published); each: one for "
        "each of them, all moved by the fact's one shift",
    )
    contexts: int = Field(
        3, ge=1, le=len(CONTEXTS), description="openings a key is averaged over (published: 21)"
    )
    phrasings: int = Field(
        3, ge=1, description="fit phrasings of each fact that its value is learnt from, at most"
    )
    values: Literal["least", "adam"] = Field(
        "least",
        description="how shifts are found: the shortest that meet the target (unlikely with a "
        "floor; others are by Adam all the same), or by Adam (published)",
    )
    rank: int = Field(
        20,
        ge=0,
        description="values: least: the forgotten answer is to come after so many others as well",
    )
    steps: int = Field(25, ge=1, description="Adam steps at most for a value (published)")
    learning_rate: float = Field(
        0.1, gt=0, description="length of a first step, as a share of the MLP's output"
    )
    max_norm: float = Field(
        1.5,
        gt=0,
        description="greatest length of a shift, as a share of the MLP's output (published: 4)",
    )
    divergence: float = Field(
        0.0625, ge=0, description="weight of KL(before || now) at what is to stay (published)"
    )
    decay: float = Field(
        0.05, ge=0, description="nats for a shift as long as the output, growing with its square"
    )
    stop: float = Field(
        0.1,
        ge=0,
        description="a value is done once its loss on every phrasing is at most this, nats",
    )
    ridge: float = Field(
        0.0,
        ge=0,
        description="what ordinary text weighs against missed shifts, in units of the MLP's width; "
        "0: shifts are reached exactly",
    )
    hold: float | None = Field(
        None,
        ge=0,
        description="what a preserved key's move weighs against a missed shift; null: their span "
        "does not move at all",
    )
    prose_window: int = Field(128, ge=8, description="tokens of ordinary text read at a time")
    locate: Literal["no", "measure"] = Field(
        "no",
        description="measure: also record what each layer's MLPs bring back of the answers under "
        "noise on the subjects (causal tracing), whichever layers are edited",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25), min_length=1, description="scales of the change, ascending"
    )

    @model_validator(mode="after")
    def _check_lens(self) -> KeyedParams:
        if self.lens and self.target != "entropy":
            raise ValueError("'lens' is for 'target: entropy'")
        return self


def _method(params: KeyedParams) -> Literal["least", "adam"]:
    """How values are found: least ones are of answers that are to be unlikely alone."""
    least = params.target == "unlikely" and params.floor is not None
    return "least" if params.values == "least" and least else "adam"


def _steps(params: KeyedParams) -> int:
    """Steps to a value at most."""
    return min(params.steps, _LEAST_STEPS) if _method(params) == "least" else params.steps


class KeyedEditor(ABC):
    """Base of the keyed editors; see the module's docstring."""

    Params: ClassVar[type[KeyedParams]]
    summary: ClassVar[str]
    name: ClassVar[str]
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "facts to change, each with its subject", erased=True),
        DataRole("preserve", "facts whose keys are to stay, near ones above all", required=False),
        DataRole("prose", "ordinary text to leave alone (default: built in)", required=False),
    )

    def __init__(self, params: Any) -> None:
        self.params: Any = params

    @abstractmethod
    def metric(self, second: Tensor) -> Metric:
        """What ordinary inputs of second moment ``(m, m)`` feel of a change."""

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """Layers whose matrices move, ascending."""
        return resolve(self.params.layers, n_layers)

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", self.layers(model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back, roughly, for ``plan``."""
        facts = len(data["forget"].items("fit")) * len(self.params.templates)
        return facts * self.params.phrasings * 15 * _steps(self.params)

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Read keys, learn values, solve; offer the change in several strengths."""
        sites = model.sites("mlp_out", self.layers(model.n_layers))
        check_spread(model, len(sites), "16%-16%")
        road = _Road(self, model, data, ctx, sites)
        updates = road.solve()
        return scaled_proposal(
            self.name, self.params, data["forget"], ctx, model.digest(), updates, road.notes
        )


@dataclass(frozen=True)
class _Fact:
    """One fact in one template."""

    item: Item
    subject: str
    template: Literal["chat", "plain"]
    prompts: tuple[Spot, ...]
    """Of its fit phrasings, as they are asked."""
    contexts: tuple[tuple[Spot, ...], ...]
    """Where its key is read: the same, each after all openings."""


@dataclass(frozen=True)
class _Key:
    """One column of the solve: a key, read as a mean over spots, and whose it is."""

    groups: tuple[int, ...]
    contexts: tuple[Spot, ...]
    prompts: tuple[Spot, ...]
    """The same places without openings: there what has arrived is read."""


class _Road:
    """One proposal on its way."""

    def __init__(
        self,
        editor: KeyedEditor,
        model: ModelHandle,
        data: EditData,
        ctx: RunContext,
        sites: Sequence[Site],
    ) -> None:
        self.editor, self.params = editor, editor.params
        self.model, self.data, self.ctx, self.sites = model, data, ctx, sites
        self.notes: dict[str, Any] = {}
        self.preserved = self._preserved()
        facts = self._facts()
        self.groups = self._grouped(facts)
        """Facts that share a key, hence a value."""
        self.keys = self._columns()
        self.shares = torch.zeros(len(self.keys), len(self.groups), dtype=torch.float64)
        """``(keys, groups)``: a key moves by the mean of the shifts of those it belongs to."""
        for row, key in zip(self.shares, self.keys, strict=True):
            row[list(key.groups)] = 1 / len(key.groups)
        self.notes |= {
            "facts": len(data["forget"].items("fit")),
            "keys": len(self.keys),
            "preserved_facts": len(self.preserved),
        }
        if self.params.locate == "measure":
            self._locate(facts)

    def solve(self) -> dict[str, LowRank]:
        """Tensor name -> its change at dose 1."""
        values = self._values()
        ordinary = second_moments(
            self.model,
            self._prose(),
            self.sites,
            self.ctx.cache,
            window=self.params.prose_window,
            progress=self.ctx.progress,
        )
        base, start = self.model.digest(), self._residuals()
        updates: dict[str, LowRank] = {}
        per_layer: dict[str, dict[str, Any]] = {}
        for done, site in enumerate(self.sites):
            delta = so_far(self.editor.name, base, updates)
            with self.model.applied(delta):
                keys = self._read(self.keys, site)
                missing = self.shares @ values.shifts.double()
                if updates:
                    missing = missing - (self._residuals() - start)
                held = self._held(site, keys, ordinary[site])
            wanted = missing.T / (len(self.sites) - done)
            change = least_change(
                keys,
                wanted,
                self.editor.metric(ordinary[site].second),
                ridge=self.params.ridge * self.model.shape.d_mlp,
                preserve=held,
                hold=math.inf if self.params.hold is None else self.params.hold,
            )
            self._warn(change, site, held)
            updates[site.weight] = LowRank(change.left, change.right)
            per_layer[str(site.layer)] = self._effect(change, site, held, ordinary[site])
        self.notes["layers"] = per_layer
        return updates

    # Facts ----------------------------------------------------------------------------

    def _facts(self) -> list[_Fact]:
        forget, found = self.data["forget"], list[_Fact]()
        if not forget.phrasings("fit"):
            raise DataError(
                "no forget prompt is left to fit on", remedy="give rows of 'split: fit'"
            )
        texts: dict[int, tuple[Item, list[str]]] = {}
        for phrasing in forget.phrasings("fit"):
            texts.setdefault(id(phrasing.item), (phrasing.item, []))[1].append(phrasing.text)
        self._check_targets([item for item, _ in texts.values()])
        absent = 0
        for item, wordings in texts.values():
            subject = self._subject(item, wordings)
            for template in self._templates(forget):
                fact = self._fact(item, subject, wordings, template)
                absent += len(wordings) - len(fact.prompts)
                found.append(fact)
        if absent:
            self.ctx.warn(
                f"{self.editor.name}: {absent} other phrasings of forget items do not mention "
                "their subject and were left out"
            )
        self.notes["phrasings_without_subject"] = absent
        return found

    def _templates(self, data: Dataset) -> list[Literal["chat", "plain"]]:
        codec = self.model.engine.codec
        named = [
            codec.resolve(data.template if template == "data" else template)
            for template in self.params.templates
        ]
        return list(dict.fromkeys(named))

    def _subject(self, item: Item, wordings: Sequence[str]) -> str:
        subject = (item.subject or "").strip() or shared_span(wordings)
        if not subject:
            raise DataError(
                f"forget item {self.ctx.digest(item.prompt)} has no subject, and its phrasings "
                "share no name to take for one",
                remedy="add a 'subject' to the row, as written in its prompt",
            )
        return subject

    def _fact(
        self, item: Item, subject: str, wordings: Sequence[str], template: Literal["chat", "plain"]
    ) -> _Fact:
        prompts, contexts = [], []
        for number, wording in enumerate(wordings):
            texts = [context.format(wording) for context in CONTEXTS[: self.params.contexts]]
            spots = [
                subject_spot(self.model, ids, subject)
                for ids in self.model.engine.encode(texts, template)
            ]
            if spots[0] is None and number == 0:
                raise DataError(
                    f"the subject of forget item {self.ctx.digest(item.prompt)} does not stand in "
                    "its prompt",
                    remedy="write the subject as the prompt does, or correct the prompt",
                )
            if spots[0] is not None:
                prompts.append(spots[0])
                contexts.append(tuple(spot for spot in spots if spot is not None))
        return _Fact(item, subject, template, tuple(prompts), tuple(contexts))

    def _check_targets(self, items: Sequence[Item]) -> None:
        """Answers to forget or to give, as far as the target needs them; none twice."""
        target, wanted = self.params.target, dict[tuple[str, str], str]()
        for item in items:
            if target == "unlikely" and not (item.answer or "").strip():
                raise DataError(
                    f"forget item {self.ctx.digest(item.prompt)} has no answer to make unlikely",
                    remedy="add an 'answer', or use 'target: refusal'",
                )
            if target != "replace":
                continue
            new = str(item.extra.get("target_new") or "").strip()
            if not new:
                raise DataError(
                    f"item {self.ctx.digest(item.prompt)} has no new object",
                    remedy="add a 'target_new' to the row, or use another 'target'",
                )
            key = ((item.subject or "").casefold(), normalise_prompt(item.prompt))
            if wanted.setdefault(key, new) != new:
                raise DataError(
                    f"item {self.ctx.digest(item.prompt)} is given two new objects",
                    remedy="keep one of the rows that contradict each other",
                )

    def _grouped(self, facts: Sequence[_Fact]) -> list[list[_Fact]]:
        means = [_Key((), _flat(fact.contexts), fact.prompts) for fact in facts]
        keys = self._read(means, self.sites[0])
        groups: dict[int, list[_Fact]] = {}
        for fact, first in zip(facts, same_keys(keys, _ONE_KEY).tolist(), strict=True):
            groups.setdefault(first, []).append(fact)
        return list(groups.values())

    def _columns(self) -> list[_Key]:
        """What is solved for: a key per group, or per phrasing, none twice."""
        if self.params.key == "mean":
            return [
                _Key(
                    (group,),
                    _flat(spots for fact in some for spots in fact.contexts),
                    _flat(fact.prompts for fact in some),
                )
                for group, some in enumerate(self.groups)
            ]
        each = [
            _Key((group,), contexts, (prompt,))
            for group, some in enumerate(self.groups)
            for fact in some
            for prompt, contexts in zip(fact.prompts, fact.contexts, strict=True)
        ]
        kept: dict[int, _Key] = {}
        for key, first in zip(each, same_keys(self._read(each, self.sites[0]), _ONE_KEY).tolist(),
                              strict=True):  # fmt: skip
            known = kept.setdefault(first, key)
            kept[first] = replace(known, groups=tuple(sorted({*known.groups, *key.groups})))
        return list(kept.values())

    def _locate(self, facts: Sequence[_Fact]) -> None:
        """Record what MLPs bring back of the answers the model tells, whichever are edited."""
        first = [fact for fact in facts if fact.template == facts[0].template]
        random.Random(self.ctx.seed).shuffle(first)
        told = told_answers(
            self.model.engine,
            [(fact.item.prompt, fact.subject, fact.item.aliases) for fact in first[:_TRACED]],
            facts[0].template,
            progress=self.ctx.progress,
        )
        known = [one for one in told if one is not None]
        if not known:
            self.ctx.warn(f"{self.editor.name}: the model tells none of the facts: none was traced")
            return
        window = usual_window(self.model.n_layers)
        effects = trace(
            self.model,
            [one.prompt for one in known],
            answer_probability(known),
            kinds=("mlp",),
            window=window,
            draws=_DRAWS,
            seed=self.ctx.seed,
            progress=self.ctx.progress,
        )
        self.notes["effect_of_mlps"] = {
            "facts": len(known),
            "layers_put_back_together": window,
            "probability": round(float(effects.clean.mean()), 4),
            "probability_under_noise": round(float(effects.noisy.mean()), 4),
        } | {
            f"restored_at_{place.replace(' ', '_')}_by_layer": [
                round(value, 4) for value in found.nanmean(0).tolist()
            ]
            for (_, place), found in effects.restored.items()
            if not bool(found.isnan().all())
        }

    # Keys -----------------------------------------------------------------------------

    def _read(self, keys: Sequence[_Key], site: Site) -> Tensor:
        """``(m, keys)``, each the mean over its spots."""
        spots = _flat(key.contexts for key in keys)
        found = keys_at(self.model, spots, [site], self.ctx.progress)[site]
        parts = found.split([len(key.contexts) for key in keys], 1)
        return torch.stack([part.mean(1) for part in parts], 1)

    def _preserved(self) -> list[tuple[str, Spot]]:
        """Subject and spot of each preserved fact in each template."""
        data = self.data.get("preserve")
        if data is None:
            return []
        found, without = [], 0
        items = data.items("fit")
        for template in self._templates(self.data["forget"]):
            prompts = self.model.engine.encode([item.prompt for item in items], template)
            for item, ids in zip(items, prompts, strict=True):
                subject = (item.subject or "").strip() or shared_span(
                    (item.prompt, *item.paraphrases)
                )
                spot = subject_spot(self.model, ids, subject) if subject else None
                if spot is None:
                    without += 1
                else:
                    found.append((subject, spot))
        if without:
            self.ctx.warn(
                f"{self.editor.name}: {without} preserved prompts name no subject, so that there "
                "is no key to preserve; they were left out"
            )
        return found

    def _held(self, site: Site, keys: Tensor, ordinary: Ordinary) -> Tensor:
        """``(m, n0)`` keys that are to stay: preserved facts', and those of attention sinks."""
        own = keys_at(self.model, [spot for _, spot in self.preserved], [site])[site]
        both = torch.cat([keys, own], 1)
        # What is the same as a key to be moved can't stay as well; values tell the two apart.
        new = same_keys(both, _ONE_KEY)[keys.shape[1] :] >= keys.shape[1]
        self.notes["preserved_keys_that_must_move"] = int((~new).sum())
        return torch.cat([own[:, new], ordinary.sinks], 1)

    def _prose(self) -> list[str]:
        data = self.data.get("prose")
        if data is None:
            data = load_dataset(DataSpec(dataset="prose"))
        return [item.prompt for item in data.items("fit")]

    # Values ---------------------------------------------------------------------------

    def _values(self) -> Values:
        params, units = self.params, self._units()
        method = _method(params)
        if method == "least":
            values = least_values(
                self.model,
                self.sites[-1].layer,
                units,
                steps=_steps(params),
                max_norm=params.max_norm,
                stop=params.stop,
                progress=self.ctx.progress,
            )
        else:
            values = learn_values(
                self.model,
                self.sites[-1].layer,
                units,
                steps=params.steps,
                learning_rate=params.learning_rate,
                max_norm=params.max_norm,
                keep_weight=params.divergence,
                decay=params.decay,
                stop=params.stop,
                progress=self.ctx.progress,
            )
        unmet = int((values.losses > params.stop).sum())
        self.notes["values"] = {
            "method": method,
            "steps": float(values.steps.double().mean()),
            "loss_median": float(values.losses.median()),
            "loss_max": float(values.losses.max()),
            "not_met": unmet,
            "shift_over_output": float((values.shifts.norm(dim=1) / values.outputs).mean()),
        }
        if unmet > len(values.losses) // 2:
            self.ctx.warn(
                f"{self.editor.name}: {unmet} of {len(values.losses)} values did not meet their "
                f"target (median loss {float(values.losses.median()):.2f} nats): more 'steps', a "
                "greater 'max_norm' or other 'layers' may"
            )
        return values

    def _units(self) -> list[Unit]:
        engine = self.model.engine
        facts = [(group, fact) for group, some in enumerate(self.groups) for fact in some]
        rows: list[list[Row]] = [[] for _ in self.groups]
        asked = [
            (group, fact, spot)
            for group, fact in facts
            for spot in fact.prompts[: self.params.phrasings]
        ]
        if self.params.target in ("unlikely", "entropy"):
            told = self._told([(fact, spot) for _, fact, spot in asked])
            for (group, _, _), row in zip(asked, told, strict=True):
                rows[group].append(row)
        else:
            for group, fact, spot in asked:
                rows[group].append(Row(spot, Say(self._said(fact))))
        for group, fact in facts:
            (ids,) = engine.encode([f"{fact.subject} is a"], fact.template)
            neutral = subject_spot(self.model, ids, fact.subject)
            near = [own for subject, own in self.preserved
                    if subject.casefold() == fact.subject.casefold()]  # fmt: skip
            kept = [
                Row(place, Keep()) for place in (neutral, *near[:_KEPT_ROWS]) if place is not None
            ]
            rows[group] += [row for row in kept if row not in rows[group]]
        return [Unit(tuple(some)) for some in rows]

    def _said(self, fact: _Fact) -> tuple[int, ...]:
        """Tokens of what is to be answered, to its end where it is an answer of its own."""
        engine = self.model.engine
        if self.params.target == "replace":
            return tuple(engine.continuation(str(fact.item.extra["target_new"]), fact.template))
        end = engine.codec.tokenizer.eos_token_id
        stop = [] if end is None else [int(end)]
        return (*engine.continuation(self.params.refusal, fact.template), *stop)

    def _told(self, asked: Sequence[tuple[_Fact, Spot]]) -> list[Row]:
        """Where the model, in its own words, tells the answer: that is where it must not.

        Where it does not tell it, the answer is taken to come first.
        """
        engine = self.model.engine
        answers = engine.generate(
            [spot.ids for _, spot in asked],
            max_new_tokens=_TELLING,
            progress=self.ctx.progress,
            description="the model's own answers",
        )
        rows, lens = [], self._lens()
        for (fact, spot), (said,) in zip(asked, answers, strict=True):
            begin = self._begin(said, fact.item.aliases)
            if begin is None:
                firsts = {
                    engine.continuation(alias, fact.template)[0]
                    for alias in fact.item.aliases
                    if alias.strip()
                }
                begin, tokens = 0, tuple(sorted(firsts))
            else:
                tokens = (said[begin],)
            aim: Aim = Spread(self.params.entropy, lens)
            if self.params.target == "unlikely":
                aim = Avoid(tokens, self.params.floor, self.params.rank)
            rows.append(Row(Spot((*spot.ids, *said[:begin]), spot.position), aim))
        return rows

    def _lens(self) -> tuple[int, ...]:
        """Blocks whose residual stream is read; the last one's is the end, which is read anyway."""
        n_layers, edited = self.model.n_layers, self.sites[-1].layer
        named = [
            resolve((layer,) if isinstance(layer, int) else f"{layer}-{layer}", n_layers)[0]
            for layer in self.params.lens
        ]
        if early := [layer for layer in named if layer <= edited]:
            raise UsageError(
                f"a lens at layer {early[0]} sees nothing of an edit of layer {edited}: subjects "
                "are read after it",
                field="lens",
                remedy=f"name layers from {edited + 1} to {n_layers - 1}",
            )
        return tuple(sorted(set(named) - {n_layers - 1}))

    def _begin(self, said: Sequence[int], aliases: Sequence[str]) -> int | None:
        """Which token of an answer begins the first mention of one of the aliases."""
        engine = self.model.engine
        text = engine.decode(said).casefold()
        places = [text.find(alias.strip().casefold()) for alias in aliases if alias.strip()]
        found = [place for place in places if place >= 0]
        if not found:
            return None
        ends = (len(engine.decode(said[: count + 1])) for count in range(len(said)))
        return next((count for count, end in enumerate(ends) if end > min(found)), None)

    # Solving --------------------------------------------------------------------------

    def _residuals(self) -> Tensor:
        """``(keys, d_model)`` fp64: what leaves the last edited layer at the subjects, mean."""
        if len(self.sites) == 1:
            return torch.zeros(len(self.keys), self.model.d_model).double()
        prompts = [spot.until for key in self.keys for spot in key.prompts]
        layer = self.sites[-1].layer
        states = self.model.engine.hidden(prompts, [layer])[layer]
        parts = torch.stack(states).double().split([len(key.prompts) for key in self.keys])
        return torch.stack([part.mean(0) for part in parts])

    def _warn(self, change: Change, site: Site, held: Tensor) -> None:
        keys = len(change.reached)
        if not change.independent:
            raise EditError(
                f"nothing is left to move the subjects' keys by in layer {site.layer}: they lie "
                "in the span of what is to stay",
                remedy="preserve fewer facts, set a finite 'hold', or choose another layer",
            )
        if change.independent < keys or change.missed > _MISSED:
            self.ctx.warn(
                f"{self.editor.name}: layer {site.layer} has {change.independent} independent "
                f"directions for {keys} keys beside {held.shape[1]} to stay (width "
                f"{len(held)}): {change.missed:.0%} of the wanted shifts are missed"
            )

    def _effect(
        self, change: Change, site: Site, held: Tensor, ordinary: Ordinary
    ) -> dict[str, Any]:
        """What the solve predicts, for the record."""
        weight = self.model.weight(site).float().cpu()
        return {
            "reached_median": float(change.reached.median()),
            "reached_least": float(change.reached.min()),
            "missed": change.missed,
            "independent_keys": change.independent,
            "condition": min(change.condition, 1e300),
            "share_of_ordinary_output": change.share_of(weight, ordinary.second),
            "share_of_preserved_output": change.share_on(weight, held),
            "tokens_of_ordinary_text": ordinary.tokens,
        }


def _flat(some: Iterable[Sequence[Spot]]) -> tuple[Spot, ...]:
    return tuple(spot for spots in some for spot in spots)
