"""The audits of one run, of the untouched model and of edited ones: from the store where they have
been made before.

An audit that can't be made is skipped, loudly; what it should have measured has no value then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from safeedit.contracts import AuditOutcome, RunContext
from safeedit.delta import WeightDelta
from safeedit.errors import AuditError
from safeedit.model.foreknown import ForeknownAnswers
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import Plan, PlannedAudit
from safeedit.records import AuditRecord, Comparison, Metric, Split
from safeedit.running.keys import audit_key
from safeedit.running.store import Finding, Store
from safeedit.statistics.metrics import compare

Metrics = dict[str, Metric]


@dataclass(frozen=True)
class Audited:
    """What one audit found on one split."""

    record: AuditRecord
    reference: dict[str, Tensor]
    """What it leaves for audits of edited models."""
    key: str
    """Of everything that made it; empty where it is not in the store."""
    warnings: tuple[str, ...] = ()
    """What it said loudly."""

    def finding(self) -> Finding:
        """As the store keeps it."""
        said = {"record": self.record.model_dump(mode="json"), "warnings": list(self.warnings)}
        return Finding(said, self.reference, self.record.seconds)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Full name -> metric."""
        return {metric.name: metric for metric in self.record.metrics}


@dataclass(frozen=True)
class Asked:
    """An audit that is about to be asked for."""

    audit: PlannedAudit
    split: Split
    delta: WeightDelta | None = None
    """Of the model as it will be then; None: as it is."""
    held: bool = True
    """Whether it is held against what the untouched model gave."""
    wanted: frozenset[str] | None = None
    learn: bool = True


class AuditsElsewhere(Protocol):
    """Others who make audits and leave them in the store."""

    workers: int

    def make(self, model: ModelHandle, asked: Sequence[Asked]) -> None: ...


