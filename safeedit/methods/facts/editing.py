"""From facts to values: what editors share that are keyed to a fact's subject.

For each fact the places are found where its subject's last token stands, in its fit phrasings and
after a few openings, and a *value* is learnt: the shift of what an MLP writes there that meets the
target (:mod:`safeedit.methods.facts.values`). Which change of the weights makes it so is for the
editors: :mod:`safeedit.methods.keyed_update` (linear keys), :mod:`safeedit.editors.keyed_neurons`.

A fact's key depends on the template, so each fact has a value in each of ``templates``. Facts whose
keys are one (same subject, same words before it) share one value, learnt for all of them. Preserved
facts on the same subject are held by divergence while the value is learnt.

An answer that is to be unlikely is aimed at where telling it begins, and, in its first phrasing, at
each further token that carries digits: what is told of a number in part, or ranked among numbers
like it, is not forgotten. Digits that all answers of one shape have in one place are no secret, and
left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from safeedit.contracts import EditData, RunContext
from safeedit.data import Item
from safeedit.data.splitting import normalise_prompt
from safeedit.data.subjects import same_subject, shared_span
from safeedit.errors import DataError
from safeedit.methods.constrained_least_squares import ONE_KEY, same_keys
from safeedit.methods.facts.answers import answer_start, digit_tokens, own_answers
from safeedit.methods.facts.keys import TokenPosition, keys_at, subject_spot
from safeedit.methods.facts.least_values import least_values
from safeedit.methods.facts.objectives import (
    FactObjective,
    KeepDistribution,
    MaximiseEntropy,
    Objective,
    ObjectivePrompt,
    SuppressTokens,
    TargetTokens,
)
from safeedit.methods.facts.settings import CONTEXTS, SEARCH, FactParams
from safeedit.methods.facts.values import Values, learn_values
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import TokenisedText
from safeedit.statistics.candidates import free_digits

_KEPT_ROWS = 4
"""Preserved facts on a unit's own subject that its value is held to, at most."""


@dataclass(frozen=True)
class Fact:
    """One fact in one template."""

    item: Item
    subject: str
    template: Literal["chat", "plain"]
    prompts: tuple[TokenPosition, ...]
    """Of its fit phrasings, as they are asked."""
    contexts: tuple[tuple[TokenPosition, ...], ...]
    """Where its key is read: the same, each after all openings."""


