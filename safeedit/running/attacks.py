"""Attacks on the edited model: made, measured by repeated audits, undone.

Each is made on the untouched model too, early in the run while that is at hand, so that what the
attack brings back can be told from what it leaves of any model. Those figures are kept in the
store like those of other audits of the base. An attack that can't be made is no reason to stop:
what it should have shown has no value then, and the run is inconclusive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from safeedit.code import code_digest
from safeedit.contracts import AttackProposal, RunContext, asked_of_base
from safeedit.errors import AuditError, EditError
from safeedit.model.handle import ModelHandle
from safeedit.planning.attacks import NEVER_KNOWN, headline_of
from safeedit.planning.plan import PlannedAttack, PlannedAudit
from safeedit.planning.road import base_stage, edited_stage
from safeedit.records import AttackPoint, AttackRecord, Metric
from safeedit.running.audits import Audited, Audits, Metrics
from safeedit.running.clock import Clock
from safeedit.running.keys import joined, strength
from safeedit.running.store import Finding
from safeedit.running.telling import worst_headlines
from safeedit.statistics.recovery import recovery

_LONGEST_ANSWER = 24
"""Tokens of an answer by the untouched model that an attack is given."""

Strength = tuple[str, int, float]
"""Attack, seed, dose."""


class TamperedError(EditError):
    """An attack changed the model for good: nothing measured after it would be of that model."""


@dataclass
class Attacks:
    """Makes the attacks of a plan and remembers what they did to the untouched model.

    Args:
        audits: Of the run.
        clock: Of the run.
    """

    audits: Audits
    clock: Clock
    base: dict[Strength, dict[str, Audited]] = field(default_factory=dict)
    """Strength -> audit -> figures of the untouched model under the attack."""
    before: dict[tuple[str, str], Audited] = field(default_factory=dict)
    """(attack, audit) -> figures of the untouched model, of the items asked under the attack."""
    failed: dict[str, str] = field(default_factory=dict)
    """Attack -> why it could not be made on the untouched model."""
    base_says: dict[str, list[int]] = field(default_factory=dict)
    """Question -> what the untouched model answers; in memory only."""

    def measure_base(self, model: ModelHandle) -> None:
        """Attack the untouched model, as far as the store does not know what comes of it."""
        for attack in self.audits.plan.attacks:
            with self.clock.stage(base_stage(attack)) as figures:
                for audit in attack.audits:
                    self._measure_before(model, attack, audit)
                for seed in self._seeds(attack):
                    try:
                        self._ask_base(model, attack, seed)
                        self._attack_base(model, attack, seed)
                    except TamperedError:
                        raise
                    except (EditError, AuditError) as error:
                        self._fail(attack, "untouched", error)
                found = [
                    audited.record
                    for (ident, _, _), under in self.base.items()
                    for audited in under.values()
                    if ident == attack.id
                ]
                figures |= worst_headlines(attack.audits, [record.metrics for record in found])

    def measure_edited(self, model: ModelHandle, after: Metrics) -> tuple[AttackRecord, ...]:
        """Attack the edited model.

        Args:
            model: As it will be exported; the same again afterwards, proved by digest.
            after: Its metrics without an attack, by full name.
        """
        found = []
        for attack in self.audits.plan.attacks:
            with self.clock.stage(edited_stage(attack)) as figures:
                record = self._attack_edited(model, attack, after)
                points = [point.edited for point in record.points]
                figures |= worst_headlines(attack.audits, points)
                found.append(record)
        return tuple(found)

    def _seeds(self, attack: PlannedAttack) -> range:
        first = self.audits.ctx.seed
        return range(first, first + attack.spec.seeds)

    def _context(self, seed: int) -> RunContext:
        base = self.audits.base_tensor
        return replace(self.audits.ctx, seed=seed, base_tensor=base, base_says=self.base_says)

    def _fail(self, attack: PlannedAttack, which: str, error: EditError | AuditError) -> None:
        remedy = f" ({error.remedy})" if error.remedy else ""
        self.failed[attack.id] = f"on the {which} model: {error.message}{remedy}"
        self.audits.ctx.warn(f"attack {attack.id} failed {self.failed[attack.id]}")

    # The untouched model ----------------------------------------------------------------

    def _ask_base(self, model: ModelHandle, attack: PlannedAttack, seed: int) -> None:
        """What the attack wants to know of the untouched model, greedily."""
        asked = asked_of_base(attack.attack, attack.data, seed)
        texts = [text for text in dict.fromkeys(asked.texts) if text not in self.base_says]
        if not texts:
            return
        engine = model.engine
        found = engine.generate(
            engine.encode(texts, asked.template),
            max_new_tokens=_LONGEST_ANSWER,
            progress=self.audits.ctx.progress,
            description="answers of the untouched model",
        )
        end = engine.codec.tokenizer.eos_token_id
        for text, (ids,) in zip(texts, found, strict=True):
            ended = len(ids) < _LONGEST_ANSWER and end is not None
            self.base_says[text] = [*ids, int(end)] if ended else list(ids)

    def _measure_before(
        self, model: ModelHandle, attack: PlannedAttack, audit: PlannedAudit
    ) -> None:
        """The untouched model without the attack, asked what will be asked under it."""
        whole = self.audits.baselines.get((audit.id, "test"))
        if any(audit is own for own in self.audits.plan.audits):
            if whole is not None:
                self.before[attack.id, audit.id] = whole
            return
        wanted = attack.wanted[audit.id]
        try:
            found = self.audits.measure(model, audit, "test", wanted=wanted)
        except AuditError as error:
            self._fail(attack, "untouched", error)
            return
        self.before[attack.id, audit.id] = found

    def _attack_base(self, model: ModelHandle, attack: PlannedAttack, seed: int) -> None:
        """All strengths with one seed; nothing is trained where the store has every figure."""
        doses = attack.attack.strengths()
        asked = self._asked(attack)
        keys = {
            (dose, audit.id): self._key(model, attack, audit, strength(attack, seed, dose))
            for dose in doses
            for audit in asked
        }
        known = {(d, a.id): self.audits.known(keys[d, a.id], a) for d in doses for a in asked}
        proposal = None
        if any(found is None for found in known.values()):
            proposal = _proposed(attack, model, self._context(seed))
        for dose in doses:
            missing = [audit for audit in asked if known[dose, audit.id] is None]
            if missing:
                assert proposal is not None
                with model.rewritten(proposal.at(dose)):
                    for audit in missing:
                        known[dose, audit.id] = self._make(
                            keys[dose, audit.id], model, attack, audit
                        )
            self.base[attack.id, seed, dose] = {
                audit.id: found for audit in asked if (found := known[dose, audit.id]) is not None
            }

    def _asked(self, attack: PlannedAttack) -> list[PlannedAudit]:
        return [audit for audit in attack.audits if (attack.id, audit.id) in self.before]

    def _key(
        self,
        model: ModelHandle,
        attack: PlannedAttack,
        audit: PlannedAudit,
        under: Mapping[str, object],
    ) -> str:
        """Of an audit of a model, as it is before the attack, under one strength of it."""
        before, wanted = self.before[attack.id, audit.id], attack.wanted[audit.id]
        return self.audits.key(model, audit, "test", before, wanted, under)

    def _make(
        self, key: str | None, model: ModelHandle, attack: PlannedAttack, audit: PlannedAudit
    ) -> Audited:
        before, wanted = self.before[attack.id, audit.id], attack.wanted[audit.id]
        return self.audits.make(key, model, audit, "test", before, wanted)

    # The edited model -------------------------------------------------------------------

    def _attack_edited(
        self, model: ModelHandle, attack: PlannedAttack, after: Metrics
    ) -> AttackRecord:
        start = self.audits.store.effort.now()
        untouched = model.tensor_digests(fresh=True)
        points: list[AttackPoint] = []
        for seed in self._seeds(attack):
            try:
                points += self._points(model, attack, seed, after)
            except TamperedError:
                raise
            except (EditError, AuditError) as error:
                self._fail(attack, "edited", error)
        if model.tensor_digests(fresh=True) != untouched:
            raise TamperedError(
                f"attack {attack.id}: the weights after it are not those before",
                remedy="report this with the model's architecture and dtype",
            )
        return AttackRecord(
            id=attack.id,
            use=attack.spec.use,
            params=self.audits.plan.hidden.value(attack.params.model_dump(mode="json")),
            data_digests={role: data.digest for role, data in attack.data.roles.items()},
            tries=attack.attack.tries,
            audits=tuple(audit.id for audit in attack.audits),
            headlines={audit.id: f"{audit.id}.{headline_of(audit)}" for audit in attack.audits},
            points=tuple(points),
            failed=self.failed.get(attack.id, ""),
            left_out=attack.left_out,
            seconds=self.audits.store.effort.now() - start,
        )

    def _points(
        self, model: ModelHandle, attack: PlannedAttack, seed: int, after: Metrics
    ) -> Iterator[AttackPoint]:
        """Every strength with one seed; nothing is attacked again whose outcome the store has."""
        doses = attack.attack.strengths()
        store, what = self.audits.store, f"attack {attack.id}"
        keys = {dose: self._point_key(model, attack, seed, dose, after) for dose in doses}
        known = {dose: store.read("attack", key, what) for dose, key in keys.items()}
        proposal = None
        if any(entry is None for entry in known.values()):
            proposal = _proposed(attack, model, self._context(seed))
        for dose in doses:
            if (entry := known[dose]) is not None:
                for warning in entry.said["warnings"]:
                    self.audits.ctx.warn(warning)
                yield AttackPoint.model_validate(entry.said["point"])
                continue
            assert proposal is not None
            point, warnings = self._point(model, attack, proposal, seed, dose, after)
            said = {"point": point.model_dump(mode="json"), "warnings": warnings}
            store.write("attack", keys[dose], Finding(said, {}, point.seconds), what)
            yield point

    def _point_key(
        self, model: ModelHandle, attack: PlannedAttack, seed: int, dose: float, after: Metrics
    ) -> str:
        """Of one strength: of every audit under it, of both models, and of what they are held
        against."""
        under = strength(attack, seed, dose)
        base = self.base.get((attack.id, seed, dose), {})
        control = attack.data.get(NEVER_KNOWN)
        return joined(
            "attack",
            code_digest(__name__),
            control.digest if control is not None else None,
            [
                [
                    audit.id,
                    self._key(model, attack, audit, under),
                    base[audit.id].key if audit.id in base else None,
                    _said(after.get(f"{audit.id}.{headline_of(audit)}")),
                ]
                for audit in self._asked(attack)
            ],
        )

    def _point(
        self,
        model: ModelHandle,
        attack: PlannedAttack,
        proposal: AttackProposal,
        seed: int,
        dose: float,
        after: Metrics,
    ) -> tuple[AttackPoint, list[str]]:
        """One strength, measured, and what its audits warned of."""
        start = time.perf_counter()
        base = self.base.get((attack.id, seed, dose), {})
        found: list[Metric] = []
        invented: list[Metric] = []
        warnings: list[str] = []
        with model.rewritten(proposal.at(dose)):
            for audit in self._asked(attack):
                under = self._make(None, model, attack, audit)
                found += self._with_recovery(attack, audit, under, base, after)
                warnings += under.warnings
                if (control := self._never_known(model, attack, audit)) is not None:
                    invented += control.metrics.values()
                    warnings += control.warnings
        point = AttackPoint(
            dose=dose,
            label=proposal.label(dose),
            seed=seed,
            edited=tuple(found),
            base=tuple(m for name in base for m in self._looked_at(attack, base[name])),
            never_known=tuple(invented),
            notes=proposal.notes(dose),
            seconds=time.perf_counter() - start,
        )
        return point, warnings

    def _looked_at(self, attack: PlannedAttack, found: Audited) -> tuple[Metric, ...]:
        """The metrics of an audit that the attack is for; others were not measured in full."""
        wanted = attack.wanted[found.record.id]
        return tuple(m for m in found.record.metrics if m.name.rpartition(".")[2] in wanted)

    def _with_recovery(
        self,
        attack: PlannedAttack,
        audit: PlannedAudit,
        under: Audited,
        base: Mapping[str, Audited],
        after: Metrics,
    ) -> tuple[Metric, ...]:
        name = f"{audit.id}.{headline_of(audit)}"
        attacked = base.get(audit.id)
        share = recovery(
            audit.id,
            self.before[attack.id, audit.id].metrics.get(name),
            attacked.metrics.get(name) if attacked is not None else None,
            after.get(name),
            under.metrics[name],
        )
        return (*self._looked_at(attack, under), share)

    def _never_known(
        self, model: ModelHandle, attack: PlannedAttack, audit: PlannedAudit
    ) -> Audited | None:
        """The same audit of what nobody knew: what the attack makes the model invent."""
        control = attack.data.get(NEVER_KNOWN)
        roles = [role.name for role in audit.auditor.roles if role.erased and role.answered]
        if control is None or not roles:
            return None
        asked = replace(audit, data={**audit.data, roles[0]: control})
        wanted = frozenset({"extraction_rate_unconditional"})
        found = self.audits.make(None, model, asked, "test", None, wanted)
        metrics = tuple(m for m in found.record.metrics if m.name.rpartition(".")[2] in wanted)
        return replace(found, record=found.record.model_copy(update={"metrics": metrics}))


def _proposed(attack: PlannedAttack, model: ModelHandle, ctx: RunContext) -> AttackProposal:
    before = model.tensor_digests(fresh=True)
    try:
        return attack.attack.propose(model, attack.data, ctx)
    finally:
        if model.tensor_digests(fresh=True) != before:
            raise TamperedError(f"attack {attack.id} changed the model while proposing")


def _said(metric: Metric | None) -> object:
    return metric.model_dump(mode="json") if metric is not None else None