@dataclass
class Audits:
    """Measures models with the audits of a plan, and remembers what the untouched one gave.

    Args:
        plan: Whose audits.
        ctx: Of the run.
        store: Where figures are kept from run to run.
    """

    plan: Plan
    ctx: RunContext
    store: Store
    baselines: dict[tuple[str, Split], Audited] = field(default_factory=dict)
    """(audit, split) -> what the untouched model gave."""
    aims: dict[str, frozenset[str]] = field(default_factory=dict)
    """Audit -> bare names of the metrics that choosing doses looks at on validation data."""
    skipped: set[str] = field(default_factory=set)
    """Audits that could not be made on test data."""
    base_tensor: Callable[[str], Tensor] | None = None
    """Reads a tensor of the untouched model, once that has been measured."""
    answers: ForeknownAnswers = field(default_factory=ForeknownAnswers)
    """What models of this run have said, in memory only."""
    elsewhere: AuditsElsewhere | None = None
    """Who makes some of them, if anybody else does."""
    changes: list[WeightDelta] = field(default_factory=list)
    """What the run has made of the untouched model, in order."""

    def __post_init__(self) -> None:
        for edit in self.plan.edits:
            for gate in edit.targets if edit.spec.dose == "auto" or edit.places else ():
                self.aims[gate.audit] = self.aims.get(gate.audit, frozenset()) | {gate.name}

    def baseline_metrics(self, split: Split) -> Metrics:
        """All metrics of the untouched model on one split, by full name."""
        found: Metrics = {}
        for (_, measured), audited in self.baselines.items():
            if measured == split:
                found |= audited.metrics
        return found

    def base_records(self, split: Split) -> tuple[AuditRecord, ...]:
        """What the untouched model gave on one split, audit by audit."""
        return tuple(each.record for (_, on), each in self.baselines.items() if on == split)

    def measure_base(self, model: ModelHandle, audit: PlannedAudit, split: Split) -> None:
        """Measure the untouched model."""
        self.know_base(model)
        try:
            self.baselines[audit.id, split] = self.measure(model, audit, split)
        except AuditError as error:
            self._skip(audit, split, error)

    def know_base(self, model: ModelHandle) -> None:
        """Remember where the tensors of the untouched model are read."""
        self.base_tensor = _reader(model)

    def ahead_of_bases(self, model: ModelHandle, splits: Sequence[Split]) -> None:
        """Say that the untouched model is measured next."""
        asked = [(audit, split) for split in splits for audit in self.asked_of_base(split)]
        self.ahead(model, [Asked(audit, split, held=False) for audit, split in asked])

    def asked_of_base(self, split: Split) -> Iterator[PlannedAudit]:
        """Audits that the untouched model is measured with: all on test data, on validation data
        those that doses are chosen by."""
        return (each for each in self.plan.audits if split == "test" or each.id in self.aims)

    def ahead(self, model: ModelHandle, asked: Sequence[Asked]) -> None:
        """Say what will be asked for next, so that others can make it meanwhile."""
        if self.elsewhere is not None:
            self.elsewhere.make(model, asked)

    def measure_edited(self, model: ModelHandle) -> tuple[AuditRecord, ...]:
        """Measure edited weights with every audit, on test data."""
        self.ahead(model, [Asked(audit, "test") for audit in self.plan.audits])
        found = (self.against_base(model, audit, "test") for audit in self.plan.audits)
        return tuple(audited.record for audited in found if audited is not None)

    def against_base(self, model: ModelHandle, audit: PlannedAudit, split: Split) -> Audited | None:
        """Measure edited weights; None, said loudly, where they or the base can't be measured."""
        base = self.baselines.get((audit.id, split))
        if base is None:
            return None
        try:
            return self.measure(model, audit, split, base)
        except AuditError as error:
            self._skip(audit, split, error)
            return None

    def in_passing(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        what: str,
        wanted: frozenset[str] | None = None,
    ) -> tuple[Metric, ...]:
        """An audit's metrics of a model that is not to stay; none where its policy says ``control:
        false``, or, said loudly, where it can't be measured."""
        base = self.baselines.get((audit.id, "test"))
        if base is None or not audit.spec.control:
            return ()
        try:
            # What it says is no draft of what comes after it: it is not to stay.
            return self.measure(model, audit, "test", base, wanted, learn=False).record.metrics
        except AuditError as error:
            self.ctx.warn(f"{what} could not be measured by {audit.id}: {error.message}")
            return ()

    def _skip(self, audit: PlannedAudit, split: Split, error: AuditError) -> None:
        """Go on without an audit, and say so."""
        if split == "test":
            self.skipped.add(audit.id)
        remedy = f" ({error.remedy})" if error.remedy else ""
        self.ctx.warn(f"audit {audit.id} was skipped on {split} data: {error.message}{remedy}")

    def measure(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        split: Split,
        base: Audited | None = None,
        wanted: frozenset[str] | None = None,
        *,
        learn: bool = True,
    ) -> Audited:
        """An audit of the weights as they are, from the store where it has been made before.

        Args:
            model: Measured.
            audit: From the plan.
            split: Of its data.
            base: What the same audit of the untouched model gave; None for that model itself.
            wanted: Bare names of metrics to look at; None: all, or on validation data those that
                doses are chosen by.
            learn: Whether other models may be expected to answer as this one does.

        Raises:
            AuditError: It can't be made.
        """
        key = self.key(model, audit, split, base, wanted)
        found = self.known(key, audit)
        if found is None:
            found = self.make(key, model, audit, split, base, wanted, learn=learn)
        return found

    def key(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        split: Split,
        base: Audited | None = None,
        wanted: frozenset[str] | None = None,
        attack: Mapping[str, object] | None = None,
    ) -> str:
        """Of an audit in the store; arguments as of :meth:`measure` and
        :func:`~safeedit.running.keys.audit_key`."""
        return audit_key(
            self.ctx, model, audit, split,
            wanted=wanted or self._wanted(audit, split),
            base=base.key if base is not None else "", attack=attack,
        )  # fmt: skip

    def known(self, key: str, audit: PlannedAudit) -> Audited | None:
        """What the store holds under a key; what the audit warned of is said again."""
        what = f"audit {audit.id}"
        entry = self.store.read("audit", key, what)
        if entry is None:
            return None
        record = AuditRecord.model_validate(entry.said["record"])
        record = record.model_copy(update={"cached": not entry.again})
        warnings = tuple(entry.said["warnings"])
        for warning in warnings:
            self.ctx.warn(warning)
        # Another policy may call the same audit by another id: names are given on the way out.
        return _renamed(Audited(record, entry.tensors, key, warnings), audit.id)

    def make(
        self,
        key: str | None,
        model: ModelHandle,
        audit: PlannedAudit,
        split: Split,
        base: Audited | None = None,
        wanted: frozenset[str] | None = None,
        *,
        learn: bool = True,
    ) -> Audited:
        """Make an audit, whatever the store holds, and keep it under ``key``, if there is one.

        Other arguments and errors as of :meth:`measure`."""
        start = time.perf_counter()
        warnings: list[str] = []

        def warn(message: str) -> None:
            warnings.append(message)
            self.ctx.warn(message)

        wanted = wanted or self._wanted(audit, split)
        ctx = replace(self.ctx, wanted=wanted, warn=warn, base_tensor=self.base_tensor)
        held_against = base.reference if base is not None else None
        with model.engine.foreknowing(self.answers, learn=learn):
            outcome: AuditOutcome = audit.auditor.audit(model, audit.data, split, ctx, held_against)
        record = AuditRecord(
            id=audit.id,
            use=audit.spec.use,
            split=split,
            data_digests={role: data.digest for role, data in audit.data.items()},
            metrics=outcome.metrics,
            covers=audit.auditor.covers,
            seconds=time.perf_counter() - start,
        )
        self.store.effort.audited(audit.spec.use, record.seconds)
        # An edited model's own reference serves nobody.
        reference = dict(outcome.reference) if base is None else {}
        if key is not None:
            entry = Audited(record, reference, key, tuple(warnings)).finding()
            self.store.write("audit", key, entry, f"audit {audit.id}")
        return _renamed(Audited(record, reference, key or "", tuple(warnings)), audit.id)

    def _wanted(self, audit: PlannedAudit, split: Split) -> frozenset[str] | None:
        """Everything is measured on test data; on validation data, what doses are chosen by."""
        return self.aims.get(audit.id) if split == "validation" else None

    def comparisons(self, found: Mapping[str, Metric], split: Split) -> dict[str, Comparison]:
        """Figures of an edited model beside those of the untouched one, by full name."""
        before = self.baseline_metrics(split)
        return {name: compare(before.get(name), metric) for name, metric in found.items()}


def _renamed(found: Audited, audit_id: str) -> Audited:
    """Metric names under an audit's id: ``<id>.<metric>``."""
    metrics = tuple(
        metric.model_copy(update={"name": f"{audit_id}.{metric.name.rpartition('.')[2]}"})
        for metric in found.record.metrics
    )
    return replace(
        found, record=found.record.model_copy(update={"id": audit_id, "metrics": metrics})
    )


def _reader(model: ModelHandle) -> Callable[[str], Tensor] | None:
    """Reads tensors of the untouched model from its files, by the model's own names for them."""
    stored = model.on_disk
    if stored is None:
        return None
    transposed = model.shape.transposed
    owners = {model.shape.tied.get(inside, inside): name for name, inside in stored.names.items()}

    def read(name: str) -> Tensor:
        tensor = stored.read(owners[name])
        return tensor.T if name in transposed else tensor

    return read