class FactEdit:
    """The facts of one proposal, on their way to values.

    Args:
        name: The editor's, for messages.
        params: Its parameters.
        model: Stays as it is.
        data: ``forget``, and ``preserve`` and ``prose`` if there are.
        ctx: Of the run.
        site: Where keys are read that tell whether two facts are one.
        openings: How many of :data:`~safeedit.methods.facts.settings.CONTEXTS` keys are read after.

    Raises:
        DataError: A subject is missing or not in its prompt, or facts contradict each other.
    """

    def __init__(
        self,
        name: str,
        params: FactParams,
        model: ModelHandle,
        data: EditData,
        ctx: RunContext,
        site: Site,
        openings: int,
    ) -> None:
        self.name, self.params = name, params
        self.openings = CONTEXTS[:openings]
        self.model, self.data, self.ctx = model, data, ctx
        self.notes: dict[str, Any] = {}
        self.preserved = self._preserved()
        """Subject and spot of each preserved fact in each template."""
        facts = self._facts()
        self.groups = self._grouped(facts, site)
        """Facts that share a key, hence a value."""
        self.notes |= {
            "facts": len(data["forget"].items("fit")),
            "preserved_facts": len(self.preserved),
        }

    # Facts ----------------------------------------------------------------------------

    def _facts(self) -> list[Fact]:
        forget, found = self.data["forget"], list[Fact]()
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
            for template in self.templates:
                fact = self._fact(item, subject, wordings, template)
                absent += len(wordings) - len(fact.prompts)
                found.append(fact)
        if absent:
            self.ctx.warn(
                f"{self.name}: {absent} other phrasings of forget items do not mention "
                "their subject and were left out"
            )
        self.notes["phrasings_without_subject"] = absent
        return found

    @property
    def templates(self) -> list[Literal["chat", "plain"]]:
        """How facts are put, each once."""
        data = self.data["forget"]
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
    ) -> Fact:
        prompts, contexts = [], []
        for number, wording in enumerate(wordings):
            texts = [context.format(wording) for context in self.openings]
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
        return Fact(item, subject, template, tuple(prompts), tuple(contexts))

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
            key = (same_subject(item.subject or ""), normalise_prompt(item.prompt))
            if wanted.setdefault(key, new) != new:
                raise DataError(
                    f"item {self.ctx.digest(item.prompt)} is given two new objects",
                    remedy="keep one of the rows that contradict each other",
                )

    def _grouped(self, facts: Sequence[Fact], site: Site) -> list[list[Fact]]:
        keys = self.mean_keys([flat(fact.contexts) for fact in facts], site)
        groups: dict[int, list[Fact]] = {}
        for fact, first in zip(facts, same_keys(keys, ONE_KEY).tolist(), strict=True):
            groups.setdefault(first, []).append(fact)
        return list(groups.values())

    # Keys -----------------------------------------------------------------------------

    def mean_keys(self, spots: Sequence[Sequence[TokenPosition]], site: Site) -> Tensor:
        """``(m, n)`` what ``site`` reads, each key the mean over its spots."""
        found = keys_at(self.model, flat(spots), [site], self.ctx.progress)[site]
        parts = found.split([len(some) for some in spots], 1)
        return torch.stack([part.mean(1) for part in parts], 1)

    def _preserved(self) -> list[tuple[str, TokenPosition]]:
        data = self.data.get("preserve")
        if data is None:
            return []
        found, without = [], 0
        items = data.items("fit")
        for template in self.templates:
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
                f"{self.name}: {without} preserved prompts name no subject, so that there "
                "is no key to preserve; they were left out"
            )
        return found

    def prose(self) -> list[str]:
        """Ordinary text to leave alone."""
        return [item.prompt for item in self.data["prose"].items("fit")]

    # Values ---------------------------------------------------------------------------

    def values(
        self, layer: int, groups: Sequence[Sequence[Fact]], *, attention: bool = False
    ) -> Values:
        """Shifts of what the MLP of ``layer`` writes at the subjects that meet the target, one for
        each of ``groups``; with ``attention`` what that layer's attention writes may move too
        meanwhile (by Adam alone)."""
        params, units = self.params, self._units(groups)
        if params.method == "least":
            return least_values(
                self.model,
                layer,
                units,
                steps=params.most_steps,
                max_norm=params.max_norm,
                stop=SEARCH.stop,
                progress=self.ctx.progress,
            )
        return learn_values(
            self.model,
            layer,
            units,
            steps=params.steps,
            learning_rate=SEARCH.learning_rate,
            max_norm=params.max_norm,
            keep_weight=SEARCH.divergence,
            decay=SEARCH.decay,
            stop=SEARCH.stop,
            attention=attention,
            progress=self.ctx.progress,
        )

    def record_values(self, *found: Values) -> None:
        """Note how well the values do, and warn where most do not."""
        losses = torch.cat([values.losses for values in found])
        shares = torch.cat([values.shifts.norm(dim=1) / values.outputs for values in found])
        unmet = int((losses > SEARCH.stop).sum())
        self.notes["values"] = {
            "method": self.params.method,
            "steps": float(torch.cat([values.steps for values in found]).double().mean()),
            "loss_median": float(losses.median()),
            "loss_max": float(losses.max()),
            "not_met": unmet,
            "shift_over_output": float(shares.mean()),
        }
        if unmet > len(losses) // 2:
            self.ctx.warn(
                f"{self.name}: {unmet} of {len(losses)} values did not meet their target (median "
                f"loss {float(losses.median()):.2f} nats): more 'steps', a greater 'max_norm' or "
                "other 'layers' may meet more"
            )

    def _units(self, groups: Sequence[Sequence[Fact]]) -> list[FactObjective]:
        engine = self.model.engine
        facts = [(group, fact) for group, some in enumerate(groups) for fact in some]
        rows: list[list[ObjectivePrompt]] = [[] for _ in groups]
        asked = [
            (group, fact, spot)
            for group, fact in facts
            for spot in fact.prompts[: self.params.phrasings]
        ]
        if self.params.target in ("unlikely", "entropy"):
            told = self._told([(fact, spot) for _, fact, spot in asked])
            for (group, _, _), some in zip(asked, told, strict=True):
                rows[group] += [row for row in some if row not in rows[group]]
        else:
            for group, fact, spot in asked:
                rows[group].append(ObjectivePrompt(spot, TargetTokens(self._said(fact))))
        for group, fact in facts:
            (ids,) = engine.encode([f"{fact.subject} is a"], fact.template)
            neutral = subject_spot(self.model, ids, fact.subject)
            near = [own for subject, own in self.preserved
                    if same_subject(subject) == same_subject(fact.subject)]  # fmt: skip
            kept = [
                ObjectivePrompt(place, KeepDistribution())
                for place in (neutral, *near[:_KEPT_ROWS])
                if place is not None
            ]
            rows[group] += [row for row in kept if row not in rows[group]]
        return [FactObjective(tuple(some)) for some in rows]

    def _said(self, fact: Fact) -> tuple[int, ...]:
        """Tokens of what is to be answered."""
        new = str(fact.item.extra["target_new"])
        return tuple(self.model.engine.continuation(new, fact.template))

    def _told(self, asked: Sequence[tuple[Fact, TokenPosition]]) -> list[list[ObjectivePrompt]]:
        """Where the model, in its own words, tells the answer: that is where it must not.

        Where it does not tell it, the answer is taken to come first. Where it is to be unlikely,
        its further digits follow, in the first phrasing alone: each is a pass of its own.
        """
        engine = self.model.engine
        free = self._free_digits()
        answers = own_answers(engine, [spot.ids for _, spot in asked], self.ctx.progress)
        rows = []
        for (fact, spot), said in zip(asked, answers, strict=True):
            begin = answer_start(engine, said, fact.item.aliases)
            if begin is None:
                firsts = {
                    engine.continuation(alias, fact.template)[0]
                    for alias in fact.item.aliases
                    if alias.strip()
                }
                begin, tokens = 0, tuple(sorted(firsts))
            else:
                tokens = (said[begin],)
            aim: Objective = MaximiseEntropy(SEARCH.entropy)
            if self.params.target == "unlikely":
                aim = SuppressTokens(tokens, SEARCH.floor, SEARCH.rank)
            first = TokenPosition((*spot.ids, *said[:begin]), spot.position)
            rows.append([ObjectivePrompt(first, aim)])
            if self.params.target == "unlikely" and spot is fact.prompts[0]:
                rows[-1] += self._further(fact, spot, said, begin, free)
        return rows

    def _free_digits(self) -> dict[str, tuple[bool, ...]]:
        """Answer -> which of its digits not all answers of its shape share."""
        roles = (self.data["forget"], self.data.get("preserve"))
        items = [item for role in roles if role is not None for item in role.items("fit")]
        # A question turned round is answered by a name.
        told = (alias for item in items for alias in (*item.aliases, *item.names))
        answers = list(dict.fromkeys(told))
        return dict(zip(answers, free_digits(answers), strict=True))

    def _further(
        self,
        fact: Fact,
        spot: TokenPosition,
        said: Sequence[int],
        begin: int,
        free: Mapping[str, tuple[bool, ...]],
    ) -> Iterator[ObjectivePrompt]:
        """Tokens of an answer that carry digits of its own, but for the one at which it begins:
        each is to be as unlikely as a guess, after all that stands before it.

        Args:
            fact: Whose answer.
            spot: Its prompt.
            said: What the model goes on with.
            begin: Where in that it tells the answer.
            free: Answer -> which of its digits are its own.
        """
        engine = self.model.engine
        text = TokenisedText(engine.codec.tokenizer, said)
        told = [
            (span, alias)
            for alias in fact.item.aliases
            if alias.strip()
            for span in text.spans(alias.strip())
            if span[0] == begin
        ]
        if not told:
            said = engine.continuation((fact.item.answer or "").strip(), fact.template)
            told = [(range(len(said)), fact.item.answer or "")]
        span, alias = max(told, key=lambda each: len(each[0]))
        own = free[alias]
        for position, first, count in digit_tokens(engine, said, span):
            digits = own[first : first + count]
            if position > begin and any(digits):
                aim = SuppressTokens((said[position],), SEARCH.digit * sum(digits))
                place = TokenPosition((*spot.ids, *said[:position]), spot.position)
                yield ObjectivePrompt(place, aim)


def flat(some: Iterable[Sequence[TokenPosition]]) -> tuple[TokenPosition, ...]:
    """All spots in one row."""
    return tuple(spot for spots in some for spot in spots)
